"""The ensemble: its members one by one, its bootstrap, what disagreement means, and that the RSSM never notices."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical as Choice
from torch.distributions import Normal, kl_divergence

from worldmodels.base import Ensembled, map_latent
from worldmodels.ensemble import EnsembleRSSM, bootstrap_weights
from worldmodels.latents import Categorical, Gaussian, bounded_log_variance
from worldmodels.layers import MemberMLP
from worldmodels.pretrained import Card, Part, Saved, Training
from worldmodels.strict import to_dict
from worldmodels.transfer import RECIPES, load_weights

Build = Callable[..., Any]
NAMES = ("ensemble-v1", "ensemble-v3")
KINDS = (Gaussian(type="gaussian", variables=3, min_std=0.1),
         Categorical(type="categorical", variables=3, classes=4, unimix=0.01))  # fmt: skip
each_model = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """A model of three members by name, with no weight at zero."""

    def made(name: str, **members: Any) -> EnsembleRSSM:
        config = debug_run("none", name).world_model
        config = dataclasses.replace(config, members=dataclasses.replace(config.members, num=3, **members))
        torch.manual_seed(0)
        model = config.build(make_spaces())
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        return model

    return made


def start(model: EnsembleRSSM, batch: Any, *leading: int) -> tuple[Any, Tensor]:
    """Latents with these leading dimensions, and actions."""
    number = math.prod(leading)
    latent = map_latent(lambda x: x.detach().flatten(0, 1)[:number].unflatten(0, leading), model.filter(batch))
    return latent, batch.action.flatten(0, 1)[:number].unflatten(0, leading)


# -------------------------------------------------------------------------------------------------- predictions


def test_log_variance_is_held_between_its_bounds():
    """PETS's squash, computed apart; slightly above the upper bound by design."""
    raw = torch.tensor([-50.0, -10.0, 0.0, 0.5, 3.0, 50.0])
    expected = torch.tensor([-10.0, -9.3069, -0.47400, -0.19309, 0.42114, 0.500028])
    bounded = bounded_log_variance(raw, torch.tensor(-10.0), torch.tensor(0.5))
    torch.testing.assert_close(bounded, expected, atol=6e-5, rtol=0)


def test_gaussian_members_begin_within_the_bounds_of_pets(build: Build):
    bounds = build("ensemble-v1").config.build(build("ensemble-v1").spaces).members.bounds
    assert bounds.tolist() == [[-10.0] * 8, [0.5] * 8]


def test_kl_of_normals_is_that_of_torch():
    kind, stats, posterior = KINDS[0], torch.randn(4, 5, 6), torch.randn(5, 6)
    mean, log_variance = stats.chunk(2, -1)
    p = Normal(posterior[..., :3], nn.functional.softplus(posterior[..., 3:]) + 0.1)
    expected = kl_divergence(p, Normal(mean, (0.5 * log_variance).exp())).sum(-1)
    torch.testing.assert_close(kind.members().kl(posterior, stats), expected)


def test_kl_of_categories_is_that_of_torch():
    kind, stats, posterior = KINDS[1], torch.randn(4, 5, 12), torch.randn(5, 12)

    def choice(stats: Tensor) -> Choice:
        logits = stats.unflatten(-1, (4, 3)).transpose(-1, -2)
        return Choice(0.99 * logits.softmax(-1) + 0.01 / 4)

    expected = kl_divergence(choice(posterior), choice(stats)).sum(-1)
    torch.testing.assert_close(kind.members().kl(posterior, stats), expected)


def test_one_vs_rest_of_normals_golden_values():
    """M2AC: means 0, 0, 3 and unit variance. Far from zero, and for a dimension of equal members, all the same."""
    for offset in (0.0, 100.0):
        mean = torch.tensor([0.0, 0.0, 3.0])[:, None, None] + offset
        stats = torch.cat([mean, torch.full_like(mean, 7.0), torch.zeros(3, 1, 2)], -1)
        divergence = Gaussian(type="gaussian", variables=2, min_std=0.1).members().one_vs_rest(stats)
        torch.testing.assert_close(divergence[:, 0], torch.tensor([0.5893275, 0.5893275, 4.5]), rtol=1e-4, atol=1e-4)


