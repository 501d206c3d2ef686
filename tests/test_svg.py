"""Stochastic value gradients: inferred noise, golden values, importance weights, and what stops a gradient."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from linear import GAMMA, ExactCritics, Gain, Linear, Point, earned, lived, made, slope, value, value_slope
from torch import Tensor, nn

from agents import svg
from agents.actor import random_log_prob
from agents.soft import Transitions, replayed_transitions
from agents.training.policies import AgentPolicy
from worldmodels.base import Spaces, map_latent
from worldmodels.distributions import OneHot, SquashedNormal
from worldmodels.latents import NOISE_LIMIT, Categorical, Gaussian

NOISE = [0.1, -0.2, 0.05, 0.0, 0.3]
STILL = [0.0] * 5


def agent_of(variant: str, k: float, std: float = 0.0) -> Any:
    return made(svg.SVG, svg.Config, k, std, variant=variant, importance_clip=5.0)


def climb(agent: Any, latent: Point, real: Transitions) -> Tensor:
    return agent.objective(Linear(), latent, real)[0]


def gradient(total: Tensor, agent: Any) -> float:
    (found,) = torch.autograd.grad(total, agent.actor.k)
    return found.item()


@pytest.fixture
def small(debug_run: Any) -> Any:
    """An SVG agent as configured and a small world model, nothing at zero."""

    def build(name: str = "svg", discrete: bool = False, world_model: str = "rssm-v3") -> tuple[Any, Any]:
        torch.manual_seed(1)
        model = debug_run("none", world_model).world_model.build(Spaces((64, 64, 3), 3, discrete))
        agent = debug_run(name, world_model).agent.build(model)
        for module in (model, agent):
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape)
        return model, agent

    return build


# ---------------------------------------------------------------------------------------------- inferred noise


def test_a_policy_takes_its_action_again() -> None:
    raw = (0.5 * torch.randn(50, 6)).requires_grad_()
    policy = SquashedNormal(raw)
    torch.manual_seed(4)
    action, log_prob = policy.sample_with_log_prob()
    again = policy.reenact(action.detach())
    assert torch.equal(again, action), "to the bit, whatever the inversion of tanh rounds to"
    weight = torch.randn(50, 3)
    sampled, reenacted = (torch.autograd.grad((x * weight).sum(), raw, retain_graph=True)[0] for x in (action, again))
    torch.testing.assert_close(reenacted, sampled, rtol=2e-3, atol=1e-4)
    assert (sampled != 0).all(), "mean and std"
    torch.testing.assert_close(policy.log_prob(action.detach()), log_prob.detach(), rtol=1e-3, atol=1e-3)


def test_the_ends_of_the_range_of_actions_are_finite() -> None:
    raw = torch.randn(4, 6, requires_grad=True)
    policy = SquashedNormal(raw)
    ends = torch.tensor([1.0, -1.0, 0.99999994]).expand(4, 3)
    total = policy.reenact(ends).sum() + policy.log_prob(ends).sum()
    total.backward()
    assert total.isfinite() and raw.grad is not None and raw.grad.isfinite().all()
    assert torch.equal(policy.reenact(ends), ends)


def test_discrete_actions_and_categorical_latents_are_straight_through() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    policy, action = OneHot(logits, 0.1), torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]
    again, weight = policy.reenact(action), torch.randn(5, 4)
    assert torch.equal(again, action)
    pair = (again, policy.log_probs.exp())
    found, expected = (torch.autograd.grad((x * weight).sum(), logits, retain_graph=True)[0] for x in pair)
    assert torch.equal(found, expected) and found.abs().sum() > 0
    kind = Categorical(type="categorical", variables=3, classes=4, unimix=0.01)
    stats = torch.randn(5, 12, requires_grad=True)
    observed = kind.sample(torch.randn(5, 12), None).detach()
    kept = kind.reenact(stats, observed)
    assert torch.equal(kept, observed) and torch.autograd.grad((kept * torch.randn(5, 12)).sum(), stats)[0].any()


def test_gaussian_noise_is_inferred_and_counts_as_at_most_its_limit() -> None:
    kind = Gaussian(type="gaussian", variables=1, min_std=0.1)
    for noise in (0.7, -2.0, 40.0):
        stats = torch.tensor([[0.3, -1.0]], requires_grad=True)
        mean, std = kind._mean_std(stats)
        observed = (mean + std * noise).detach()
        again = kind.reenact(stats, observed)
        assert torch.equal(again, observed)
        (found,) = torch.autograd.grad(again.sum(), stats)
        assert found[0, 0].item() == 1.0
        slope_of_std = torch.sigmoid(torch.tensor(-1.0)).item()  # of softplus
        assert found[0, 1].item() == pytest.approx(min(noise, NOISE_LIMIT) * slope_of_std, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        Gaussian(type="gaussian", variables=6, min_std=0.1),
        Categorical(type="categorical", variables=6, classes=5, unimix=0.05),
    ],
    ids=["gaussian", "categorical"],
)
def test_noise_is_one_on_average_where_the_prior_is_right_and_more_where_it_is_wrong(kind: Any) -> None:
    torch.manual_seed(2)
    stats = torch.randn(kind.stats_size).expand(20_000, -1)
    right = kind.noise(stats, kind.sample(stats, None)).mean().item()
    wrong = kind.noise(stats, kind.sample(torch.randn(kind.stats_size).expand(20_000, -1), None)).mean().item()
    assert right == pytest.approx(1.0, abs=0.05) and wrong > 1.2


@pytest.mark.parametrize("world_model", ["rssm-v1", "rssm-v3"])
def test_a_replayed_step_keeps_latent_and_reward_and_gets_a_gradient(
    small: Any, make_batch: Any, world_model: str
) -> None:
    model, agent = small("svg", False, world_model)
    batch = make_batch()
    with torch.no_grad():
        latent = model.filter(batch)
    real = replayed_transitions(model.features(latent), batch)
    now, observed = (map_latent(lambda part, s=s: part[:, s].flatten(0, 1), latent) for s in svg.STEPS)
    moved = model.reenact(now, agent.policy(real.features).reenact(real.action), observed)
    map_latent(lambda new, old: torch.equal(new, old) or pytest.fail("another value"), moved, observed)
    assert torch.equal(model.reward(moved), model.reward(observed))
    parameters = list(agent.actor.parameters())
    found = torch.autograd.grad((model.features(moved) * torch.randn(21, model.feature_dim)).sum(), parameters)
    assert all(g.abs().sum() > 0 for g in found), "every parameter of the actor"


# ------------------------------------------------------------------------------------------------ golden values


@pytest.mark.parametrize(
    ("x", "total", "in_gain", "in_start"),
    [(STILL, -2.0725551822, -2.4186847, -4.1451104), (NOISE, -2.0656373, -2.2393826, -4.1118378)],
    ids=["still", "pushed"],
)
def test_svg_inf_golden_values(double: None, x: list[float], total: float, in_gain: float, in_start: float) -> None:
    """s' = .9 s + .5 u + x, u = -.3 s, r = -(s^2 + .1 u^2), gamma .95, five steps from 1."""
    latent, real = lived(-0.3, x)
    latent = map_latent(torch.Tensor.requires_grad_, latent)
    agent = agent_of("svg-inf", -0.3)
    found = climb(agent, latent, real).sum()
    assert found.item() == pytest.approx(total, rel=1e-7)
    gain, start = torch.autograd.grad(found, [agent.actor.k, latent.s])
    assert gain.item() == pytest.approx(in_gain, rel=1e-7)
    assert start[0, 0, 0].item() == pytest.approx(in_start, rel=1e-7)
    assert not start[0, 1:].any(), "later states are what the first one led to"
    assert gain.item() == pytest.approx(slope(lambda k: earned(k, x), -0.3), rel=1e-7)
    assert start[0, 0, 0].item() == pytest.approx(slope(lambda s: earned(-0.3, x, start=s), 1.0), rel=1e-7)


