"""Advantage actor-critic, on-policy, on a world model's features: nothing is imagined. What I2A is compared with.

Paper: Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016, arXiv 1602.01783; many environments
that act together take the place of its asynchronous workers (A2C).

    R_t     = r_{t+1} + gamma (1 - terminal_{t+1}) R_{t+1},  R = V(s) where the episode or the window ends
    policy    -log pi(a_t | s_t) sg(R_t - V(s_t))
    value     (sg(R_t) - V(s_t))^2 / 2, or the loss of another kind of critic
    entropy   -H(pi(. | s_t))

On-policy by numbers, without a loop of its own: each update has, as the first ``newest`` windows of its batch, the
newest K + 1 steps of every environment: ``replay.newest`` = ``newest`` = ``collect.num_envs`` = N, ``replay.length`` =
K + 1, ``training.updates_per_env_step`` = 1 / (N K action_repeat), no prefill, no ``pretrain_updates``. Windows then
follow one another and share one step, whose action is the only one that the policy before the last update chose.
A reset is a step of the replay and no env step, so about one step for each episode is in no window.
Further windows of the batch, if ``replay.batch`` is more, are older ones and teach the world model alone.

Deviations: features of a world model, which learns from the same steps and has no gradient from here, in place of the
paper's own convolutions, sampled anew when it learns; gradients are clipped for each part and not for all together; a
step that was cut off by a time limit is bootstrapped from its own observation.

Metrics: ``value``, ``return`` (R_t), ``entropy`` (nats), ``advantage`` (standard deviation).
"""

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from agents.actor import Actor, ActorConfig, require_entropy
from agents.base import Agent, Carry
from agents.returns import return_after
from worldmodels.base import Latent, Losses, Sequence, WorldModel, map_latent
from worldmodels.distributions import BoundedNormal, OneHot, TruncatedNormal
from worldmodels.heads import Head, HeadConfig
from worldmodels.layers import MLP, Activation, Norm


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """Hidden layers from features to a code."""

    layers: int
    units: int
    norm: Norm
    activation: Activation

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be 1 or more, not {self.layers}")

    def build(self, inputs: int) -> MLP:
        return MLP(inputs, self.units, self.layers, norm=self.norm, activation=self.activation)


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(ABC):
    """What the configs of on-policy actor-critics have in common."""

    path: PathConfig
    actor: ActorConfig
    critic: HeadConfig
    discount: float
    newest: int  # windows of each batch to learn from, its first ones; as many as replay.newest
    scales: dict[str, float]

    def __post_init__(self) -> None:
        require_entropy(self.actor)
        if noise := self.actor.exploration_noise:
            raise ValueError(f"actor.exploration_noise must be 0 here: its policy explores, not {noise}")
        if self.newest < 1:
            raise ValueError(f"newest must be 1 or more, not {self.newest}")


@dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
    def build(self, model: WorldModel) -> "A2C":
        return A2C(self, model)


class A2C(Agent):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = ()

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(model)
        self.config, self.scales = config, config.scales
        self.path = config.path.build(model.feature_dim)
        self.actor = Actor(config.path.units, model.spaces, config.actor)
        self.critic = config.critic.build(config.path.units)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        return self.actor.act(self.path(model.features(latent)), explore=explore, generator=generator), carry

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        latent, batch = newest_windows(latent, batch, self.config.newest)
        code = self.path(model.features(latent).detach())
        return actor_critic_losses(self.actor, self.critic, code, batch, self.config.discount)


def newest_windows(latent: Latent, batch: Sequence, count: int) -> tuple[Latent, Sequence]:
    """The first windows of a batch, which are the newest, and their posterior without its graph."""
    parts: list[Any] = [None if part is None else part[:count] for part in batch]
    return map_latent(lambda part: part[:count].detach(), latent), Sequence(*parts)


def segment_return(
    reward: Float[Tensor, "B T"],
    is_last: Bool[Tensor, "B T"],
    is_terminal: Bool[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    discount: float,
) -> Float[Tensor, "B T1"]:
    """R_t of the card for all steps but the last: real rewards to the end of the episode or window, then the value.

    Where a step ``is_last`` its entry is that of the step into the next episode, and means nothing.
    """
    live = discount * (~is_terminal).float()
    return return_after(reward, live, value, (~is_last).float())


def actor_critic_losses(
    actor: Actor, critic: Head, code: Float[Tensor, "B T C"], batch: Sequence, discount: float
) -> Losses:
    """Terms and metrics of the card, of windows of T = K + 1 steps and what ``actor`` and ``critic`` see in them."""
    policy, believed = actor(code[:, :-1]), critic(code)
    value = believed.mean.detach()
    returns = segment_return(batch.reward, batch.is_last, batch.is_terminal, value, discount)
    advantage = returns - value[:, :-1]
    weight = (~batch.is_last[:, :-1]).float()
    count = weight.sum().clamp_min(1)

    def mean(x: Tensor) -> Tensor:
        return (weight * x).sum() / count

    assert isinstance(policy, OneHot | BoundedNormal | TruncatedNormal)  # ``require_entropy``
    entropy = policy.entropy()
    terms = {
        "policy": -mean(policy.log_prob(batch.action[:, :-1]) * advantage),
        "value": mean(believed.loss(torch.cat([returns, value[:, -1:]], 1))[:, :-1]),
        "entropy": -mean(entropy),
    }
    seen = {"value": value[:, :-1], "return": returns, "entropy": entropy.detach()}
    metrics = {name: mean(part) for name, part in seen.items()}
    return Losses(terms, metrics | {"advantage": mean(advantage.square()).sqrt()})
