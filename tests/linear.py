"""A linear world with quadratic costs, what a linear policy earns in it in closed form, and agents that live there.

    s' = a s + b u + x,   r = -(s^2 + c u^2),   u = k s + std * eta

The discounted return of the deterministic policy is V(s) = P s^2 with P = -(1 + c k^2) / (1 - gamma (a + b k)^2).
Everything is scalar and float64 (fixture ``double``).
"""

import math
from typing import Any, NamedTuple

import torch
from small import soft_config
from torch import Generator, Tensor, nn

from agents.soft import Transitions
from worldmodels.base import Reparameterised, Rewarded, Spaces, WorldModel
from worldmodels.distributions import SquashedNormal, straight_through

A, B, C, GAMMA = 0.9, 0.5, 0.1, 0.95


class Point(NamedTuple):
    s: Tensor  # [*B, 1]
    reward: Tensor  # [*B, 1], of the step that led here


class Linear(WorldModel, Rewarded, Reparameterised):
    """See above; x is what an observed step had, and 0 in imagination."""

    def __init__(self, a: float = A, b: float = B):
        super().__init__()
        self.spaces, self.feature_dim = Spaces((64, 64, 3), 1, False), 1
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))

    def imagine(self, latent: Point, action: Tensor, generator: Generator | None = None) -> Point:
        return Point(self.a * latent.s + self.b * action, -(latent.s**2 + C * action**2))

    def reenact(self, latent: Point, action: Tensor, observed: Point) -> Point:
        moved = self.imagine(latent, action)
        return Point(*(straight_through(seen.detach(), new) for seen, new in zip(observed, moved, strict=True)))

    def features(self, latent: Point) -> Tensor:
        return latent.s

    def reward(self, latent: Point) -> Tensor:
        return latent.reward[..., 0]

    def continues(self, latent: Point) -> Tensor:
        return torch.ones_like(latent.reward[..., 0])

    def unused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not a matter of gradients")

    initial = observe = loss = filter = rollout = unused


class Normal(SquashedNormal):
    """A policy without the squash, so that its actions are linear in its mean; no price of entropy is paid here."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    def sample_with_log_prob(self, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.mean + self.std * torch.randn_like(self.mean), torch.zeros_like(self.mean[..., 0])

    def log_prob(self, action: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean, self.std).log_prob(action).sum(-1)

    def reenact(self, action: Tensor) -> Tensor:
        noise = ((action - self.mean) / self.std).detach() if self.std > 0 else torch.zeros_like(action)
        return straight_through(action, self.mean + self.std * noise)


class Gain(nn.Module):
    """u = k s + std * eta."""

    def __init__(self, k: float, std: float = 0.0):
        super().__init__()
        self.k, self.std = nn.Parameter(torch.tensor(k)), nn.Parameter(torch.tensor(std))

    def forward(self, features: Tensor) -> Normal:
        return Normal(self.k * features, self.std)


class ExactCritics(nn.Module):
    """Q(s, u) of the policy u = k s ever after; no parameter, so a derivative in the actor's k passes it by."""

    def __init__(self, k: float, members: int = 2):
        super().__init__()
        self.p, self.members = value(k), members

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        s, u = features[..., 0], action[..., 0]
        q = -(s**2 + C * u**2) + GAMMA * self.p * (A * s + B * u) ** 2
        return q.expand(self.members, *q.shape)


def value(k: Any) -> Any:
    """P of V(s) = P s^2."""
    return -(1 + C * k**2) / (1 - GAMMA * (A + B * k) ** 2)


def value_slope(k: float) -> float:
    """dP / dk."""
    below, closed = 1 - GAMMA * (A + B * k) ** 2, A + B * k
    return -(2 * C * k * below + (1 + C * k**2) * 2 * GAMMA * closed * B) / below**2


def riccati() -> tuple[float, float]:
    """The best gain and its P, by iterating the Riccati equation."""
    p = -1.0
    for _ in range(1000):
        k = -GAMMA * p * A * B / (GAMMA * p * B**2 - C)
        p = -(1 + C * k**2) + GAMMA * p * (A + B * k) ** 2
    return k, p


def made(kind: Any, config: Any, k: float, std: float = 0.0, **changes: Any) -> Any:
    """An agent of a linear policy with exact critics, whose entropy costs nothing."""
    agent = kind(soft_config(config, discount=GAMMA, **changes), Linear())
    agent.actor, agent.critics = Gain(k, std), ExactCritics(k)
    agent.target_critics = agent.critics
    agent.temperature.log.data.fill_(-math.inf)
    return agent


def lived(k: float, x: list[float], eta: list[float] | None = None, std: float = 0.0, start: float = 1.0) -> Any:
    """Latents ``[1, T + 1]`` of an episode and its T transitions, without gradients."""
    s, states, actions, rewards = start, [start], [], [0.0]
    for noise, push in zip(eta or [0.0] * len(x), x, strict=True):
        u = k * s + std * noise
        rewards.append(-(s**2 + C * u**2))
        s = A * s + B * u + push
        actions.append(u)
        states.append(s)
    s_, r_, u_ = (torch.tensor(part) for part in (states, rewards, actions))
    ones = torch.ones(len(x))
    transitions = Transitions(s_[:-1, None], u_[:, None], r_[1:], s_[1:, None], ones, ones)
    return Point(s_[None, :, None], r_[None, :, None]), transitions


def earned(k: float, x: list[float], eta: list[float] | None = None, std: float = 0.0, start: float = 1.0) -> float:
    """sum_t gamma^t r_t of such an episode."""
    rewards = lived(k, x, eta, std, start)[1].reward
    return sum(GAMMA**t * r for t, r in enumerate(rewards.tolist()))


def slope(function: Any, at: float, step: float = 1e-5) -> float:
    """The central difference of a function of one number."""
    return (function(at + step) - function(at - step)) / (2 * step)
