"""Stochastic ensemble value expansion: every horizon's target, weighted by how little the ensembles disagree on it.

Paper: Buckman et al., "Sample-Efficient Reinforcement Learning with Stochastic Ensemble Value Expansion", NeurIPS 2018,
arXiv 1807.01675.

    T_i^{m,k,l} = r_0 + sum_{j=1..i} (prod live) r_j^{m,k} + (prod live) V'_l(s_{i+1}^m),   i = 0..H         (Eq. 4)
    w_i ~ 1 / (Var_{m,k,l}[T_i] + 1e-8),   y = sum_i w_i E_{m,k,l}[T_i]                                       (Eq. 5)
    critic    (Q_l(s, a) - sg(y))^2 / 2 of one random member l for each transition

Member m of the dynamics moves a trajectory from its beginning to its end, member k of the rewards says what it earns
and member l of the critics what it is worth after that. T_0 has no model in it: its variance is the
critics' alone. ``reduction`` has the paper's baselines: ``mean``, ``lambda`` and ``last`` (MVE without the TD-k trick).

Deviations: the learner is soft actor-critic (entropy, moving targets) where the paper has DDPG with copies every 500
updates, and its actor trusts the mean of the members as theirs does; the end of an episode is the world model's one
continue head, where the paper has four.

Metrics: those of ``sac.py``, ``horizon`` (mean weight of i, in steps), ``spread_0`` and ``spread_H`` (std of the first
and of the last candidate over the ensembles).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from agents.returns import expanded, expansions
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
        samples = self.candidates(model, latent, real).flatten(1, 3)  # [H + 1, M R L, N]
        target, weight = expanded(samples, self.config.reduction, self.config.lam)
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
        """The target of every horizon by every member of dynamics, rewards and critics, ``[H + 1, M, R, L, N]``."""
        assert isinstance(model, Rewarded) and isinstance(model, Ensembled)  # ``needs``
        members, rewards = model.num_members, model.num_rewards
        now = map_latent(lambda part: part[:, 1:].flatten(0, 1).expand(members, -1, *part.shape[2:]), latent)
        features = model.features(now)
        reward, live = [real.reward.expand(rewards, members, -1)], [real.live.expand(members, -1)]
        values = [self._values(features)]
        for _ in range(self.config.horizon):
            action, entropy = self.decide(features)
            now = model.imagine_members(now, action)
            features = model.features(now)
            reward.append(model.reward_members(now) + self.temperature.value * entropy)
            live.append(model.continues(now))
            values.append(self._values(features))
        gained = torch.stack(reward).transpose(1, 2).unsqueeze(3)  # [H + 1, M, R, 1, N]
        lasting = self.config.discount * torch.stack(live)[:, :, None, None]
        value = torch.stack(values)[:, :, None].expand(-1, -1, rewards, -1, -1)
        return expansions(gained.expand_as(value), lasting.expand_as(value), value)

    def _values(self, features: Tensor) -> Tensor:
        """V' of each member of the critics, ``[M, N, F]`` to ``[M, L, N]``."""
        value, _ = self.value(self.target_critics, features, every)
        return value.transpose(0, 1)
