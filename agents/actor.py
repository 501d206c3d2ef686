"""The policy network of actor-critic agents, features to a distribution over actions, and what those agents share."""

import math
from abc import ABC
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from agents.base import Agent, Carry
from worldmodels.base import Latent, Rewarded, Spaces, WorldModel
from worldmodels.distributions import (
    BoundedNormal,
    OneHot,
    SquashedNormal,
    TanhNormal,
    TruncatedNormal,
    random_normal,
    random_uniform,
)
from worldmodels.heads import HeadConfig
from worldmodels.layers import MLP, Activation, Norm

CONTINUOUS = {
    "bounded_normal": BoundedNormal,
    "squashed_normal": SquashedNormal,
    "tanh_normal": TanhNormal,
    "truncated_normal": TruncatedNormal,
}
Policy = OneHot | BoundedNormal | SquashedNormal | TanhNormal | TruncatedNormal


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    layers: int
    units: int
    norm: Norm
    activation: Activation
    output_scale: float
    continuous: Literal["bounded_normal", "squashed_normal", "tanh_normal", "truncated_normal"]
    unimix: float  # share of the uniform distribution in a discrete policy
    exploration_noise: float  # std of normal noise added when exploring (V1: 0.3); discrete: chance of a random action
    evaluation: Literal["mode", "sample"]  # how to act when not exploring


ENTROPIC = ("bounded_normal", "truncated_normal")


def require_entropy(config: ActorConfig) -> None:
    """For agents that need an entropy in closed form, which a normal squashed by tanh does not have."""
    if config.continuous not in ENTROPIC:
        raise ValueError(f"actor.continuous must be {' or '.join(ENTROPIC)} here: {config.continuous} has no entropy")


class Actor(nn.Module):
    """Features to a distribution over actions: one-hot when the task is discrete, else the configured one."""

    def __init__(self, features: int, spaces: Spaces, config: ActorConfig):
        super().__init__()
        self.config, self.spaces = config, spaces
        outputs = spaces.action_dim if spaces.discrete else 2 * spaces.action_dim
        self.mlp = MLP(
            features,
            config.units,
            config.layers,
            outputs,
            norm=config.norm,
            activation=config.activation,
            output_scale=config.output_scale,
        )

    def forward(self, features: Float[Tensor, "*B F"]) -> Policy:
        raw = self.mlp(features)
        if self.spaces.discrete:
            return OneHot(raw, self.config.unimix)
        return CONTINUOUS[self.config.continuous](raw)

    def act(
        self, features: Float[Tensor, "B F"], *, explore: bool, generator: Generator | None
    ) -> Float[Tensor, "B A"]:
        """An action for an environment: in [-1, 1] or one-hot."""
        policy = self(features)
        action = policy.sample(generator) if explore or self.config.evaluation == "sample" else policy.mode
        if explore and self.config.exploration_noise:
            action = add_noise(action, self.spaces.discrete, self.config.exploration_noise, generator)
        return action if self.spaces.discrete else action.clamp(-1, 1)


@runtime_checkable  # so that annotations can be checked in tests
class ActorCriticConfig(Protocol):
    """What the configs of actor-critic agents have in common."""

    @property
    def actor(self) -> ActorConfig: ...

    @property
    def critic(self) -> HeadConfig: ...


class ActorCritic(Agent, ABC):
    """What agents that learn an actor and a critic from features share: the two networks, and how to act."""

    needs = (Rewarded,)

    def __init__(self, config: ActorCriticConfig, model: WorldModel):
        super().__init__(model)
        self.actor = Actor(model.feature_dim, model.spaces, config.actor)
        self.critic = config.critic.build(model.feature_dim)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        return self.actor.act(model.features(latent), explore=explore, generator=generator), carry


def add_noise(
    action: Float[Tensor, "B A"], discrete: bool, amount: float, generator: Generator | None
) -> Float[Tensor, "B A"]:
    """Normal noise of std ``amount`` on continuous actions; a random action with chance ``amount`` on discrete ones."""
    if not discrete:
        return action + amount * random_normal(action.shape, action, generator)
    dice = random_uniform((len(action), 1), action, generator) < amount
    return torch.where(dice, random_actions(len(action), action.shape[-1], True, generator, action), action)


def random_log_prob(action_dim: int, discrete: bool) -> float:
    """Log density of ``random_actions`` on [-1, 1]^A, or log probability of each of A discrete ones."""
    return -math.log(action_dim) if discrete else -action_dim * math.log(2)


def random_actions(
    batch: int, action_dim: int, discrete: bool, generator: Generator | None, like: Tensor
) -> Float[Tensor, "B A"]:
    """Uniformly random actions on the device of ``like``."""
    if not discrete:
        return 2 * random_uniform((batch, action_dim), like, generator) - 1
    return F.one_hot(random_uniform((batch, action_dim), like, generator).argmax(-1), action_dim).float()
