"""World Models: sizes and equations of the paper and its code, and who learns from what."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from agents.training.cli import parse
from worldmodels.base import Sequence, Spaces, cut
from worldmodels.decoders import image_loss
from worldmodels.distributions import NormalMixture
from worldmodels.strict import ConfigError
from worldmodels.vae_rnn import LSTM, VAERNN, VAERNNLatent

OF_V, OF_M = {"image", "kl"}, {"mdn", "reward", "continue"}
Build = Callable[..., Any]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """The model of the debug preset with other values, and no weight at zero."""

    def made(**changes: Any) -> VAERNN:
        torch.manual_seed(0)
        model = dataclasses.replace(debug_run("none", "vae-rnn").world_model, **changes).build(make_spaces())
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    return made


def published(actions: int, *presets: str) -> VAERNN:
    """The model in the sizes of the paper."""
    names = ",".join(("paper", *presets))
    run = parse(["--agent", "none", "--world-model", "vae-rnn", "--task", "toy:reach", "--preset", names]).config
    return run.world_model.build(Spaces(image=(64, 64, 3), action_dim=actions, discrete=False))


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def by_torch(mixture: NormalMixture) -> td.MixtureSameFamily:
    weights = td.Categorical(logits=mixture.log_weights)
    return td.MixtureSameFamily(weights, td.Normal(mixture.means, mixture.log_stds.exp()))


# ------------------------------------------------------------------------------------------------ sizes of the paper


def test_there_are_as_many_parameters_as_in_the_paper():
    """Its table: 4,348,547 and 422,368 for car racing, 4,446,915 and 1,678,785 for Doom. M's heads are not the paper's,
    and Doom's restart flag is neither input (4 * 512 weights) nor output (513) here."""
    car, doom = published(3), published(1, "doom")
    assert count(car.vae) == 4_348_547 and count(doom.vae) == 4_446_915
    assert count(car.rnn.lstm, car.rnn.mdn) == 422_368
    assert count(doom.rnn.lstm, doom.rnn.mdn) == 1_678_785 - 4 * 512 - 513
    assert car.feature_dim == 32 + 256 and doom.feature_dim == 64 + 512


def test_images_shrink_and_grow_as_in_the_paper():
    model, sides = published(3), []
    for layer in [*model.vae.encoder.convs, *model.vae.decoder.convs]:
        layer.register_forward_hook(lambda _, __, out: sides.append(tuple(out.shape[2:])))
    z, _ = model.vae(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert model.vae.draw(z).shape == (2, 64, 64, 3)
    assert sides == [(n, n) for n in (31, 14, 6, 2, 5, 13, 30, 64)]


def test_the_published_decoder_is_squashed_and_its_loss_the_squared_error(debug_run: Build, make_spaces: Build):
    decoder = {"type": "transposed_sigmoid", "depth": 2, "activation": "relu"}
    argv = [f"--world-model.decoder={decoder}"]
    vae = debug_run("none", "vae-rnn", *argv).world_model.build(make_spaces()).vae
    z, image = 9 * torch.randn(3, 8), torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    vae.decoder.convs[-1].weight.data *= 90
    drawn = vae.draw(z)
    assert drawn.min() < 0.1 and drawn.max() > 0.9 and ((drawn >= 0) & (drawn <= 1)).all()
    torch.testing.assert_close(vae.image_loss(z, image), image_loss(drawn, image))


# ---------------------------------------------------------------------------------------------------------- mixtures


def test_the_mixture_is_that_of_torch_value_and_gradient():
    raw = torch.randn(4, 6, 7 * 3 * 5, generator=generator()).requires_grad_()
    value = torch.randn(4, 6, 7, generator=generator(1))
    mixture = NormalMixture(raw, 5)
    mine, reference = mixture.log_prob(value), by_torch(mixture).log_prob(value)
    assert mine.shape == (4, 6, 7)
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(mine.sum(), raw, retain_graph=True)
    (wanted,) = torch.autograd.grad(reference.sum(), raw)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_each_number_has_logits_means_and_log_deviations_of_its_own_in_the_order_of_the_code():
    """Two numbers, two components. The first is 0.25 N(1, 1) + 0.75 N(-1, e), the second N(5, 1) of either."""
    raw = torch.tensor([0.0, math.log(3), 1.0, -1.0, 0.0, 1.0, 7.0, 7.0, 5.0, 5.0, 0.0, 0.0])
    got = NormalMixture(raw, 2).log_prob(torch.tensor([1.0, 5.0])).exp()
    normal = 1 / math.sqrt(2 * math.pi)
    first = 0.25 * normal + 0.75 * normal / math.e * math.exp(-0.5 * (2 / math.e) ** 2)
    assert got.tolist() == pytest.approx([first, normal])


def test_no_deviation_is_so_small_or_large_that_a_likelihood_is_not_finite():
    raw = torch.tensor([0.0, 0.0, -1e9, 0.0, 0.0, 1e9])
    mixture = NormalMixture(raw, 1)
    assert mixture.log_stds.flatten().tolist() == [-10.0, 5.0]
    assert mixture.log_prob(torch.tensor([1e3, -1e3])).isfinite().all()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 1.5])
