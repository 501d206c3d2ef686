"""Dreamer (V1): back-propagate lambda-returns through learned latent dynamics.

Paper: Hafner et al., "Dream to Control: Learning Behaviors by Latent Imagination", ICLR 2020, arXiv 1912.01603.

    imagine    H states from every posterior state; the start itself is not among them
    returns    R_t = r_t + g_t ((1 - lam) v_{t+1} + lam R_{t+1}),  t = 0..H-2                                  (Eq. 6)
    actor      -mean_t d_t R_t, through rewards, values, dynamics and the policy's sample                      (Eq. 7)
    value      mean_t d_t (v(s_t) - sg(R_t))^2 / 2                                                            (Eq. 8)

with ``g`` the discount (times the continue probability) and ``d_t`` the product of those before t, without gradient.

Deviations: discrete actions (not in the paper's main experiments) take straight-through one-hot samples; the mode of
the policy is tanh of the mean instead of the best of 100 samples; layers are initialised as in DreamerV3.

Metrics: ``return`` and ``value`` (imagined, means), ``gradient_norm/step_1`` .. ``step_H`` (``gradients.py``).
"""

from dataclasses import dataclass

import torch

from agents.actor import ActorConfig, ActorCritic
from agents.base import frozen
from agents.gradients import watch_steps
from agents.imagination import dream, flatten_posterior
from agents.returns import return_including
from worldmodels.base import Latent, Losses, Rewarded, Sequence, WorldModel, map_latent
from worldmodels.heads import HeadConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    actor: ActorConfig
    critic: HeadConfig
    imagination_horizon: int
    discount: float
    lam: float
    scales: dict[str, float]

    def build(self, model: WorldModel) -> "DreamerV1":
        return DreamerV1(self, model)


class DreamerV1(ActorCritic):
    """See the card at the top of the file."""

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config, self.scales = config, config.scales

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        config = self.config
        assert isinstance(model, Rewarded)  # ``needs``
        with frozen(model, self.critic):
            start = flatten_posterior(latent)
            watch = watch_steps(config.imagination_horizon, 0.0, batch.reward.device)
            dreamed = dream(model, lambda f: self.actor(f).sample(), start, config.imagination_horizon, watch=watch)
            imagined = map_latent(lambda part: part[:, 1:], dreamed.latent)
            features = dreamed.features[:, 1:]
            live = config.discount * model.continues(imagined)
            returns = return_including(model.reward(imagined), live, self.critic(features).mean, config.lam)
        weight = torch.cumprod(torch.cat([torch.ones_like(live[:, :1]), live[:, :-2]], 1), 1).detach()
        critic = self.critic(features[:, :-1].detach())
        terms = {
            "actor": -(weight * returns).mean(),
            "critic": (weight * critic.loss(returns.detach())).mean(),
        }
        metrics = {"return": returns.detach().mean(), "value": critic.mean.detach().mean()}
        return Losses(terms, metrics | watch.metrics())
