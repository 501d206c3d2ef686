"""Model-based value expansion: critics learn from H imagined rewards before they trust themselves.

Paper: Feinberg et al., "Model-Based Value Estimation for Efficient Model-Free RL", arXiv 1803.00101.

    s_0 follows a real transition (s_{-1}, a_{-1}, r_{-1}); then a_t ~ pi, s_{t+1} and r_t by the model, t = 0..H-1
    y_t = r_t + gamma c_t (y_{t+1} - alpha log pi(a_{t+1} | s_{t+1})),   y_{H-1} bootstraps with V(s_H)       (Eq. 3.1)
    critic    1/H sum_{t=-1..H-1} (Q(s_t, a_t) - sg(y_t))^2,   the TD-k trick; without it t = -1 only           (Eq. 4)

H = 0 is SAC's target. ``reduction`` ``last`` is the paper's; the others are baselines of STEVE's paper: y_t is then the
mean, or the TD(lambda) mean, of the targets that bootstrap at s_{t+1}, .., s_H. The actor learns from real states, as
in ``soft.py``.

Deviations: the learner is soft actor-critic (twins, entropy, no target policy) where the paper has DDPG; c_t is the
predicted probability to go on, and imagined states count as far as they are reached, where the paper knows no ends.
Rewards come from the world model, the paper's are known. The printed gamma^H of Eq. 4 is the recursion, as in its code.

Metrics: those of ``sac.py``, and ``imagined_target`` (mean y of imagined steps).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from agents.imagination import dream
from agents.returns import expanded, expansions
from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, lowest
from worldmodels.base import Latent, Rewarded, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    horizon: int  # H
    td_k: bool  # learn from imagined states too, or from the real one alone
    reduction: Literal["last", "mean", "lambda"]
    lam: float  # of ``lambda``

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < 0:
            raise ValueError(f"horizon must be 0 or more, not {self.horizon}")

    def build(self, model: WorldModel) -> "MVE":
        return MVE(self, model)


class MVE(SoftActorCritic):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        assert isinstance(model, Rewarded)  # ``needs``
        start = map_latent(lambda part: part[:, 1:].flatten(0, 1), latent)
        dreamed = dream(model, lambda features: self.decide(features)[0], start, self.config.horizon)
        after = map_latent(lambda part: part[:, 1:], dreamed.latent)
        reward = torch.cat([real.reward[:, None], model.reward(after)], 1)  # [N, H + 1], step 0 is the real one
        going_on = torch.cat([real.live[:, None], model.continues(after)], 1)
        features = torch.cat([real.features[:, None], dreamed.features[:, :-1]], 1)
        actions = torch.cat([real.action[:, None], dreamed.action], 1)
        rows = reward.shape[1] if self.config.td_k else 1
        target = self.targets(reward, going_on, dreamed.features, rows)
        reached = torch.cat([torch.ones_like(real.live[:, None]), torch.cumprod(going_on, 1)[:, :-1]], 1)
        share = 1 / max(1, rows - 1)  # H + 1 rows, divided by H
        weight = (share * real.weight[:, None] * reached)[:, :rows]
        metrics = {"imagined_target": target[:, 1:].mean()} if rows > 1 else {}
        return Lessons(
            features[:, :rows].flatten(0, 1),
            actions[:, :rows].flatten(0, 1),
            target.flatten(),
            weight.flatten().expand(self.critics.members, -1),
            metrics,
        )

    def targets(
        self, reward: Float[Tensor, "N H1"], going_on: Float[Tensor, "N H1"], after: Float[Tensor, "N H1 F"], rows: int
    ) -> Float[Tensor, "N R"]:
        """y of the first ``rows`` steps; ``after`` are the features of the states that the steps lead to."""
        value, entropy = self.value(self.target_critics, after, lowest)
        value, reward, live = value.T, reward.T, self.config.discount * going_on.T
        # an action's entropy is part of what its state is worth, not of what the action itself is
        soft = torch.cat([reward[:1], reward[1:] + self.temperature.value * entropy.T[:-1]])
        targets = []
        for t in range(rows):
            candidates = expansions(torch.cat([reward[t : t + 1], soft[t + 1 :]]), live[t:], value[t:])
            targets.append(expanded(candidates[:, None], self.config.reduction, self.config.lam)[0])
        return torch.stack(targets, 1)