def test_the_temperature_multiplies_the_variance(temperature: float):
    mixture = NormalMixture(torch.tensor([0.3, 2.0, math.log(0.7)]).expand(100_000, 3), 1)
    sample = mixture.sample(temperature, generator())
    assert sample.mean().item() == pytest.approx(2.0, abs=0.015)
    assert sample.var().item() == pytest.approx(temperature * 0.49, rel=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_divides_the_logits(temperature: float):
    odds = torch.tensor([1.0, 2.0, 5.0])
    raw = torch.cat([odds.log(), torch.tensor([-10.0, 0.0, 10.0]), torch.full((3,), -5.0)]).expand(100_000, 9)
    drawn = NormalMixture(raw, 3).sample(temperature, generator()).div(10).round().long().squeeze(-1) + 1
    wanted = odds ** (1 / temperature) / (odds ** (1 / temperature)).sum()
    got = torch.bincount(drawn, minlength=3) / len(drawn)
    assert (got - wanted).abs().max() < 5 * 0.5 / math.sqrt(100_000)  # five standard errors


def test_without_temperature_the_heaviest_component_is_its_mean():
    raw = torch.randn(200, 4 * 3 * 5, generator=generator())
    mixture = NormalMixture(raw, 5)
    heaviest = mixture.means.gather(-1, mixture.log_weights.argmax(-1, keepdim=True)).squeeze(-1)
    torch.testing.assert_close(mixture.sample(1e-10, generator()), heaviest, rtol=1e-4, atol=1e-3)


def test_a_sample_is_differentiated_given_its_component():
    raw = torch.randn(50, 2 * 3 * 4, generator=generator()).requires_grad_()
    mixture = NormalMixture(raw, 4)
    sample = mixture.sample(1.3, generator(2))
    (gradient,) = torch.autograd.grad(sample.sum(), raw)
    logits, means, log_stds = gradient.unflatten(-1, (2, 3, 4)).unbind(-2)
    assert (logits == 0).all()
    assert torch.equal(means.sum(-1), torch.ones(50, 2)) and set(means.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(log_stds.sum(-1), sample - (means * mixture.means).sum(-1), rtol=1e-4, atol=1e-5)
    assert ((log_stds != 0) <= (means != 0)).all()


# ------------------------------------------------------------------------------------------------------------- V, KL


def with_posterior(model: VAERNN, mu: Tensor, log_variance: Tensor) -> None:
    """Make V see these statistics in every image."""
    nn.init.zeros_(model.vae.posterior.weight)
    model.vae.posterior.bias.data = torch.cat([mu, log_variance])


def test_below_the_tolerance_the_kl_is_constant_and_has_no_gradient(build: Build, make_batch: Build):
    model = build(kl_tolerance=0.5)
    with_posterior(model, torch.zeros(8), torch.zeros(8))
    losses = model.loss(make_batch())[1]
    assert losses.terms["kl"].item() == 0.5 * 8 and losses.metrics["posterior_kl"].item() == 0
    gradients = torch.autograd.grad(losses.terms["kl"], list(model.vae.posterior.parameters()))
    assert all((gradient == 0).all() for gradient in gradients)


def test_above_the_tolerance_the_kl_is_that_of_the_posterior(build: Build, make_batch: Build):
    mu, log_variance = torch.randn(8, generator=generator()), torch.randn(8, generator=generator(1))
    model = build(kl_tolerance=0.1)
    with_posterior(model, mu, log_variance)
    losses = model.loss(make_batch())[1]
    posterior = td.Normal(mu, (0.5 * log_variance).exp())
    wanted = td.kl_divergence(posterior, td.Normal(0, 1)).sum().item()
    assert wanted > 0.1 * 8
    assert losses.terms["kl"].item() == pytest.approx(wanted, rel=1e-5)
    assert losses.metrics["posterior_kl"].item() == pytest.approx(wanted, rel=1e-5)
    assert losses.metrics["posterior_entropy"].item() == pytest.approx(posterior.entropy().mean().item(), rel=1e-5)


def test_the_tolerance_is_of_each_image_by_itself(build: Build, make_batch: Build):
    model, batch = build(kl_tolerance=0.5), make_batch()
    with torch.no_grad():
        model.vae.posterior.weight *= 3
        mu, log_variance = model.vae(batch.obs.flatten(0, 1))
        kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).sum(-1)
    tolerance = kl.median().item()  # so that half of the images are below
    model.config = dataclasses.replace(model.config, kl_tolerance=tolerance / 8)
    wanted = kl.clamp_min(tolerance).mean().item()
    assert wanted > 1.01 * kl.mean().clamp_min(tolerance).item()
    assert model.loss(batch)[1].terms["kl"].item() == pytest.approx(wanted, rel=1e-5)


def test_z_is_a_sample_of_the_posterior_when_an_image_is_seen(build: Build):
    model = build()
    with_posterior(model, torch.linspace(-2, 2, 8), torch.linspace(-3, 1, 8))
    model.vae.encoder.forward = lambda image: torch.zeros(len(image), model.vae.encoder.size)
    count, first = 20_000, torch.zeros(20_000, dtype=torch.bool)
    obs = torch.zeros(1, 64, 64, 3, dtype=torch.uint8).expand(count, -1, -1, -1)
    z = model.observe(model.initial(count), torch.zeros(count, 3), obs, first, generator()).z
    torch.testing.assert_close(z.mean(0), torch.linspace(-2, 2, 8), atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(0), torch.linspace(-3, 1, 8).exp(), atol=0, rtol=0.06)


# ---------------------------------------------------------------------------------------------------- M, the timeline


def test_the_memory_is_torchs_lstm_with_its_forget_gates_opened_by_one():
    mine, reference = LSTM(5, 3, 7), nn.LSTMCell(8, 7)
    nn.init.normal_(mine.from_latent.bias)
    with torch.no_grad():
        reference.weight_ih.copy_(torch.cat([mine.from_latent.weight, mine.from_action.weight], 1))
        reference.weight_hh.copy_(mine.from_memory.weight)
        reference.bias_ih.copy_(mine.from_latent.bias)
        reference.bias_hh.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(7))
    z, action, h, c = (torch.randn(4, size, generator=generator(size)) for size in (5, 3, 7, 7))
    wanted = reference(torch.cat([z, action], -1), (h, c))
    for got, one in zip(mine(mine.inputs(z, action), h, c), wanted, strict=True):
        torch.testing.assert_close(got, one)


