"""Soft actor-critic on a world model's features: what agents share that learn Q from transitions, real or imagined.

Papers: Haarnoja et al. 2018 (arXiv 1812.05905), continuous actions; Christodoulou 2019 (1910.07207), discrete ones.

    V(s)    = E_a[ min_l Q'_l(s, a) - alpha log pi(a | s) ]
    critic    sum_l (Q_l(s, a) - sg(y))^2 / 2
    actor     E_a[ alpha log pi(a | s) - min_l Q_l(s, a) ]
    alpha     -log alpha sg(log pi + target entropy)

What the critics learn, for which states and actions, is each agent's own: its ``lessons``. The expectation over actions
is one reparameterised sample, or the exact sum where actions are discrete.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from agents.actor import Actor, ActorConfig
from agents.base import Agent, Carry, frozen, move_target
from agents.multiplier import Multiplier
from worldmodels.base import Latent, Losses, Sequence, WorldModel, map_latent
from worldmodels.distributions import OneHot, SquashedNormal
from worldmodels.layers import Activation, MemberMLP, Norm


class Transitions(NamedTuple):
    """Single steps of experience, real or imagined, flat. Features have no graph."""

    features: Float[Tensor, "N F"]
    action: Float[Tensor, "N A"]
    reward: Float[Tensor, " N"]
    """Arrives with ``next_features``."""
    next_features: Float[Tensor, "N F"]
    live: Float[Tensor, " N"]
    """Chance that there is value in ``next_features``: 0 after a terminal step; a time limit is none."""
    weight: Float[Tensor, " N"]
    """1, or 0 for what is no transition: a step across the end of an episode."""


def replayed_transitions(features: Float[Tensor, "B T F"], batch: Sequence) -> Transitions:
    """The T - 1 transitions in each sequence."""
    features = features.detach()
    parts = (
        features[:, :-1],
        batch.action[:, :-1],
        batch.reward[:, 1:],
        features[:, 1:],
        (~batch.is_terminal[:, 1:]).float(),
        (~batch.is_last[:, :-1]).float(),
    )
    return Transitions(*(part.flatten(0, 1) for part in parts))


class Lessons(NamedTuple):
    """What the critics are to say of states and actions; nothing has a graph."""

    features: Float[Tensor, "M F"]
    action: Float[Tensor, "M A"]
    target: Float[Tensor, " M"]
    weight: Float[Tensor, "L M"]
    """Of each member's error; the sum over lessons is divided by the number of real transitions in the batch."""
    metrics: dict[str, Float[Tensor, ""]]


@dataclass(frozen=True, kw_only=True)
class CriticsConfig:
    members: int  # 2 are twins
    layers: int
    units: int
    norm: Norm
    activation: Activation


class Critics(nn.Module):
    """L action values of the same shape and other weights, evaluated together."""

    def __init__(self, features: int, actions: int, config: CriticsConfig):
        super().__init__()
        self.members = config.members
        self.network = MemberMLP(
            config.members,
            features + actions,
            config.units,
            config.layers,
            1,
            norm=config.norm,
            activation=config.activation,
        )

    def forward(self, features: Float[Tensor, "*B F"], action: Float[Tensor, "*B A"]) -> Float[Tensor, "L *B"]:
        inputs = torch.cat([features, action], -1).flatten(0, -2)
        values = self.network(inputs.expand(self.members, *inputs.shape))
        return values.float().view(self.members, *features.shape[:-1])


Reduce = Callable[[Float[Tensor, "L *B"]], Tensor]


def every(values: Float[Tensor, "L *B"]) -> Float[Tensor, "L *B"]:
    """Each member by itself."""
    return values


def lowest(values: Float[Tensor, "L *B"]) -> Float[Tensor, "*B"]:
    """The least of the members: the pessimism of twin critics (Fujimoto et al. 2018, arXiv 1802.09477)."""
    return values.amin(0)


@dataclass(frozen=True, kw_only=True)
class SoftConfig(ABC):
    """What the configs of these agents have in common."""

    actor: ActorConfig
    critics: CriticsConfig
    discount: float
    target_rate: float  # of the target critics' moving average, at every update
    temperature: float  # initial alpha
    target_entropy: float  # of continuous actions, nats for each dimension
    target_entropy_share: float  # of discrete actions, as a share of the greatest there is, log(number of actions)
    scales: dict[str, float]

    def __post_init__(self) -> None:
        if self.actor.continuous != "squashed_normal":
            raise ValueError(f"actor.continuous must be squashed_normal here, not {self.actor.continuous}")

    @abstractmethod
    def build(self, model: WorldModel) -> "SoftActorCritic": ...