def test_svg_inf_of_another_policys_episode_keeps_the_noise_that_it_infers(double: None) -> None:
    """Acted by k = -.5 with std .4, differentiated at k = -.2 with std .3: eta is what would have led there."""
    latent, real = lived(-0.5, NOISE, [1.0, -0.5, 0.3, -1.2, 0.8], 0.4)
    agent = agent_of("svg-inf", -0.2, 0.3)
    found = climb(agent, latent, real).sum()
    states, actions = latent.s[0, :-1, 0], real.action[:, 0]
    eta = ((actions + 0.2 * states) / 0.3).tolist()
    assert found.item() == pytest.approx(earned(-0.2, NOISE, eta, 0.3))
    gain, std = torch.autograd.grad(found, [agent.actor.k, agent.actor.std])
    assert gain.item() == pytest.approx(slope(lambda k: earned(k, NOISE, eta, 0.3), -0.2), rel=1e-6)
    assert std.item() == pytest.approx(slope(lambda s: earned(-0.2, NOISE, eta, s), 0.3), rel=1e-6)


def test_svg1_with_the_exact_value_is_svg_inf_step_by_step(double: None) -> None:
    """sum_t gamma^t d/dk one_step(t) = d/dk of the whole return = dP/dk s_0^2."""
    latent, real = lived(-0.3, [0.0] * 300)
    path, one = agent_of("svg-inf", -0.3), agent_of("svg1", -0.3)
    whole = climb(path, latent, real).sum()
    assert whole.item() == pytest.approx(value(-0.3), rel=1e-9)
    terms = climb(one, latent, real)
    discounts = GAMMA ** torch.arange(300.0)
    assert terms[0].item() == pytest.approx(value(-0.3)), "a reward and what follows it"
    expected = value_slope(-0.3)
    assert gradient(whole, path) == pytest.approx(expected, rel=1e-9)
    assert gradient((discounts * terms).sum(), one) == pytest.approx(expected, rel=1e-9)
    first = -2 * 0.1 * -0.3 + GAMMA * 2 * value(-0.3) * (0.9 + 0.5 * -0.3) * 0.5  # r_a + gamma V' f_a, times s = 1
    assert gradient(climb(one, latent, real)[0], one) == pytest.approx(first, rel=1e-9)


