"""Gradients through a model against closed forms: a linear world, quadratic costs, a linear policy (``linear.py``).

The exact gradient of a policy's return is dP/dk, the best policy is Riccati's, and there every gradient vanishes.
"""

import math
from typing import Any

import pytest
import torch
from linear import GAMMA, A, B, C, ExactCritics, Linear, Point, earned, lived, made, riccati, slope, value, value_slope
from torch import Tensor, nn

from agents import maac, sac, svg
from agents.base import frozen
from agents.soft import Transitions

GAINS = (-1.2, -0.3, 0.05)


def stochastic(variant: str, k: float) -> Any:
    return made(svg.SVG, svg.Config, k, variant=variant, importance_clip=5.0)


def augmented(k: float, horizon: int, actions: int = 1, std: float = 0.0) -> Any:
    return made(maac.MAAC, maac.Config, k, std, horizon=horizon, terminal_actions=actions, step_clip=0.0)


def climb(agent: Any, latent: Point, real: Transitions) -> Tensor:
    """What the actor climbs, at every transition."""
    return agent.objective(Linear(), latent, real)[0]


def in_gain(total: Tensor, agent: Any) -> float:
    return torch.autograd.grad(total, agent.actor.k)[0].item()


def test_the_closed_forms_are_right(double: None) -> None:
    """The return of a long episode, its slope, and a Riccati solution that solves its equation and is a maximum."""
    for k in GAINS:
        rewards = lived(k, [0.0] * 400, start=2.0)[1].reward
        total = (GAMMA ** torch.arange(400.0) * rewards).sum().item()
        assert value(k) * 4 == pytest.approx(total, rel=1e-9)
        assert value_slope(k) == pytest.approx(slope(value, k), rel=1e-7)
    best, p = riccati()
    assert p == pytest.approx(-1 + GAMMA * A**2 * p - (GAMMA * A * B * p) ** 2 / (GAMMA * B**2 * p - C), rel=1e-12)
    assert value(best) == pytest.approx(p) and all(value(k) < p for k in (*GAINS, best - 0.1, best + 0.1))
    assert value_slope(best) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("k", GAINS)
def test_svg_inf_has_the_gradient_of_the_closed_form(double: None, k: float) -> None:
    latent, real = lived(k, [0.0] * 400, start=1.5)
    agent = stochastic("svg-inf", k)
    total = climb(agent, latent, real).sum()
    assert total.item() == pytest.approx(value(k) * 1.5**2, rel=1e-9)
    gain = in_gain(total, agent)
    assert gain == pytest.approx(value_slope(k) * 1.5**2, rel=1e-9)
    assert gain == pytest.approx(slope(lambda g: earned(g, [0.0] * 400, start=1.5), k), rel=1e-6)


@pytest.mark.parametrize("k", GAINS)
def test_svg1_and_svg0_sum_to_the_gradient_of_the_closed_form(double: None, k: float) -> None:
    """The policy gradient theorem: sum_t gamma^t dQ/da dpi/dk at the policy's own states; by r and V, or by Q."""
    latent, real = lived(k, [0.0] * 400, start=1.5)
    discounts = GAMMA ** torch.arange(400.0)
    for variant in ("svg1", "svg0"):
        agent = stochastic(variant, k)
        terms = climb(agent, latent, real)
        assert terms[0].item() == pytest.approx(value(k) * 1.5**2, rel=1e-9)
        assert in_gain((discounts * terms).sum(), agent) == pytest.approx(value_slope(k) * 1.5**2, rel=1e-9)


@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("k", GAINS)
def test_maac_has_the_gradient_of_its_horizon(double: None, k: float, horizon: int) -> None:
    """J_H(k): H steps of k, then Q of the old gain for an action of k; by differences and by closed form."""
    latent, real = lived(k, [0.0, 0.0], start=1.5)
    agent = augmented(k, horizon)
    found = climb(agent, latent, real)
    states = latent.s[0, :2, 0]
    torch.testing.assert_close(found, value(k) * states**2)

    def total(gain: float) -> float:
        s, weight, earned = 1.5, 1.0, 0.0
        for _ in range(horizon):
            earned, s, weight = earned - weight * (1 + C * gain**2) * s**2, (A + B * gain) * s, weight * GAMMA
        last = ExactCritics(k)(torch.tensor([s]), torch.tensor([gain * s]))[0]
        return earned + weight * last.item()

    closed = A + B * k
    advantage = 2 * (-C * k + GAMMA * value(k) * closed * B)  # dQ/da at a = k s, divided by s
    expected = sum(GAMMA**t * advantage * (closed**t * 1.5) ** 2 for t in range(horizon + 1))
    gain = in_gain(found[0], agent)
    assert gain == pytest.approx(slope(total, k), rel=1e-6)
    assert gain == pytest.approx(expected, rel=1e-9)


