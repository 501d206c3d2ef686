"""Model-augmented actor-critic: the actor climbs H imagined rewards and the value after them, through the model.

Paper: Clavera, Fu, Abbeel, "Model-Augmented Actor-Critic: Backpropagating through Paths", ICLR 2020, arXiv 2005.08068.

    J = alpha H[pi(. | s_0)] + sum_{t<H} gamma^t (prod c) r(s_{t+1}) + gamma^H (prod c) E_a[min_l Q_l(s_H, a)]
    a_t ~ pi(s_t), s_{t+1} ~ model(s_t, a_t), both reparameterised; c are predicted probabilities to go on

The critics learn as in ``sac.py``, from real transitions. H = 0 is SAC. Only the entropy of the first step counts. The
optimiser clips the actor's gradient, which long rollouts make large; ``step_clip`` is another clip, not the paper's: of
what comes back to each state at each imagined step, so that it cannot grow with H (``gradients.py``).

Deviations: the critics see no imagined transitions (the paper's are 5 % real); masks are cumulative, which the paper's
code forgets; the model is no ensemble, unless a world model's ``imagine`` is one. Discrete actions are straight-through
samples, as are categorical latents, which the paper does not have.

Metrics: those of ``sac.py``; ``gradient_norm/step_1`` .. ``step_H`` and, where ``step_clip`` is more than 0, the same
after it, ``gradient_norm_clipped/step_1`` .. ``step_H``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from agents.gradients import watch_steps
from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, td_lessons
from worldmodels.base import Latent, Rewarded, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    horizon: int  # H
    terminal_actions: int  # samples of the last action that the value is the mean over
    step_clip: float  # greatest norm of the gradient that comes back to a state at an imagined step; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon < 0 or self.terminal_actions < 1:
            raise ValueError(
                f"horizon must be 0 or more and terminal_actions 1 or more, not {self.horizon}, {self.terminal_actions}"
            )
        if self.step_clip < 0:
            raise ValueError(f"step_clip must be 0 or more, not {self.step_clip}")

    def build(self, model: WorldModel) -> "MAAC":
        return MAAC(self, model)


class MAAC(SoftActorCritic):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        return td_lessons(self, real)

    def objective(
        self, model: WorldModel, latent: Latent, real: Transitions
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], dict[str, Float[Tensor, ""]]]:
        assert isinstance(model, Rewarded)  # ``needs``
        if not self.config.horizon:
            return super().objective(model, latent, real)
        now, features = map_latent(lambda part: part[:, :-1].flatten(0, 1), latent), real.features
        total, weight, first = torch.zeros_like(real.reward), torch.ones_like(real.reward), None
        watch = watch_steps(self.config.horizon, self.config.step_clip, real.reward.device)
        for t in range(self.config.horizon):
            action, entropy = self.decide(features)
            first = entropy if first is None else first
            now = watch.passed(model.imagine(now, action), t)
            features = model.features(now)
            total = total + weight * model.reward(now)
            weight = weight * self.config.discount * model.continues(now)
        assert first is not None
        count = self.config.terminal_actions
        spread = features.expand(count, *features.shape)
        value, entropy = self.value(self.critics, spread, self.opinion)
        last = (value - self.temperature.value * entropy).mean(0)
        return self.temperature.value * first + total + weight * last, first, watch.metrics()