def test_svg0_without_noise_is_the_deterministic_policy_gradient(double: None) -> None:
    """dQ/da dtanh(mean)/dtheta; the difference goes with the std."""
    agent = agent_of("svg0", -0.3)
    features = torch.linspace(-1, 1, 9)[:, None]
    ones = torch.ones(9)
    errors = []
    for log_std in (-1.0, -2.5, -4.9):
        mean = nn.Linear(1, 1)
        mean.weight.data.fill_(-0.8), mean.bias.data.fill_(0.2)
        agent.actor = type("Squashed", (nn.Module,), {"forward": lambda self, f, m=mean, s=log_std: SquashedNormal(
            torch.cat([m(f), torch.full_like(f, s)], -1))})()  # fmt: skip
        torch.manual_seed(3)
        action = agent.actor(features).sample().detach()
        found = torch.autograd.grad(
            climb(agent, lived(0.0, STILL)[0], Transitions(features, action, ones, features, ones, ones)).sum(),
            [mean.weight, mean.bias],
        )
        chosen = torch.tanh(mean(features))
        expected = torch.autograd.grad(ExactCritics(-0.3)(features, chosen)[0].sum(), [mean.weight, mean.bias])
        errors.append(sum((f - e).abs().sum().item() for f, e in zip(found, expected, strict=True)))
    assert errors[0] > 5 * errors[2] and errors[0] > errors[1] > errors[2] and errors[2] < 0.05
    sure = Transitions(features, torch.tanh(mean(features)).detach(), ones, features, ones, ones)
    found = torch.autograd.grad(climb(agent, lived(0.0, STILL)[0], sure).sum(), [mean.weight, mean.bias])
    for f, e in zip(found, expected, strict=True):
        assert f.item() == pytest.approx(e.item(), rel=1e-9), "of the mean itself, exactly"


# ------------------------------------------------------------------------------------------ importance weights


