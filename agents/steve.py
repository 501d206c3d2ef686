"""Stochastic ensemble value expansion: every horizon's target, weighted by how little the ensembles disagree on it.

Paper: Buckman et al., "Sample-Efficient Reinforcement Learning with Stochastic Ensemble Value Expansion", NeurIPS 2018,
arXiv 1807.01675.

    T_i^{m,l} = r_0 + sum_{j=1..i} (prod live) r_j^m + (prod live) V'_l(s_{i+1}^m),   i = 0..H               (Eq. 4)
    w_i ~ 1 / (Var_{m,l}[T_i] + 1e-8),   y = sum_i w_i E_{m,l}[T_i]                                           (Eq. 5)
    critic    (Q_l(s, a) - sg(y))^2 / 2 of one random member l for each transition

Member m of the dynamics moves a trajectory from its beginning to its end. T_0 has no model in it: its variance is the
critics' alone. ``reduction`` has the paper's baselines: ``mean``, ``lambda`` and ``last`` (MVE without the TD-k trick).

Deviations: the learner is soft actor-critic (entropy, moving targets) where the paper has DDPG with copies every 500
updates, and its actor trusts the mean of the members as theirs does; one reward head, the world model's, where the
paper has four, so disagreement on rewards is that on states; the end of an episode is one continue head too.

Metrics: those of ``sac.py``, ``horizon`` (mean weight of i, in steps), ``spread_0`` and ``spread_H`` (std of the first
and of the last candidate over the ensembles).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from agents.returns import expansions, horizon_weights
from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, every
from worldmodels.base import Ensembled, Latent, Rewarded, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    horizon: int  # H
    reduction: Literal["inverse_variance", "mean", "lambda", "last"]
    lam: float  # of ``lambda``

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < 0:
            raise ValueError(f"horizon must be 0 or more, not {self.horizon}")
        if self.critics.members < 2:
            raise ValueError("critics.members must be at least 2: the TD target would have no variance and all weight")

    def build(self, model: WorldModel) -> "STEVE":
        return STEVE(self, model)


class STEVE(SoftActorCritic):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config

    def opinion(self, values: Float[Tensor, "L *B"]) -> Float[Tensor, "*B"]:
        return values.mean(0)

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        samples = self.candidates(model, latent, real).flatten(1, 2)  # [H + 1, M L, N]
        weight = horizon_weights(samples, self.config.reduction, self.config.lam)
        target = (weight * samples.mean(1)).sum(0)
        count = self.critics.members
        learner = F.one_hot(torch.randint(count, target.shape, device=target.device), count).T
        steps = torch.arange(len(weight), device=weight.device, dtype=weight.dtype)
        spread = samples.std(1, correction=0).mean(1)
        metrics = {
            "horizon": (steps @ weight).mean(),
            "spread_0": spread[0],
            "spread_H": spread[-1],
        }
        return Lessons(real.features, real.action, target, real.weight * learner, metrics)

    def candidates(self, model: WorldModel, latent: Latent, real: Transitions) -> Tensor:
        """The target of every horizon by every member of dynamics and critics, ``[H + 1, M, L, N]``."""
        assert isinstance(model, Rewarded) and isinstance(model, Ensembled)  # ``needs``
        members = model.num_members
        now = map_latent(lambda part: part[:, 1:].flatten(0, 1).expand(members, -1, *part.shape[2:]), latent)
        features = model.features(now)
        reward, live = [real.reward.expand(members, -1)], [real.live.expand(members, -1)]
        values = [self._values(features)]
        for _ in range(self.config.horizon):
            action, entropy = self.decide(features)
            now = model.imagine_members(now, action)
            features = model.features(now)
            reward.append(model.reward(now) + self.temperature.value * entropy)
            live.append(model.continues(now))
            values.append(self._values(features))
        rewards, lives = torch.stack(reward)[:, :, None], self.config.discount * torch.stack(live)[:, :, None]
        value = torch.stack(values)  # [H + 1, M, L, N]
        return expansions(rewards.expand_as(value), lives.expand_as(value), value)

    def _values(self, features: Tensor) -> Tensor:
        """V' of each member of the critics, ``[M, N, F]`` to ``[M, L, N]``."""
        value, _ = self.value(self.target_critics, features, every)
        return value.transpose(0, 1)
