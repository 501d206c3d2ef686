"""Dreamer V2: categorical latents, KL balancing; score-function or pathwise actor gradients.

Paper: Hafner et al., "Mastering Atari with Discrete World Models", ICLR 2021, arXiv 2010.02193.

    targets    T_t = r_t + d_t ((1 - lam) v'_{t+1} + lam T_{t+1}),  t = 0..H-1, with v' the slow critic    (Eq. 4)
    actor      -mean_t w_t (objective_t + eta H[pi(. | s_t)]),      t = 0..H-2                              (Eq. 6)
               score function: log pi(a_t | s_t) sg(T_{t+1} - v'_t);   pathwise: T_{t+1}
    critic     mean_t w_t (v(s_t) - sg(T_t))^2 / 2,                 t = 0..H-1                              (Eq. 5)

Discrete actions take the score function, continuous ones the pathwise gradient through the frozen world model, as in
the code. The paper's mixture of both is the config's ``actor_gradient`` alone, without interpolation.

Deviations: ``d_t`` is gamma times a continue probability learned without discount; d_0 of a start is predicted too.
Layers are initialised as in DreamerV3. Rewards are not squashed (the code's choice for the DM Control suite).

Metrics: ``return`` and ``value`` (imagined, means), ``entropy`` (nats), and where the gradient is pathwise
``gradient_norm/step_1`` .. ``step_H`` (``gradients.py``).
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch

from agents.actor import ActorConfig, ActorCritic, require_entropy
from agents.base import frozen, move_target
from agents.gradients import watch_steps
from agents.imagination import dream, flatten_posterior
from agents.returns import return_including
from worldmodels.base import Latent, Losses, Rewarded, Sequence, WorldModel
from worldmodels.heads import HeadConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    actor: ActorConfig
    critic: HeadConfig
    actor_gradient: Literal["auto", "pathwise", "score"]  # auto: score for discrete actions, pathwise for continuous
    imagination_horizon: int
    discount: float
    lam: float
    entropy: float  # eta
    slow_every: int  # updates between copies to the slow critic
    scales: dict[str, float]

    def __post_init__(self) -> None:
        require_entropy(self.actor)

    def build(self, model: WorldModel) -> "DreamerV2":
        return DreamerV2(self, model)


class DreamerV2(ActorCritic):
    """See the card at the top of the file."""

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config, self.scales = config, config.scales
        self.pathwise = config.actor_gradient == "pathwise" or (
            config.actor_gradient == "auto" and not model.spaces.discrete
        )
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        config = self.config
        assert isinstance(model, Rewarded)  # ``needs``
        with frozen(model), torch.set_grad_enabled(self.pathwise):
            start = flatten_posterior(latent)
            watch = watch_steps(config.imagination_horizon, 0.0, batch.reward.device)
            dreamed = dream(model, lambda f: self.actor(f).sample(), start, config.imagination_horizon, watch=watch)
            live = config.discount * model.continues(dreamed.latent)
            slow_value = self.slow_critic(dreamed.features).mean
            targets = return_including(model.reward(dreamed.latent), live, slow_value, config.lam)  # [N, H]
        torch.clear_autocast_cache()  # torch before 2.13 reuses casts made without gradients, and would learn nothing
        features = dreamed.features.detach()
        weight = torch.cumprod(torch.cat([torch.ones_like(live[:, :1]), live[:, :-1]], 1), 1).detach()  # [N, H+1]

        policy = self.actor(features[:, :-2])
        if self.pathwise:
            objective = targets[:, 1:]
        else:
            advantage = (targets[:, 1:] - slow_value[:, :-2]).detach()
            objective = policy.log_prob(dreamed.action[:, :-1]) * advantage
        entropy = policy.entropy()
        critic = self.critic(features[:, :-1])
        terms = {
            "actor": -(weight[:, :-2] * (objective + config.entropy * entropy)).mean(),
            "critic": (weight[:, :-1] * critic.loss(targets.detach())).mean(),
        }
        metrics = {
            "return": targets.detach().mean(),
            "value": critic.mean.detach().mean(),
            "entropy": entropy.detach().mean(),
        }
        return Losses(terms, metrics | (watch.metrics() if self.pathwise else {}))

    def after_update(self, updates: int) -> None:
        if updates % self.config.slow_every == 0:
            move_target(self.slow_critic, self.critic, 1.0)