def test_one_vs_rest_of_categories_is_the_kl_from_their_mixture():
    kind, stats = KINDS[1], torch.randn(3, 5, 12)
    p = kind._log_probs(stats).exp().transpose(-1, -2)
    found = kind.members().one_vs_rest(stats)
    for k in range(3):
        rest = torch.stack([p[j] for j in range(3) if j != k]).mean(0)
        torch.testing.assert_close(found[k], kl_divergence(Choice(p[k]), Choice(rest)).sum(-1))


@each_kind
def test_equal_members_do_not_disagree(kind: Any):
    members, stats = kind.members(), torch.randn(1, 5, kind.stats_size).expand(4, -1, -1)
    nothing = torch.zeros(5)
    torch.testing.assert_close(members.disagreement(stats), nothing, atol=1e-6, rtol=0)
    torch.testing.assert_close(members.one_vs_rest(stats), nothing.expand(4, 5), atol=1e-5, rtol=0)


def test_disagreement_golden_values():
    """Means -1 and 1 have variance 1; two members sure of two classes have log 2 nats for each variable."""
    mean = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 1, 3)
    stats = torch.cat([mean, torch.randn(2, 1, 3)], -1)
    torch.testing.assert_close(KINDS[0].members().disagreement(stats), torch.ones(1))
    kind = Categorical(type="categorical", variables=3, classes=4, unimix=0.0)
    sure = torch.zeros(2, 1, 4, 3)
    sure[0, :, 1], sure[1, :, 2] = 200.0, 200.0
    torch.testing.assert_close(kind.members().disagreement(sure.flatten(-2)), torch.tensor([3 * math.log(2)]))


