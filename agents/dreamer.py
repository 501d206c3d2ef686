"""Dreamer (V3): learn behaviour in imagination with robust, fixed hyper-parameters.

Paper: Hafner et al., "Mastering Diverse Domains through World Models", arXiv 2301.04104 v2, Nature 2025.

    returns    R_t = r_{t+1} + gamma c_{t+1} ((1 - lam) v_{t+1} + lam R_{t+1})                          (Eq. 7)
    actor      -sum_t w_t (log pi(a_t | s_t) (R_t - v_t) / max(1, S) + eta H[pi]),  S = EMA(P95 - P5)   (Eq. 11, 12)
    critic     -sum_t w_t (log p(R_t | s_t) + log p(v_slow(s_t) | s_t))                                 (Eq. 10)
    replay     the critic's loss on recorded rewards too, bootstrapped by imagined returns; its gradient
               reaches the world model

The actor's gradient is the score function for continuous actions as well, so nothing is differentiated through the
dynamics and any world model with rewards will do.

Deviations: the discount multiplies the predicted continue probability instead of being part of its target, so
``w_0`` is gamma c_0 as in the code. The uniform mixture of discrete policies follows the paper (1 %).

Metrics: ``return`` and ``value`` (imagined, means), ``return_scale`` (S), ``entropy`` (nats), ``advantage_abs``.
"""

import copy
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from agents.actor import ActorConfig, ActorCritic, require_entropy
from agents.base import move_target
from agents.imagination import Dream, dream, flatten_posterior, last_steps
from agents.returns import return_after
from worldmodels.base import Latent, Losses, Rewarded, Sequence, WorldModel
from worldmodels.heads import HeadConfig


@dataclass(frozen=True, kw_only=True)
class DreamingConfig(ABC):
    """Of agents that learn from their dreams as V3 does."""

    actor: ActorConfig
    critic: HeadConfig
    imagination_horizon: int
    imagination_starts: int  # the last so many steps of each sequence start a dream; 0: all (the paper)
    discount: float
    lam: float
    entropy: float  # eta
    return_rate: float  # of the moving average of the returns' range
    return_floor: float  # ranges below it are not scaled up
    slow_rate: float  # of the slow critic's moving average, at every update
    slow_weight: float  # of the critic's regularisation towards its slow copy
    scales: dict[str, float]

    def __post_init__(self) -> None:
        require_entropy(self.actor)
        if self.imagination_starts < 0:
            raise ValueError(f"imagination_starts must be 0 or more, got {self.imagination_starts}")


@dataclass(frozen=True, kw_only=True)
class Config(DreamingConfig):
    def __post_init__(self) -> None:
        if self.imagination_starts < 0 or self.imagination_starts == 1:  # a replayed step needs the one after it
            raise ValueError(f"imagination_starts must be 0 or at least 2, got {self.imagination_starts}")
        super().__post_init__()

    def build(self, model: WorldModel) -> "Dreamer":
        return Dreamer(self, model)


class ReturnRange(nn.Module):
    """Moving average of the distance between the 5th and the 95th percentile of returns, from 0, not de-biased."""

    value: Tensor

    def __init__(self, rate: float, floor: float):
        super().__init__()
        self.rate, self.floor = rate, floor
        self.register_buffer("value", torch.zeros(()))

    @torch.no_grad()
    def forward(self, returns: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Take these returns into the average; what to divide by."""
        low, high = torch.quantile(returns.flatten(), torch.tensor([0.05, 0.95], device=returns.device)).unbind()
        self.value.lerp_(high - low, self.rate)
        return self.value.clamp_min(self.floor)


class Dreaming(ActorCritic, ABC):
    """V3's actor and critic, and how they learn from a dream whose rewards are given."""

    def __init__(self, config: DreamingConfig, model: WorldModel):
        super().__init__(config, model)
        self.settings, self.scales = config, config.scales
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_range = ReturnRange(config.return_rate, config.return_floor)

    @torch.no_grad()
    def follow_policy(self, model: WorldModel, latent: Latent) -> Dream:
        """What the policy dreams from every step of a posterior ``[B, T]``; N is B T."""
        start = flatten_posterior(latent)
        return dream(model, lambda f: self.actor(f).sample(), start, self.settings.imagination_horizon)

    def learn(
        self, model: WorldModel, dreamed: Dream, reward: Float[Tensor, "N H1"]
    ) -> tuple[Losses, Float[Tensor, "N H"]]:
        """Terms ``actor`` and ``critic`` (Eq. 10 to 12) of a dream, with their metrics, and its returns (Eq. 7).

        ``reward[:, t]`` arrives with the dream's latent t; what comes with its start is not looked at.
        """
        config = self.settings
        assert isinstance(model, Rewarded)  # ``needs``
        with torch.no_grad():
            live = config.discount * model.continues(dreamed.latent)
            slow_value = self.slow_critic(dreamed.features[:, :-1]).mean
            last_value = self.critic(dreamed.features[:, -1:]).mean
        torch.clear_autocast_cache()  # torch before 2.13 reuses casts made without gradients, and would learn nothing
        critic = self.critic(dreamed.features[:, :-1])
        policy = self.actor(dreamed.features[:, :-1])

        value = critic.mean.detach()
        returns = return_after(reward, live, torch.cat([value, last_value], 1), config.lam)
        weight = torch.cumprod(live, 1)[:, :-1]
        scale = self.return_range(returns)
        advantage = (returns - value) / scale
        entropy = policy.entropy()
        actor_loss = -weight * (policy.log_prob(dreamed.action) * advantage + config.entropy * entropy)
        critic_loss = weight * (critic.loss(returns) + config.slow_weight * critic.loss(slow_value))
        metrics = {
            "return": returns.mean(),
            "value": value.mean(),
            "return_scale": scale,
            "entropy": entropy.detach().mean(),
            "advantage_abs": advantage.abs().mean(),
        }
        return Losses({"actor": actor_loss.mean(), "critic": critic_loss.mean()}, metrics), returns

    def after_update(self, updates: int) -> None:
        move_target(self.slow_critic, self.critic, self.settings.slow_rate)


class Dreamer(Dreaming):
    """See the card at the top of the file."""

    teaches: ClassVar[frozenset[str]] = frozenset({"replay_critic"})

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        assert isinstance(model, Rewarded)  # ``needs``
        if self.settings.imagination_starts:
            latent, batch = last_steps(latent, batch, self.settings.imagination_starts)
        dreamed = self.follow_policy(model, latent)
        with torch.no_grad():
            reward = model.reward(dreamed.latent)
        (terms, metrics), returns = self.learn(model, dreamed, reward)
        replayed = self._replay_loss(model.features(latent), batch, returns[:, 0].view_as(batch.reward))
        return Losses(terms | {"replay_critic": replayed}, metrics)

    def _replay_loss(
        self, features: Float[Tensor, "B T F"], batch: Sequence, bootstrap: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""]:
        """The critic on what really happened; a time limit bootstraps, a terminal step does not."""
        live = self.settings.discount * (~batch.is_terminal).float()
        lam = self.settings.lam * (~batch.is_last).float()
        returns = return_after(batch.reward, live, bootstrap, lam)
        critic = self.critic(features[:, :-1])
        with torch.no_grad():
            slow_value = self.slow_critic(features[:, :-1]).mean
        loss = critic.loss(returns) + self.settings.slow_weight * critic.loss(slow_value)
        return ((~batch.is_last[:, :-1]).float() * loss).mean()
