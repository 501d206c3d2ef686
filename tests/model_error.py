"""A model that is wrong in one region of its latent space, and what STEVE and M2AC make of it.

A point moves in a plane by its action. K Gaussian members predict its next place almost alike, but where the point is
in a region some members' means get noise, drawn anew at each prediction. ``results/model-error/make.py`` draws what the
functions here measure, and tests ask for its properties.
"""

from typing import Any, NamedTuple

import torch
from small import soft_config
from torch import Generator, Tensor, nn

from agents import m2ac, steve
from agents.branching import Schedule
from agents.returns import horizon_weights
from agents.soft import Transitions
from worldmodels.base import Ensembled, Rewarded, Spaces, WorldModel
from worldmodels.latents import Gaussian

MEMBERS, HORIZON, SPREAD = 5, 3, 0.05
SOFT = {"discount": 0.9, "temperature": 1e-6}  # of the agents' configs, where entropy is of no matter
REGION = 0.5  # the point is in the region where its first coordinate is above this; places are in [-1, 1]


class Place(NamedTuple):
    x: Tensor  # [*B, 2]


class Plane(WorldModel, Rewarded, Ensembled):
    """``x' = x + a / 20``, std ``SPREAD``; each member adds a constant, and a wrong one noise in the region."""

    def __init__(self, noise: float, wrong: int, members: int = MEMBERS):
        super().__init__()
        self.spaces, self.feature_dim, self.num_members, self.num_rewards = Spaces((64, 64, 3), 2, False), 2, members, 1
        self.noise, self.wrong = noise, (torch.arange(members) < wrong).float()
        self.offset = 0.01 * torch.randn(members, 2, generator=Generator().manual_seed(1))
        self.predictions = Gaussian(type="gaussian", variables=2, min_std=0.0).members()

    def predict(self, x: Tensor, action: Tensor) -> Tensor:
        def each(part: Tensor) -> Tensor:
            return part.view(self.num_members, *[1] * (x.ndim - 2), -1)

        noise = self.noise * each(self.wrong) * inside(x)[..., None] * torch.randn_like(x)
        mean = x + action / 20 + each(self.offset) + noise
        return torch.cat([mean, torch.full_like(mean, SPREAD).square().log()], -1)

    def member_stats(self, latent: Place, action: Tensor) -> Tensor:
        return self.predict(*(part.expand(self.num_members, *part.shape) for part in (latent.x, action)))

    def imagine_members(self, latent: Place, action: Tensor, generator: Generator | None = None) -> Place:
        return Place(self.predictions.sample(self.predict(latent.x, action), generator))

    def member_moments(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictions.moments(stats)

    def member_log_prob(self, stats: Tensor, latent: Place) -> Tensor:
        return self.predictions.log_prob(stats, latent.x)

    def one_vs_rest(self, stats: Tensor) -> Tensor:
        return self.predictions.one_vs_rest(stats)

    def features(self, latent: Place) -> Tensor:
        return latent.x

    def reward(self, latent: Place) -> Tensor:
        return 0.4 * latent.x.sum(-1)

    def reward_members(self, latent: Place) -> Tensor:
        return self.reward(latent)[None]

    def continues(self, latent: Place) -> Tensor:
        return torch.ones_like(latent.x[..., 0])

    def unused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not a matter of model error")

    initial = observe = loss = filter = rollout = imagine = imagine_mean = match_moments = disagreement = unused


class Values(nn.Module):
    """Members' values of places, as steep everywhere and the same for every action; they differ by constants."""

    members = 2

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        value = 2 * features.sum(-1)
        return torch.stack([value - 0.2, value + 0.2])


def inside(x: Tensor) -> Tensor:
    return x[..., 0] > REGION


def m2ac_config(length: int, **changes: Any) -> m2ac.Config:
    values: dict[str, Any] = dict(
        rollout=Schedule(begin=0, end=1, first=length, last=length),
        real_ratio=0.05, kept=0.25, penalty=1e-3, mode="non-stop",
    )  # fmt: skip
    return soft_config(m2ac.Config, **(SOFT | values | changes))


def standing(count: int) -> tuple[Place, Transitions]:
    """A posterior ``[N, 2]`` of points anywhere in the plane that stand still, and its transitions."""
    x = 2 * torch.rand(count, 2) - 1
    ones = torch.ones(count)
    return Place(torch.stack([x, x], 1)), Transitions(x, torch.zeros(count, 2), ones, x, ones, ones)


@torch.no_grad()
def steve_weights(noise: float, seed: int, count: int = 2000, wrong: int = 1) -> tuple[float, float]:
    """Mean weight of all imagined horizons of points that are inside the region, and of those outside of it."""
    torch.manual_seed(seed)
    model = Plane(noise, wrong)
    agent = soft_config(steve.Config, **SOFT, horizon=HORIZON, reduction="inverse_variance", lam=0.0).build(model)
    agent.target_critics = Values()
    latent, real = standing(count)
    samples = agent.candidates(model, latent, real).flatten(1, -2)
    weight = horizon_weights(samples, "inverse_variance", 0.0)[1:].sum(0)
    return by_region(weight, real.next_features)


@torch.no_grad()
def m2ac_shares(noise: float, seed: int, count: int = 2000, wrong: int = MEMBERS) -> tuple[float, float]:
    """The share of imagined transitions that count of those that begin inside the region, and of those outside."""
    torch.manual_seed(seed)
    model = Plane(noise, wrong)
    agent = m2ac_config(HORIZON).build(model)
    latent, real = standing(count)
    lessons = agent.lessons(model, latent, real)
    return by_region((lessons.weight[0, count:] > 0).float(), lessons.features[count:])


def by_region(numbers: Tensor, x: Tensor) -> tuple[float, float]:
    return numbers[inside(x)].mean().item(), numbers[~inside(x)].mean().item()
