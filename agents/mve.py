"""Model-based value expansion: critics learn from H imagined rewards before they trust themselves.

Paper: Feinberg et al., "Model-Based Value Estimation for Efficient Model-Free RL", arXiv 1803.00101.

    s_0 follows a real transition (s_{-1}, a_{-1}, r_{-1}); then a_t ~ pi, s_{t+1} and r_t by the model, t = 0..H-1
    y_t = r_t + gamma c_t (y_{t+1} - alpha log pi(a_{t+1} | s_{t+1})),   y_{H-1} bootstraps with V(s_H)       (Eq. 3.1)
    critic    1/H sum_{t=-1..H-1} (Q(s_t, a_t) - sg(y_t))^2,   the TD-k trick; without it t = -1 only           (Eq. 4)

H = 0 is SAC's target. The actor learns from real states, as in ``soft.py``.

Deviations: the learner is soft actor-critic (twins, entropy, no target policy) where the paper has DDPG; c_t is the
predicted probability to go on, and imagined states count as far as they are reached, where the paper knows no ends.
Rewards come from the world model, the paper's are known. The printed gamma^H of Eq. 4 is the recursion, as in its code.

Metrics: those of ``sac.py``, and ``imagined_target`` (mean y of imagined steps).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from agents.imagination import dream
from agents.returns import lambda_return
from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, lowest
from worldmodels.base import Latent, Rewarded, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    horizon: int  # H
    td_k: bool  # learn from imagined states too, or from the real one alone

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
        config, entropies = self.config, []

        def decide(features: Float[Tensor, "N F"]) -> Float[Tensor, "N A"]:
            action, entropy = self.decide(features)
            entropies.append(entropy)
            return action

        start = map_latent(lambda part: part[:, 1:].flatten(0, 1), latent)
        dreamed = dream(model, decide, start, config.horizon) if config.horizon else None
        last = real.next_features if dreamed is None else dreamed.features[:, -1]
        value, _ = self.value(self.target_critics, last, lowest)
        reward, going_on = real.reward[:, None], real.live[:, None]  # [N, H + 1], step 0 is the real one
        features, actions = real.features[:, None], real.action[:, None]
        if dreamed is not None:
            after = map_latent(lambda part: part[:, 1:], dreamed.latent)
            reward = torch.cat([reward, model.reward(after)], 1)
            going_on = torch.cat([going_on, model.continues(after)], 1)
            features = torch.cat([features, dreamed.features[:, :-1]], 1)
            actions = torch.cat([actions, dreamed.action], 1)
        live = config.discount * going_on
        bonus = self.temperature.value * torch.stack([*entropies, torch.zeros_like(value)], 1)
        # the next action's entropy belongs to what it leads to: y_t = (r_t + live_t bonus_{t+1}) + live_t y_{t+1}
        target = lambda_return(reward + live * bonus, live, value[:, None].expand_as(live), 1.0)
        reached = torch.cat([torch.ones_like(live[:, :1]), torch.cumprod(going_on, 1)[:, :-1]], 1)
        rows = live.shape[1] if config.td_k else 1
        share = 1 / max(1, rows - 1)  # H + 1 rows, divided by H
        weight = (share * real.weight[:, None] * reached)[:, :rows]
        metrics = {"imagined_target": target[:, 1:].mean()} if rows > 1 else {}
        return Lessons(
            features[:, :rows].flatten(0, 1),
            actions[:, :rows].flatten(0, 1),
            target[:, :rows].flatten(),
            weight.flatten().expand(self.critics.members, -1),
            metrics,
        )