class SoftActorCritic(Agent, ABC):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, config: SoftConfig, model: WorldModel):
        super().__init__(model)
        self.soft, self.scales = config, config.scales
        size = self.spaces.action_dim
        self.actor = Actor(model.feature_dim, model.spaces, config.actor)
        self.critics = Critics(model.feature_dim, size, config.critics)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        entropy = config.target_entropy_share * math.log(size) if self.spaces.discrete else config.target_entropy * size
        self.temperature = Multiplier(config.temperature, entropy)

    def opinion(self, values: Float[Tensor, "L *B"]) -> Float[Tensor, "*B"]:
        """What the actor makes of the members' values."""
        return lowest(values)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        return self.actor.act(model.features(latent), explore=explore, generator=generator), carry

    @abstractmethod
    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        """What the critics learn from the posterior ``[B, T]`` and its transitions; called without gradients."""

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        real = replayed_transitions(model.features(latent), batch)
        with torch.no_grad():
            lessons = self.lessons(model, map_latent(torch.detach, latent), real)
        torch.clear_autocast_cache()  # torch before 2.13 reuses casts made without gradients, and would learn nothing
        values = self.critics(lessons.features, lessons.action)
        with frozen(self.critics, model):
            objective, entropy, told = self.objective(model, map_latent(torch.detach, latent), real)
        emphasis, more = self.emphasis(real, batch)
        further, reasons = self.caution(lessons, values, real)
        count = real.weight.sum().clamp_min(1)
        terms = {
            "critic": 0.5 * (lessons.weight * (values - lessons.target).square()).sum() / count,
            "actor": -(real.weight * emphasis * objective).sum() / count,
            "temperature": (real.weight * self.temperature.loss(entropy)).sum() / count,
        }
        metrics = {
            "value": values.detach().mean(),
            "target": lessons.target.mean(),
            "entropy": entropy.detach().mean(),
            "temperature": self.temperature.value,
        }
        return Losses(terms | further, lessons.metrics | told | more | reasons | metrics)

    def objective(
        self, model: WorldModel, latent: Latent, real: Transitions
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], dict[str, Float[Tensor, ""]]]:
        """What the actor climbs at the states of ``real``, entropy included; its entropy there; metrics of that."""
        return *self.value(self.critics, real.features, self.opinion), {}

    def emphasis(self, real: Transitions, batch: Sequence) -> tuple[Float[Tensor, " N"], dict[str, Float[Tensor, ""]]]:
        """How much the actor's objective counts at each transition, without a graph, and metrics of that."""
        return torch.ones_like(real.weight), {}

    def caution(
        self, lessons: Lessons, values: Float[Tensor, "L M"], real: Transitions
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        """Further terms of the critics, who say ``values``, with their graph, of the lessons; and metrics."""
        return {}, {}

    def policy(self, features: Float[Tensor, "*B F"]) -> OneHot | SquashedNormal:
        policy = self.actor(features)
        assert isinstance(policy, OneHot | SquashedNormal)  # ``SoftConfig``
        return policy

    def decide(self, features: Float[Tensor, "*B F"]) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B"]]:
        """An action of the policy and the policy's entropy (an estimate of it, or exact where actions are discrete)."""
        return drawn(self.policy(features))

    def value(
        self, critics: nn.Module, features: Float[Tensor, "*B F"], reduce: Reduce
    ) -> tuple[Float[Tensor, "*L"], Float[Tensor, "*B"]]:
        """V of states under the policy, of members or of what ``reduce`` makes of them, and the policy's entropy."""
        policy = self.policy(features)
        if isinstance(policy, OneHot):
            each = torch.eye(self.spaces.action_dim, device=features.device)
            shape = (*features.shape[:-1], *each.shape)
            spread = features.unsqueeze(-2).expand(*shape[:-1], features.shape[-1])
            value = (policy.log_probs.exp() * reduce(critics(spread, each.expand(shape)))).sum(-1)
            entropy = policy.entropy()
        else:
            action, entropy = drawn(policy)
            value = reduce(critics(features, action))
        return value + self.temperature.value * entropy, entropy

    def after_update(self, updates: int) -> None:
        move_target(self.target_critics, self.critics, self.soft.target_rate)


def drawn(policy: OneHot | SquashedNormal) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B"]]:
    """A sample of a policy and its entropy, as ``SoftActorCritic.decide`` says."""
    if isinstance(policy, OneHot):
        return policy.sample(), policy.entropy()
    action, log_prob = policy.sample_with_log_prob()
    return action, -log_prob


def td_lessons(agent: SoftActorCritic, real: Transitions) -> Lessons:
    """SAC's: real transitions and the target r + gamma (1 - terminal) V(s')."""
    value, _ = agent.value(agent.target_critics, real.next_features, lowest)
    target = real.reward + agent.soft.discount * real.live * value
    return Lessons(real.features, real.action, target, real.weight.expand(agent.critics.members, -1), {})
