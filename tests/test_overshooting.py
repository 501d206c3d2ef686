"""Latent overshooting (PlaNet, Eq. 7) against a slow double loop, and who learns from it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.training.cli import parse
from agents.training.learner import weighted
from worldmodels.base import Sequence
from worldmodels.rssm import RSSM, RSSMLatent

EXTRA = {"overshooting", "overshooting_reward"}
Build = Callable[..., Any]


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """An RSSM with overshooting, its weights large enough for the KL to be well above 0."""

    def made(name: str = "rssm-planet", **changes: Any) -> RSSM:
        config = debug_run("dreamer", name).world_model
        config = dataclasses.replace(config, **({"overshooting": 50, "free_nats": 0.0, "bits": 8} | changes))
        torch.manual_seed(0)
        model = config.build(make_spaces())
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    return made


def losses(model: RSSM, batch: Sequence) -> tuple[RSSMLatent, dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(5)
    latent, (terms, metrics) = model.loss(batch)
    return latent, terms, metrics


def part_of(batch: Sequence, steps: slice) -> Sequence:
    return batch._replace(**{name: part[:, steps] for name, part in zip(batch._fields[:6], batch[:6], strict=True)})


def posterior_stats(model: RSSM, latent: RSSMLatent, batch: Sequence) -> Tensor:
    size = batch.is_first.shape
    seen = model.posterior.from_obs(model.encoder(batch.obs.flatten(0, 1)))
    return model.posterior(latent.deter.flatten(0, 1), seen).unflatten(0, size)


def every_pair(model: RSSM, latent: RSSMLatent, batch: Sequence) -> dict[int, list[tuple[int, int, Tensor]]]:
    """By distance d >= 2: element, step and KL(posterior || d-step prior) of each pair inside one episode."""
    stats, length = posterior_stats(model, latent, batch), batch.is_first.shape[1]
    found: dict[int, list[tuple[int, int, Tensor]]] = {}
    for b in range(len(batch.is_first)):
        for start in range(length):
            here = RSSMLatent(*(part[b : b + 1, start] for part in latent))
            for d in range(1, length - start):
                t = start + d
                if batch.is_first[b, t]:
                    break
                here = model.imagine(here, batch.action[b : b + 1, t - 1])
                if 2 <= d <= model.config.overshooting:
                    kl = model.latent.kl(stats[b, t], model.prior(here.deter)[0])
                    found.setdefault(d, []).append((b, t, kl))
    return found


@pytest.mark.parametrize("name", ["rssm-planet", "rssm-v1", "rssm-v2", "rssm-v3"])
@pytest.mark.parametrize("distance", [2, 4, 50])
def test_the_loss_is_that_of_a_double_loop_over_starts_and_distances(
    name: str, distance: int, build: Build, make_batch: Build, constant_noise: None
):
    free = 1.0
    model, batch = build(name, overshooting=distance, free_nats=free), make_batch(length=7)
    latent, terms, metrics = losses(model, batch)
    pairs = every_pair(model, latent, batch)
    assert set(pairs) == set(range(2, min(distance, 6) + 1))
    by_distance = [torch.stack([kl for _, _, kl in pairs[d]]) for d in sorted(pairs)]
    assert max(kl.max() for kl in by_distance) > free > min(kl.min() for kl in by_distance)
    plain = torch.stack([kl.mean() for kl in by_distance]).mean()
    torch.testing.assert_close(metrics["overshooting_kl"], plain, rtol=1e-4, atol=1e-5)
    if model.config.free_nats_after_mean:
        floored = torch.stack([kl.mean().clamp_min(free) for kl in by_distance]).mean()
    else:
        floored = torch.stack([kl.clamp_min(free).mean() for kl in by_distance]).mean()
    torch.testing.assert_close(terms["overshooting"], floored, rtol=1e-4, atol=1e-5)
    reward = model.reward_head(model.features(latent)).loss(batch.reward)
    every = sum(reward[b, t] for found in pairs.values() for b, t, _ in found)
    expected = every / (reward.numel() * len(pairs))
    torch.testing.assert_close(terms["overshooting_reward"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", [0, 1])
def test_up_to_distance_one_it_is_the_standard_loss_exactly(distance: int, build: Build, make_batch: Build):
    batch = make_batch()
    _, off, off_metrics = losses(build(overshooting=distance), batch)
    _, on, on_metrics = losses(build(overshooting=2), batch)
    assert on.keys() - off.keys() == EXTRA and on_metrics.keys() - off_metrics.keys() == {"overshooting_kl"}
    assert all(torch.equal(off[name], on[name]) for name in off)
    assert all(torch.equal(off_metrics[name], on_metrics[name]) for name in off_metrics)


def test_no_pair_reaches_over_the_beginning_of_an_episode(build: Build, make_batch: Build, constant_noise: None):
    """Two episodes in a window teach what they teach as windows of their own, weighed by their pairs."""
    model, batch = build(overshooting=2), make_batch(size=2, length=8)
    flags = torch.zeros(2, 8, dtype=torch.bool)
    flags[:, 4] = flags[:, 0] = True
    batch = batch._replace(is_first=flags)
    windows = [part_of(batch, slice(4)), part_of(batch, slice(4, 8))]
    whole, *parts = (losses(model, one)[1]["overshooting"] for one in (batch, *windows))
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2)
    other = batch._replace(action=batch.action.clone())
    other.action[:, 3] *= -1  # what is done at the last step of an episode leads nowhere
    torch.testing.assert_close(losses(model, other)[1]["overshooting"], whole)


def test_where_episodes_are_short_a_distance_without_pairs_does_not_count(build: Build, make_batch: Build):
    model, batch = build(free_nats=3.0), make_batch(size=2)
    batch = batch._replace(is_first=torch.arange(8).expand(2, 8) % 3 == 0)  # three steps: distance 2 and no other
    far, near = (losses(m, batch)[1]["overshooting"] for m in (model, build(free_nats=3.0, overshooting=2)))
    torch.testing.assert_close(far, near)
    alone = losses(model, batch._replace(is_first=torch.ones(2, 8, dtype=torch.bool)))[1]
    assert alone["overshooting"].item() == alone["overshooting_reward"].item() == 0.0


def touched(term: Tensor, module: nn.Module) -> bool:
    found = torch.autograd.grad(term, list(module.parameters()), allow_unused=True, retain_graph=True)
    return any(g is not None and bool((g != 0).any()) for g in found)


def test_the_posterior_learns_nothing_as_a_target_and_something_as_a_start(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    latent, stats, _ = model._scan(batch, None)
    fixed = RSSMLatent(*(part.detach() for part in latent))
    for start, teaches in ((fixed, False), (latent, True)):
        kls = model._open_loop_kl(batch, start, stats, model.prior(start.deter))
        total = torch.stack([(kl * pair).sum() for kl, pair in kls]).sum()
        assert touched(total, model.prior) and touched(total, model.cell)
        assert touched(total, model.posterior) == touched(total, model.encoder) == teaches


def test_the_further_rewards_teach_the_reward_head_alone(build: Build, make_batch: Build):
    model = build()
    term = losses(model, make_batch())[1]["overshooting_reward"]
    reached = {name for name, child in model.named_children() if list(child.parameters()) and touched(term, child)}
    assert reached == {"reward_head"}


def test_a_window_too_short_for_any_distance_is_refused(build: Build, make_batch: Build):
    batch = make_batch()
    short = part_of(batch, slice(2))
    with pytest.raises(ValueError, match="at least 3 steps, not 2"):
        build().loss(short)
    build(overshooting=1).loss(short)


@pytest.mark.parametrize("name", ["rssm-planet", "rssm-v3"])
def test_the_global_prior_is_a_unit_normal_or_uniform(name: str, build: Build, make_batch: Build):
    model = build(name, global_prior=True, overshooting=0)
    stats = model._scan(make_batch(), None)[1]
    term = model.latent.kl(stats, model._standard_stats(stats))
    if name == "rssm-planet":
        mean, std = stats.chunk(2, -1)
        q = torch.distributions.Normal(mean, nn.functional.softplus(std) + 0.1)
        expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    else:  # against the uniform distribution a KL is what entropy lacks
        variables, classes = model.latent.variables, model.latent.classes
        expected = variables * torch.log(torch.tensor(float(classes))) - model.latent.entropy(stats)
    torch.testing.assert_close(term, expected, rtol=1e-4, atol=1e-5)
    _, terms, _ = losses(model, make_batch())
    assert terms["global_prior"] > 0 and touched(terms["global_prior"], model.posterior)
    assert not touched(terms["global_prior"], model.prior)


def test_the_preset_is_the_papers_first_version_and_every_term_has_its_scale(make_spaces: Build, make_batch: Build):
    words = ("--agent", "none", "--world-model", "rssm-planet", "--task", "toy:reach")
    full = parse([*words, "--preset", "overshooting"]).config.world_model
    assert (full.overshooting, full.free_nats, full.global_prior, full.bits) == (50, 2.0, True, 5)
    assert {name: full.scales[name] for name in (*EXTRA, "global_prior", "dyn", "rep", "reward")} == {
        "overshooting": 1.0, "overshooting_reward": 100.0, "global_prior": 0.1, "dyn": 1.0, "rep": 1.0, "reward": 10.0
    }  # fmt: skip
    small = parse([*words, "--preset", "overshooting,debug"]).config.world_model
    model = small.build(make_spaces())
    total = weighted(model.loss(make_batch())[1], small.scales, "world model")
    total.backward()
    assert total.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert weighted(model.loss(make_batch())[1], small.scales, "world model").isfinite()