def test_the_longer_the_horizon_the_nearer_maac_is_to_the_exact_gradient(double: None) -> None:
    latent, real = lived(-0.3, [0.0, 0.0])
    exact = value_slope(-0.3)
    agents = [augmented(-0.3, horizon) for horizon in (0, 1, 3, 9, 40)]
    errors = [abs(in_gain(climb(agent, latent, real)[0], agent) - exact) for agent in agents]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6 < errors[0]


def test_all_gradients_vanish_at_the_riccati_solution(double: None) -> None:
    """With the exact values, and with noise of the world that is its own mirror image: the steps of x and of -x."""
    best, _ = riccati()
    x = [0.4, -0.7, 0.2, 0.0, 0.5]
    agents = [stochastic("svg1", best), stochastic("svg0", best), *(augmented(best, h) for h in (1, 4))]
    for agent in agents:
        total = torch.zeros(())
        latent, real = lived(best, x)
        mirrored = real.next_features - 2 * torch.tensor(x)[:, None]
        for after in (real.next_features, mirrored):  # from the same states, with the same actions
            rewards = torch.stack([torch.zeros(5), real.reward], 1)[..., None]
            pairs = Point(torch.stack([real.features, after], 1), rewards)
            total = total + climb(agent, pairs, real._replace(next_features=after)).sum()
        assert in_gain(total, agent) == pytest.approx(0.0, abs=1e-9)
    path = stochastic("svg-inf", best)
    assert in_gain(climb(path, *lived(best, [0.0] * 400)).sum(), path) == pytest.approx(0.0, abs=1e-9)


def test_climbing_reaches_the_riccati_solution(double: None) -> None:
    """Each step with the exact values of the gain that acted: policy iteration by gradients."""
    best, _ = riccati()
    for make in (lambda k: stochastic("svg1", k), lambda k: stochastic("svg0", k), lambda k: augmented(k, 3)):
        k = -0.2
        for _ in range(120):
            agent = make(k)
            k += 0.1 * in_gain(climb(agent, *lived(k, [0.0] * 3)).sum(), agent)
        assert k == pytest.approx(best, abs=1e-4)


# ------------------------------------------------------------------------------------------------- MAAC's own


def test_without_a_horizon_maac_has_the_gradient_of_sac(double: None) -> None:
    latent, real = lived(-0.3, [0.1, -0.2])
    agent, plain = augmented(-0.3, 0), made(sac.SAC, sac.Config, -0.3)
    expected = in_gain(climb(plain, latent, real).sum(), plain)
    assert in_gain(climb(agent, latent, real).sum(), agent) == expected != 0


class Ending(Linear):
    """The first imagined step is the last."""

    def continues(self, latent: Point) -> Tensor:
        return torch.zeros_like(latent.reward[..., 0])


def test_nothing_after_an_imagined_end_has_value_or_a_gradient(double: None) -> None:
    latent, real = lived(-0.3, [0.1, -0.2])
    for horizon in (1, 4):
        agent = augmented(-0.3, horizon)
        found = agent.objective(Ending(), latent, real)[0]
        states = real.features[:, 0]
        torch.testing.assert_close(found, -(1 + C * 0.3**2) * states**2)  # the reward of the step that ended it counts
        assert in_gain(found.sum(), agent) == pytest.approx((2 * C * 0.3 * states**2).sum().item())


class Steep(nn.Module):
    """Q = exp(2 u), so that the gradient at a random action is random."""

    members = 2

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return (2 * action[..., 0]).exp().expand(2, *features.shape[:-1])


def test_more_terminal_actions_make_the_gradient_less_random(double: None) -> None:
    """The mean over n: a variance of 1 / n, where the last action is all that is random."""
    latent, real = lived(-0.3, [0.1, -0.2])
    spread = {}
    for actions in (1, 5):
        agent = augmented(-0.3, 1, actions, std=0.3)
        agent.critics = Steep()
        torch.manual_seed(0)
        model = Linear(b=0.0)  # the first action leads nowhere else
        found = [in_gain(agent.objective(model, latent, real)[0][1], agent) for _ in range(400)]
        spread[actions] = torch.tensor(found).var().item()
    assert spread[5] / spread[1] == pytest.approx(1 / 5, abs=0.1)


def test_the_models_own_parameters_get_no_gradient(double: None) -> None:
    latent, real = lived(-0.3, [0.1, -0.2])
    model = Linear()
    for agent in (augmented(-0.3, 3), stochastic("svg1", -0.3), stochastic("svg-inf", -0.3)):
        with frozen(model):
            found = agent.objective(model, latent, real)[0].sum()
        reached = torch.autograd.grad(found, [agent.actor.k, model.a, model.b], allow_unused=True)
        assert reached[0] is not None and reached[1:] == (None, None) and math.isfinite(reached[0])
        assert model.a.requires_grad