def test_importance_golden_values() -> None:
    a = torch.tensor([0.5, 0.5, 0.5, 0.5])
    now = torch.distributions.Normal(0.4, 0.2).log_prob(a)
    then = torch.distributions.Normal(0.1, 0.3).log_prob(a)
    then[1], then[2], then[3] = now[1], math.nan, -40.0
    weight, metrics = svg.importance(now, then, 5.0)
    assert weight.tolist() == pytest.approx([3.2199119, 1.0, 1.0, 5.0])
    assert metrics["known"].item() == 0.75 and metrics["importance"].item() == pytest.approx((8.2199119 + 2) / 4)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_weights_are_one_while_the_policy_is_the_one_that_acted(small: Any, make_batch: Any, discrete: bool) -> None:
    model, agent = small("svg-0", discrete)
    batch = make_batch(discrete)
    with torch.no_grad():
        features = model.features(model.filter(batch))
        batch = batch._replace(log_prob=agent.log_prob(features.flatten(0, 1), batch.action.flatten(0, 1)).view(3, 8))
    real = replayed_transitions(features, batch)
    weight, metrics = agent.emphasis(real, batch)
    torch.testing.assert_close(weight, torch.ones(21))
    assert metrics["known"] == 1
    agent.actor.mlp.output.bias.data += torch.linspace(-0.5, 0.5, 3 if discrete else 6)
    moved, _ = agent.emphasis(real, batch)
    assert (moved - 1).abs().max() > 0.1 and not moved.requires_grad and (moved <= 5).all()
    expected = agent.policy(real.features).log_prob(real.action) - batch.log_prob[:, :-1].flatten()
    torch.testing.assert_close(moved, expected.exp().clamp(max=5.0).detach())


def test_weights_multiply_the_actors_loss_and_no_other(small: Any, make_batch: Any) -> None:
    model, agent = small("svg")
    batch = make_batch()
    with torch.no_grad():
        latent = model.filter(batch)
        now = agent.log_prob(model.features(latent).flatten(0, 1), batch.action.flatten(0, 1)).view(3, 8)

    def terms(log_prob: Tensor | None) -> dict[str, Tensor]:
        torch.manual_seed(6)
        return agent.loss(model, latent, batch._replace(log_prob=log_prob)).terms

    plain, double_, unknown = terms(now), terms(now - math.log(2.0)), terms(None)
    torch.testing.assert_close(double_["actor"], 2 * plain["actor"])
    torch.testing.assert_close(unknown["actor"], plain["actor"])
    assert torch.equal(double_["critic"], plain["critic"])
    assert torch.equal(double_["temperature"], plain["temperature"])


def test_low_precision_does_not_blur_weights(small: Any, make_batch: Any) -> None:
    model, agent = small("svg")
    batch, features = make_batch(), 3 * torch.randn(3, 8, model.feature_dim)
    with torch.no_grad():
        now = agent.log_prob(features.flatten(0, 1), batch.action.flatten(0, 1)).view(3, 8)
    batch = batch._replace(log_prob=now)
    with torch.autocast("cpu", torch.bfloat16):
        weight, _ = agent.emphasis(replayed_transitions(features, batch), batch)
        blurred = agent.log_prob(features.flatten(0, 1), batch.action.flatten(0, 1)).view(3, 8)
    assert not torch.allclose(blurred, now, atol=1e-3)
    torch.testing.assert_close(weight, torch.ones(21))


def test_a_collecting_policy_knows_how_likely_its_actions_were(small: Any) -> None:
    model, agent = small("svg")
    policy = AgentPolicy(model, agent, 2, explore=True, seed=0)
    image = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8).numpy()
    latent = policy.observe(image, torch.ones(2, dtype=torch.bool).numpy())
    action = policy.act()
    features = model.features(latent)
    normal = agent.actor(features)
    reference = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(normal.mean, normal.log_std.exp()), torch.distributions.TanhTransform()
    )
    found = policy.log_prob(features, random=False)
    torch.testing.assert_close(found, reference.log_prob(action).sum(-1), rtol=1e-3, atol=1e-3)
    policy.act_randomly()
    assert policy.log_prob(features, random=True).tolist() == pytest.approx([-3 * math.log(2)] * 2)
    assert random_log_prob(4, True) == pytest.approx(math.log(0.25))
    for name in ("svg-inf", "sac"):
        model, agent = small(name)
        policy = AgentPolicy(model, agent, 2, explore=True, seed=0)
        assert policy.log_prob(features, random=True) is None, "what is not asked for is not kept"


