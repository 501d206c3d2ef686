"""Soft actor-critic on latents: transitions, values and losses against hand-made and slow references."""

import math
from typing import Any

import pytest
import torch
from small import soft_config
from torch import Tensor
from torch import distributions as td

from agents import sac
from agents.soft import lowest, replayed_transitions
from worldmodels.base import Sequence, Spaces
from worldmodels.distributions import SquashedNormal
from worldmodels.rssm import RSSM

DISCOUNT = 0.9


@pytest.fixture
def agent(debug_run: Any) -> Any:
    """A SAC agent on a small RSSM; few weights, none at zero."""

    def made(discrete: bool = False) -> tuple[RSSM, sac.SAC]:
        model = debug_run("none", "rssm-v3").world_model.build(Spaces((64, 64, 3), 3, discrete))
        config = soft_config(sac.Config, discount=DISCOUNT, layers=1, target_rate=0.25)
        torch.manual_seed(3)
        built = config.build(model)
        for parameter in built.target_critics.parameters():
            parameter.data += 0.1
        return model, built

    return made


def test_squashed_normal_agrees_with_torch() -> None:
    raw = torch.randn(200, 6) * torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0, 4.0])
    policy = SquashedNormal(raw)
    action, log_prob = policy.sample_with_log_prob(torch.Generator().manual_seed(0))
    mean, std = raw[:, :3].double(), raw[:, 3:].clamp(-5, 2).exp().double()
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).double()
    reference = td.TransformedDistribution(td.Normal(mean, std), td.TanhTransform(cache_size=1))
    x = reference.transforms[0](mean + std * noise)
    assert torch.allclose(action.double(), x, atol=1e-5)
    expected = reference.log_prob(x).sum(-1)
    sound = expected.isfinite() & (x.abs() < 1 - 1e-7).all(-1)
    assert sound.float().mean() > 0.5 and torch.allclose(log_prob.double()[sound], expected[sound], atol=1e-3)
    assert log_prob.isfinite().all(), "also where tanh saturates"
    assert torch.equal(policy.mode, torch.tanh(raw[:, :3]))


def test_transitions_go_where_the_timeline_says(make_batch: Any) -> None:
    batch: Sequence = make_batch()
    features = torch.arange(24.0).view(3, 8, 1)
    real = replayed_transitions(features.requires_grad_(), batch)
    assert not real.features.requires_grad
    assert torch.equal(real.next_features, real.features + 1)
    assert torch.equal(real.reward.view(3, 7), batch.reward[:, 1:]), "a reward arrives with what follows"
    assert torch.equal(real.action.view(3, 7, 3), batch.action[:, :-1])
    # of the first stream step 3 ends an episode by time, of the second step 2 by death
    nothing = (real.weight.view(3, 7) == 0).nonzero().tolist()
    assert nothing == [[0, 3], [1, 2]], "no step leads from one episode into the next"
    assert (real.live.view(3, 7) == 0).nonzero().tolist() == [[1, 1]], "a time limit is not an end"


def test_the_target_is_the_papers(agent: Any, make_batch: Any) -> None:
    for discrete in (True, False):
        model, learner = agent(discrete)
        batch = make_batch(discrete)
        latent = model.filter(batch)
        real = replayed_transitions(model.features(latent), batch)
        torch.manual_seed(1)
        with torch.no_grad():
            target = learner.lessons(model, latent, real).target
        torch.manual_seed(1)
        policy = learner.actor(real.next_features)
        expected = torch.zeros_like(target)
        if discrete:
            probs = policy.log_probs.exp()
            for a in range(3):
                one_hot = torch.eye(3)[a].expand(len(target), 3)
                q = learner.target_critics(real.next_features, one_hot).min(0).values
                expected = expected + probs[:, a] * (q - 0.5 * policy.log_probs[:, a])
        else:
            action, log_prob = policy.sample_with_log_prob()
            expected = learner.target_critics(real.next_features, action).min(0).values - 0.5 * log_prob
        assert torch.allclose(target, real.reward + DISCOUNT * real.live * expected, atol=1e-5)
        dead = (real.live == 0).nonzero()[0]
        assert torch.equal(target[dead], real.reward[dead])


def test_losses_by_hand(agent: Any, make_batch: Any) -> None:
    model, learner = agent(discrete=True)
    batch = make_batch(True)
    latent = model.filter(batch)
    losses = learner.loss(model, latent, batch)
    real = replayed_transitions(model.features(latent), batch)
    with torch.no_grad():
        target = learner.lessons(model, latent, real).target
        q = learner.critics(real.features, real.action)
        log_probs = learner.actor(real.features).log_probs
        each = torch.stack([lowest(learner.critics(real.features, torch.eye(3)[a].expand(21, 3))) for a in range(3)], 1)
    kept = real.weight.bool()
    assert kept.sum() == 19
    critic = 0.5 * (q - target).square().sum(0)[kept].mean()
    actor = (log_probs.exp() * (0.5 * log_probs - each)).sum(1)[kept].mean()
    entropy = -(log_probs.exp() * log_probs).sum(1)[kept].mean()
    temperature = math.log(0.5) * (entropy - 0.5 * math.log(3))
    for name, expected in (("critic", critic), ("actor", actor), ("temperature", temperature)):
        assert losses.terms[name].item() == pytest.approx(float(expected), rel=1e-4), name


def reached(term: Tensor, module: torch.nn.Module) -> bool:
    gradients = torch.autograd.grad(term, list(module.parameters()), allow_unused=True, retain_graph=True)
    return any(g is not None and bool(g.abs().sum() > 0) for g in gradients)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_each_loss_teaches_its_own_part(agent: Any, make_batch: Any, discrete: bool) -> None:
    model, learner = agent(discrete)
    batch = make_batch(discrete)
    latent, _ = model.loss(batch)
    terms = learner.loss(model, latent, batch).terms
    parts = {"critic": learner.critics, "actor": learner.actor, "temperature": learner.temperature}
    for name, term in terms.items():
        assert [other for other, part in parts.items() if reached(term, part)] == [name]
        assert not reached(term, model)
    assert all(not p.requires_grad for p in learner.target_critics.parameters())


def test_target_critics_follow_slowly(agent: Any) -> None:
    _, learner = agent()
    before = [p.clone() for p in learner.target_critics.parameters()]
    learner.after_update(1)
    for old, new, source in zip(before, learner.target_critics.parameters(), learner.critics.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * source)


def test_members_of_the_critics_are_not_alike(agent: Any) -> None:
    _, learner = agent()
    values = learner.critics(torch.randn(5, learner.critics.network.layers[0].weight.shape[1] - 3), torch.zeros(5, 3))
    assert values.shape == (2, 5) and (values[0] - values[1]).abs().min() > 1e-4


def test_the_policy_must_have_a_density_for_samples(agent: Any) -> None:
    _, learner = agent()
    import dataclasses

    with pytest.raises(ValueError, match="squashed_normal"):
        actor = dataclasses.replace(learner.soft.actor, continuous="bounded_normal")
        dataclasses.replace(learner.soft, actor=actor)