@each_kind
def test_redrawn_particles_have_the_moments_of_the_old(kind: Any):
    g, particles = torch.Generator().manual_seed(1), 4000
    stats = torch.randn(2, 1, kind.stats_size).expand(-1, particles // 2, -1)
    old = kind.members().sample(stats, g).flatten(0, 1)
    new = kind.members().redraw(old[:, None], g)[:, 0]
    assert new.shape == old.shape and not torch.equal(new, old)
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(new.std(0), old.std(0), atol=0.1, rtol=0)
    if kind.type == "categorical":
        assert (new.unflatten(-1, (4, 3)).sum(-2) == 1).all() and set(new.unique().tolist()) == {0.0, 1.0}
    alone = old[:1].expand(5, -1)
    torch.testing.assert_close(kind.members().redraw(alone, g), alone)


# ------------------------------------------------------------------------------------------------------ members


@pytest.mark.parametrize("norm", ["rms", "layer", "none"])
def test_batched_networks_are_single_ones(norm: Any):
    network = MemberMLP(3, 5, 6, 2, 4, norm=norm, activation="silu")
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    x = torch.randn(3, 7, 5)
    found = network(x)
    for k in range(3):
        y = x[k]
        for layer, own in zip(network.layers, network.norms, strict=True):
            y = y @ layer.weight[k] + layer.bias[k]
            if norm == "rms":
                y = y * (y.square().mean(-1, keepdim=True) + 1e-4).rsqrt() * own.weight[k]
            if norm == "layer":
                y = nn.functional.layer_norm(y, (6,), own.weight[k, 0], own.bias[k, 0], 1e-3)
            y = nn.functional.silu(y)
        torch.testing.assert_close(found[k], y @ network.output.weight[k] + network.output.bias[k])


@each_model
def test_members_move_their_groups_as_each_would_alone(name: str, build: Build, make_batch: Build):
    """The same memory as the RSSM's own step, and of the next latents a sample with the noise that was drawn."""
    model = build(name)
    latent, action = start(model, make_batch(), 3, 2, 4)
    moved = model.imagine_members(latent, action, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    stats = torch.stack([model.member_stats(map_latent(lambda x, k=k: x[k], latent), action[k])[k] for k in range(3)])
    torch.testing.assert_close(moved.stoch, model.predictions.sample(stats, generator))
    for k in range(3):
        one = map_latent(lambda x, k=k: x[k].flatten(0, 1), latent)
        plain = model.imagine(one, action[k].flatten(0, 1))
        torch.testing.assert_close(moved.deter[k].flatten(0, 1), plain.deter)


@each_model
def test_a_group_depends_on_its_member_alone(name: str, build: Build, make_batch: Build):
    model = build(name)
    latent, action = start(model, make_batch(), 3, 5)
    latent = map_latent(lambda x: x.requires_grad_(), latent)
    action = action.clone().requires_grad_()
    weights = list(model.members.network.parameters())
    moved = model.imagine_members(latent, action)
    wanted = (moved.stoch[1] * torch.randn(5, model.rssm.latent.size)).sum()
    for gradient in torch.autograd.grad(wanted, [action, *latent, *weights]):
        touched = gradient.flatten(1).abs().sum(-1) > 0
        assert touched.tolist() == [False, True, False]


@each_model
def test_the_mean_step_is_deterministic_and_the_mean_of_the_members(name: str, build: Build, make_batch: Build):
    model = build(name)
    latent, action = start(model, make_batch(), 6)
    moved = model.imagine_mean(latent, action)
    many = map_latent(lambda x: x.expand(3, 4000, *x.shape), latent)
    samples = model.imagine_members(many, action.expand(3, 4000, *action.shape)).stoch
    torch.testing.assert_close(moved.stoch, samples.mean((0, 1)), atol=0.05, rtol=0)
    torch.testing.assert_close(moved.stoch, model.imagine_mean(latent, action, torch.Generator()).stoch)
    assert model.features(moved).shape == (6, model.feature_dim)


@each_model
def test_uncertainty_has_the_shapes_of_the_capability(name: str, build: Build, make_batch: Build):
    model = build(name)
    assert isinstance(model, Ensembled) and model.num_members == 3
    latent, action = start(model, make_batch(), 2, 4)
    stats = model.member_stats(latent, action)
    assert stats.shape == (3, 2, 4, model.rssm.latent.stats_size)
    assert model.one_vs_rest(stats).shape == (3, 2, 4) and (model.one_vs_rest(stats) > 0).all()
    mean, std = model.member_moments(stats)
    assert mean.shape == std.shape == (3, *latent.stoch.shape) and (std >= 0).all()
    assert model.member_log_prob(stats, latent).shape == (3, 2, 4)
    disagreement = model.disagreement(latent, action)
    assert disagreement.shape == (2, 4) and (disagreement > 0).all()
    redrawn = model.match_moments(latent, torch.Generator())
    assert redrawn.deter.shape == latent.deter.shape and redrawn.stoch.shape == latent.stoch.shape


# -------------------------------------------------------------------------------------------- loss and bootstrap


@each_model
def test_the_rssm_learns_what_it_learns_without_members(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    torch.manual_seed(5)
    _, (terms, metrics) = model.loss(batch)
    torch.manual_seed(5)
    _, alone = model.rssm.loss(batch)
    own_terms = model.config.scales.keys() - model.rssm.config.scales
    assert terms.keys() - alone.terms == own_terms
    torch.testing.assert_close({key: terms[key] for key in alone.terms}, alone.terms, rtol=0, atol=0)
    assert metrics.keys() - alone.metrics == {"member_spread"}
    for term in own_terms:
        own = torch.autograd.grad(terms[term], list(model.rssm.parameters()), allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in own), term


def test_bootstrap_weights_are_poisson():
    weights = bootstrap_weights(4, torch.arange(20000))
    assert weights.shape == (4, 20000)
    for k in range(4):
        assert weights[k].mean().item() == pytest.approx(1, abs=0.03)
        assert weights[k].var().item() == pytest.approx(1, abs=0.06)
        for n, share in enumerate((0.3679, 0.3679, 0.1839, 0.0613)):
            assert (weights[k] == n).float().mean().item() == pytest.approx(share, abs=0.015)
    correlation = torch.corrcoef(torch.cat([weights[:, 1:], weights[:, :-1]]))  # members, and neighbouring blocks
    assert (correlation - torch.eye(8)).abs().max() < 0.03


def test_bootstrap_weights_are_the_same_forever():
    """Saved runs go on with them; another hash would change every member's share of the experience."""
    blocks = torch.tensor([0, 1, 2, 3, 1000, 2**31 + 7])
    assert bootstrap_weights(3, blocks).tolist() == [
        [0.0, 2.0, 2.0, 2.0, 1.0, 0.0],
        [0.0, 0.0, 3.0, 0.0, 4.0, 3.0],
        [1.0, 2.0, 2.0, 3.0, 2.0, 0.0],
    ]
    assert torch.equal(bootstrap_weights(3, blocks.flip(0)).flip(1), bootstrap_weights(5, blocks)[:3])


@each_model
def test_a_block_has_one_weight_for_each_member(name: str, build: Build, make_batch: Build):
    batch = make_batch()
    batch = batch._replace(step=batch.step + 3996)
    weight = build(name, bootstrap_block=8)._weight(batch, 3)
    assert torch.equal(weight, bootstrap_weights(3, batch.step.flatten() // 8))
    assert torch.equal(weight[:, 4:12], weight[:, 4:5].expand(3, 8))
    assert torch.equal(build(name, bootstrap_block=0)._weight(batch._replace(step=None), 3), torch.ones(3, 24))


@each_model
def test_the_members_term_is_the_weighted_kl_summed_over_members(name: str, build: Build, make_batch: Build):
    batch = make_batch()
    model = build(name, bootstrap_block=8)
    torch.manual_seed(5)
    latent, (terms, _) = model.loss(batch)
    torch.manual_seed(5)
    _, stats, _ = model.rssm.learn(batch)
    predicted = model.members(latent.deter.flatten(0, 1).expand(3, -1, -1))
    kl = model.predictions.kl(stats.flatten(0, 1), predicted)
    weight = bootstrap_weights(3, torch.arange(24) // 8)
    assert not (weight == 1).all()
    torch.testing.assert_close(terms["members"], (weight * kl).sum() / 24)


@each_model
def test_a_bootstrap_without_steps_is_refused(name: str, build: Build, make_batch: Build):
    with pytest.raises(ValueError, match="Sequence.step") as error:
        build(name).loss(make_batch()._replace(step=None))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_members_are_added_to_a_saved_rssm(recipe: str, debug_run: Build, make_spaces: Build):
    """The tensors of an RSSM are those of the part ``rssm``, which a recipe fills as it would an RSSM."""
    alone, config = debug_run("none", "rssm-v3"), debug_run("none", "ensemble-v3").world_model
    assert config.rssm == alone.world_model
    part = Part(name="rssm-v3", type="rssm", config=to_dict(alone.world_model))
    plain, model = (c.build(make_spaces()) for c in (alone.world_model, config))
    card = Card(
        format=1, world_model=part, agent=None, spaces=make_spaces(), task=alone.task, env=alone.env, fingerprint={},
        versions={}, training=Training(env_steps=0, updates=0, returns={}),
    )  # fmt: skip
    members = {name: tensor.clone() for name, tensor in model.members.state_dict().items()}
    saved = Saved("here", card, plain.state_dict())
    report = load_weights(model, saved, recipe, alone.transfer, "rssm")
    assert [row.tensor for row in report.rows] == list(model.state_dict()), "every tensor once, nothing skipped"
    assert {row.why for row in report.rows if not row.tensor.startswith("rssm.")} == {"not in rssm-v3"}
    alike = load_weights(alone.world_model.build(make_spaces()), saved, recipe, alone.transfer)
    assert report.names("loaded") == [f"rssm.{name}" for name in alike.names("loaded")] != []
    for name, tensor in model.state_dict().items():
        where, _, rest = name.partition(".")
        if where == "members":
            assert torch.equal(tensor, members[rest])
        elif name in report.names("loaded"):
            assert torch.equal(tensor, plain.state_dict()[rest])


@pytest.mark.parametrize(("name", "inside"), [("ensemble-v1", "rssm-v3"), ("ensemble-v3", "rssm-v1")])
def test_either_ensemble_learns_around_either_latent(
    name: str, inside: str, debug_run: Build, make_spaces: Build, make_batch: Build
):
    config = dataclasses.replace(debug_run("none", name).world_model, rssm=debug_run("none", inside).world_model)
    terms = config.build(make_spaces()).loss(make_batch())[1].terms
    assert terms.keys() == config.scales.keys() and ("bounds" in terms) == (inside == "rssm-v1")


def test_the_bounds_term_is_the_distance_between_them(build: Build, make_batch: Build):
    model = build("ensemble-v1")
    term = model.loss(make_batch())[1].terms["bounds"]
    low, high = model.members.bounds
    torch.testing.assert_close(term, high.sum() - low.sum())


@pytest.mark.parametrize(("field", "value"), [("num", 1), ("bootstrap_block", -1)])
def test_impossible_ensembles_are_refused(build: Build, field: str, value: int):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        dataclasses.replace(build("ensemble-v3").config.members, **{field: value})


# -------------------------------------------------------------------------------------------------- disagreement


@each_model
def test_collapse_shows_in_the_spread(name: str, build: Build, make_batch: Build):
    """Members that begin alike stay alike without a bootstrap, and part with one."""
    batch, spread = make_batch(), {}
    for block in (0, 8):
        model = build(name, bootstrap_block=block)
        for parameter in model.members.network.parameters():
            parameter.data.copy_(parameter.data[:1].expand_as(parameter))
        optimizer = torch.optim.Adam(model.members.parameters(), 1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            _, (terms, metrics) = model.loss(batch)
            terms["members"].backward()
            optimizer.step()
        spread[block] = metrics["member_spread"].item()
    assert spread[0] == pytest.approx(0, abs=1e-6)
    assert spread[8] > 1e-4


@each_kind
def test_members_disagree_where_nothing_was_seen(kind: Any):
    """A memory of one number in [-1, 1] and 2; what follows is a function of it. Members: as in a model."""
    torch.manual_seed(0)
    network = MemberMLP(5, 1, 32, 2, kind.stats_size, norm="none", activation="silu")
    optimizer, members = torch.optim.Adam(network.parameters(), 1e-2), kind.members()
    seen = torch.rand(400, 1) * 2 - 1
    direction = torch.linspace(1, 3, kind.stats_size)

    def posterior(x: Tensor) -> Tensor:
        return 2 * torch.sin(direction * x)

    weight = bootstrap_weights(5, torch.arange(400) // 10)
    for _ in range(150):
        optimizer.zero_grad()
        (weight * members.kl(posterior(seen), network(seen.expand(5, -1, -1)))).sum(0).mean().backward()
        optimizer.step()
    with torch.no_grad():
        known, unknown = (
            members.disagreement(network(x.expand(5, -1, -1))) for x in (seen, torch.linspace(2.5, 4, 50)[:, None])
        )
    assert (unknown > known.quantile(0.95)).float().mean() > 0.95


# ------------------------------------------------------------------------------------------------------ rewards


def test_without_reward_members_the_rssm_speaks_for_all(build: Build, make_batch: Any):
    model = build("ensemble-v1")
    latent, _ = start(model, make_batch(model.spaces), 3, 2)
    assert model.num_rewards == 1 and torch.equal(model.reward_members(latent)[0], model.reward(latent))
    assert not [name for name in model.state_dict() if name.startswith("reward_heads")]


def test_each_reward_member_is_a_head_like_the_rssms(build: Build, make_batch: Any):
    model = build("ensemble-v3", rewards=3)
    latent, _ = start(model, make_batch(model.spaces), 3, 2)
    found, alone = model.reward_members(latent), copy.deepcopy(model.rssm.reward_head)
    assert found.shape == (3, 3, 2)
    for k in range(3):
        own = {name: tensor[k] for name, tensor in model.reward_heads.state_dict().items()}
        own = {n: (t.T if n.endswith("weight") and t.ndim == 2 and "norms" not in n else t) for n, t in own.items()}
        alone.load_state_dict({name: tensor.view_as(alone.state_dict()[name]) for name, tensor in own.items()})
        torch.testing.assert_close(found[k], alone(model.features(latent)).mean, rtol=1e-4, atol=1e-4)


def test_reward_members_learn_from_their_own_resamples_and_the_rssm_never_notices(build: Build, make_batch: Any):
    model = build("ensemble-v3", rewards=3, bootstrap_block=4)
    batch = make_batch(model.spaces)
    batch = batch._replace(step=torch.arange(batch.reward.numel()).view(batch.reward.shape))
    torch.manual_seed(0)
    latent, losses = model.loss(batch)
    heads = model.reward_heads(model.features(latent).detach().flatten(0, 1))
    weight = bootstrap_weights(3, batch.step.flatten() // 4)
    expected = (weight * heads.loss(batch.reward.flatten().expand(3, -1))).mean(1).sum()
    torch.testing.assert_close(losses.terms["member_rewards"], expected)
    losses.terms["member_rewards"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.rssm.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.reward_heads.parameters())
    with pytest.raises(ValueError, match="rewards must be at least 0"):
        dataclasses.replace(model.config.members, rewards=-1)