# ------------------------------------------------------------------------------------- what stops a gradient


def test_after_the_end_only_the_reward_counts(double: None) -> None:
    latent, real = lived(-0.3, NOISE)
    agent = agent_of("svg1", -0.3)
    ended = real._replace(live=torch.zeros(5))
    terms = climb(agent, latent, ended)
    assert terms.tolist() == pytest.approx(real.reward.tolist())
    states = latent.s[0, :-1, 0]
    expected = (-2 * 0.1 * real.action[:, 0] * states).sum().item()  # r_a pi_theta
    assert gradient(terms.sum(), agent) == pytest.approx(expected, rel=1e-9)
    path = agent_of("svg-inf", -0.3)
    early = real._replace(live=torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]))
    assert climb(path, latent, early).sum().item() == pytest.approx(earned(-0.3, NOISE[:2]))
    assert gradient(climb(path, latent, early).sum(), path) == pytest.approx(
        slope(lambda k: earned(k, NOISE[:2]), -0.3)
    )


def test_an_episode_that_begins_inside_a_window_begins_a_path(double: None) -> None:
    one, other = lived(-0.3, NOISE), lived(-0.3, [0.2, 0.1], start=0.4)
    latent = map_latent(lambda a, b: torch.cat([a, b], 1), one[0], other[0])
    gap = Transitions(
        one[0].s[0, -1:], torch.ones(1, 1), torch.zeros(1), other[0].s[0, :1], torch.ones(1), torch.zeros(1)
    )
    real = Transitions(*(torch.cat(parts) for parts in zip(one[1], gap, other[1], strict=True)))
    agent = agent_of("svg-inf", -0.3)
    joined = (real.weight * climb(agent, latent, real)).sum()
    apart = climb(agent, *one).sum() + climb(agent, *other).sum()
    assert joined.item() == pytest.approx(apart.item())
    assert gradient(joined, agent) == pytest.approx(gradient(apart, agent))


@pytest.mark.parametrize("name", ["svg", "svg-0", "svg-inf"])
def test_a_world_model_that_learns_nothing_gives_the_same_gradient(small: Any, make_batch: Any, name: str) -> None:
    model, agent = small(name)
    batch, found = make_batch(), []
    with torch.no_grad():
        latent = model.filter(batch)
    for trainable in (True, False):
        model.requires_grad_(trainable)
        torch.manual_seed(8)
        term = agent.loss(model, latent, batch).terms["actor"]
        found.append(torch.autograd.grad(term, list(agent.actor.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and any(g.any() for g in found[0])


def test_svg1_holds_the_policy_after_the_step(double: None) -> None:
    """V(s') is a function of s' alone: a policy that acts there is not made to climb it twice."""
    latent, real = lived(-0.3, NOISE)
    agent = agent_of("svg1", -0.3)
    agent.critics = type("Ask", (nn.Module,), {"members": 2, "forward": lambda self, f, a: (
        (100 * a[..., 0]).expand(2, *f.shape[:-1]))})()  # fmt: skip
    # d/dk of V(s') = 100 k s' is 100 k ds'/dk, without the 100 s' of a policy that moves
    states = latent.s[0, :-1, 0]
    reward = -2 * 0.1 * real.action[:, 0] * states
    expected = (reward + GAMMA * 100 * -0.3 * 0.5 * states).sum().item()
    assert gradient(climb(agent, latent, real).sum(), agent) == pytest.approx(expected, rel=1e-9)
    assert agent.actor.k.requires_grad


def test_what_has_no_density_is_refused(small: Any) -> None:
    _, agent = small("svg")
    with pytest.raises(ValueError, match="exploration_noise must be 0"):
        dataclasses.replace(agent.config, actor=dataclasses.replace(agent.config.actor, exploration_noise=0.1))
    with pytest.raises(ValueError, match="importance_clip"):
        dataclasses.replace(agent.config, importance_clip=0.0)
    assert isinstance(Gain(0.1)(torch.ones(2, 1)), SquashedNormal)