def slow_mdn(model: VAERNN, batch: Sequence, latent: VAERNNLatent) -> Tensor:
    """The term ``mdn`` step by step, by torch's own distributions."""
    found = []
    for b in range(len(batch.reward)):
        for t in range(1, batch.reward.shape[1]):
            if not batch.is_first[b, t]:
                start = VAERNNLatent(*(part[b : b + 1, t - 1] for part in latent))
                h = model.imagine(start, batch.action[b : b + 1, t - 1]).h
                found.append(-by_torch(model.rnn.predict(h)).log_prob(latent.z[b : b + 1, t]).mean())
    return torch.stack(found).mean()


def test_each_step_is_foretold_from_those_before_it_in_its_episode(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    latent, losses = model.loss(batch)
    torch.testing.assert_close(losses.terms["mdn"], slow_mdn(model, batch, latent))


def test_the_first_step_of_a_window_counts_where_what_came_before_is_known(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    batch = cut(batch, slice(2, 3))._replace(is_first=torch.zeros(3, 1, dtype=torch.bool))
    assert model.loss(batch)[1].terms["mdn"].item() == 0
    batch = batch._replace(context=model.pack(model.initial(3)._replace(z=torch.ones(3, 8))))
    latent, losses = model.loss(batch)
    wanted = -model.rnn.predict(latent.h).log_prob(latent.z).mean()
    assert wanted.abs() > 0.1
    torch.testing.assert_close(losses.terms["mdn"], wanted)
    assert model.loss(batch._replace(is_first=~batch.is_first))[1].terms["mdn"].item() == 0


def test_memory_begins_at_zero_and_knows_nothing_of_the_image_it_comes_with(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    latent = model.filter(batch, generator())
    assert batch.is_first.any() and (latent.h[batch.is_first] == 0).all() and (latent.c[batch.is_first] == 0).all()
    obs = batch.obs.clone()
    obs[:, 5] = 255 - obs[:, 5]
    other = model.filter(batch._replace(obs=obs), generator())
    assert torch.equal(other.h[:, :6], latent.h[:, :6]) and not torch.equal(other.h[:, 6], latent.h[:, 6])
    assert not torch.equal(other.z[:, 5], latent.z[:, 5])
    assert torch.equal(model.features(latent), torch.cat([latent.z, latent.h], -1))


def test_seeing_and_dreaming_share_the_memory(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    latent = VAERNNLatent(*(part[:, -1] for part in model.filter(batch)))
    seen = model.observe(latent, batch.action[:, -1], batch.obs[:, 0], torch.zeros(3, dtype=torch.bool))
    dreamt = model.imagine(latent, batch.action[:, -1])
    assert torch.equal(seen.h, dreamt.h) and torch.equal(seen.c, dreamt.c)


# ------------------------------------------------------------------------------------------------ who learns from what


def gradients(term: Tensor, module: nn.Module) -> list[Tensor | None]:
    return list(torch.autograd.grad(term, list(module.parameters()), allow_unused=True, retain_graph=True))


def test_v_and_m_learn_from_their_own_terms_alone(build: Build, make_batch: Build):
    model = build(kl_tolerance=0.0)
    terms = model.loss(make_batch())[1].terms
    assert terms.keys() == OF_V | OF_M
    for name, term in terms.items():
        own, other = (model.vae, model.rnn) if name in OF_V else (model.rnn, model.vae)
        assert all(gradient is None for gradient in gradients(term, other)), name
        assert any(gradient is not None and gradient.any() for gradient in gradients(term, own)), name
    parts = [parameter for part in (model.vae, model.rnn) for parameter in part.parameters()]
    assert list(map(id, parts)) == list(map(id, model.parameters()))


def test_together_they_get_the_gradients_of_one_after_the_other(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    torch.manual_seed(3)
    together = gradients(sum(model.loss(batch)[1].terms.values()), model.rnn)  # pyright: ignore
    torch.manual_seed(3)
    model.vae.requires_grad_(False)
    terms = model.loss(batch)[1].terms
    later = gradients(sum(terms[name] for name in OF_M), model.rnn)  # pyright: ignore
    for one, other in zip(together, later, strict=True):
        torch.testing.assert_close(one, other)


def test_an_end_counts_as_often_as_the_config_says(build: Build, make_batch: Build):
    batch = make_batch()
    batch = batch._replace(is_terminal=torch.rand(batch.reward.shape, generator=generator()) < 0.3)
    found = {}
    for weight in (1.0, 10.0):
        torch.manual_seed(3)
        latent, losses = build(end_weight=weight).loss(batch)
        found[weight] = losses.terms["continue"]
    model = build()
    each = model.rnn.continue_head(model.features(latent)).loss((~batch.is_terminal).float())
    torch.testing.assert_close(found[1.0], each.mean())
    torch.testing.assert_close(found[10.0], (each + 9 * each * batch.is_terminal).mean())


def test_while_v_stands_still_some_images_are_drawn_for_the_log(
    build: Build, make_batch: Build, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worldmodels.vae_rnn.WATCHED", 3)
    model, batch = build(), make_batch()
    torch.manual_seed(3)
    latent, losses = model.loss(batch)
    z, images = latent.z.flatten(0, 1), batch.obs.flatten(0, 1)
    torch.testing.assert_close(losses.terms["image"], model.vae.image_loss(z, images).mean())
    model.vae.requires_grad_(False)
    torch.manual_seed(3)
    still = model.loss(batch)[1].terms
    torch.testing.assert_close(still["image"], model.vae.image_loss(z[:3], images[:3]).mean())
    assert all(torch.equal(still[name], losses.terms[name]) for name in OF_M)


def test_other_actions_concern_one_tensor(build: Build, make_spaces: Build):
    model, spaces = build(), make_spaces()
    other = model.config.build(dataclasses.replace(spaces, action_dim=spaces.action_dim + 1)).state_dict()
    differ = [name for name, tensor in model.state_dict().items() if tensor.shape != other[name].shape]
    assert differ == ["rnn.lstm.from_action.weight"]


# --------------------------------------------------------------------------------------------------------- temperature


def test_dreams_have_the_temperature_of_the_config(build: Build, make_batch: Build):
    model, batch = build(temperature=1.4), make_batch()
    latent = VAERNNLatent(*(part[:, -1] for part in model.filter(batch)))
    dreamt = model.imagine(latent, batch.action[:, 0], generator(5))
    assert torch.equal(dreamt.z, model.rnn.predict(dreamt.h).sample(1.4, generator(5)))
    assert not torch.equal(dreamt.z, model.rnn.predict(dreamt.h).sample(1.0, generator(5)))


def test_a_tempered_model_is_the_same_networks_in_another_temperature(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    colder = model.tempered(1e-12)
    assert model.config.temperature == 1.0 and colder.config.temperature == 1e-12
    assert list(map(id, colder.parameters())) == list(map(id, model.parameters()))
    start = VAERNNLatent(*(part[:, -1] for part in model.filter(batch)))
    one, two = (colder.rollout(start, batch.action, generator(seed)) for seed in (1, 2))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)  # nothing is left to chance
    warm = [model.rollout(start, batch.action, generator(seed)).z for seed in (1, 2)]
    assert (warm[0] - warm[1]).abs().mean() > 0.1
    torch.manual_seed(3)
    terms = model.loss(batch)[1].terms
    torch.manual_seed(3)
    assert terms == colder.loss(batch)[1].terms  # what is learned has no temperature


def test_the_temperature_is_a_value_of_the_command_line(debug_run: Build):
    assert debug_run("none", "vae-rnn", "--world-model.temperature", "1.15").world_model.temperature == 1.15
    with pytest.raises(ConfigError, match="temperature.*must be more than 0, got 0"):
        debug_run("none", "vae-rnn", "--world-model.temperature", "0")


def test_a_config_with_impossible_values_is_refused(build: Build):
    config = build().config
    for field, value in (("latent", 0), ("memory", 0), ("mixtures", 0), ("kl_tolerance", -0.1), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"^{field} "):
            dataclasses.replace(config, **{field: value})
