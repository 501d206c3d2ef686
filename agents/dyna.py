"""Dyna: the learner sees imagined transitions among the real ones; MBPO is the values of ``mbpo.yaml``.

Papers: Sutton, "Dyna, an Integrated Architecture for Learning, Planning, and Reacting", 1991
(doi:10.1145/122344.122377); Janner et al., "When to Trust Your Model: Model-Based Policy Optimization", NeurIPS 2019,
arXiv 1906.08253: short rollouts that branch off from real states, so that errors cannot add up.

    for every real state s of the batch, k times:  a ~ pi(s),  s' ~ model(s, a),  y = r(s') + gamma c(s') V(s')
    critic   real_ratio of the weight on real transitions, the rest on imagined ones, as far as they are reached
    k        grows in whole numbers from ``first`` to ``last`` between the updates ``begin`` and ``end``

Latents drift while the model learns. Here imagined transitions are made for one update and forgotten: none is ever
older than the model, and there is no buffer to flush. The actor learns from the
states of real transitions.

Deviations: MBPO keeps imagined transitions for 1000 env steps, retrains its model from time to time, and its actor
learns from imagined states as well; ends are known functions there, here predicted probabilities, which weigh what
comes after. One model imagines, not a random member of an ensemble.

Metrics: those of ``sac.py``, ``rollout`` (k) and ``imagined_reward`` (mean).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, lowest
from worldmodels.base import Latent, Rewarded, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A whole length: ``floor(first + clip((u - begin) / (end - begin), 0, 1) (last - first))`` at update u."""

    begin: int
    end: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end or min(self.first, self.last) < 0:
            raise ValueError(f"a schedule needs 0 <= begin < end and lengths of 0 or more, not {self}")

    def __call__(self, updates: int) -> int:
        share = min(max((updates - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return int(self.first + share * (self.last - self.first))


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    rollout: Schedule  # k, by learner updates
    real_ratio: float  # share of the real transitions in the critics' loss; 1: SAC

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.real_ratio <= 1:
            raise ValueError(f"real_ratio must be in [0, 1], not {self.real_ratio}")

    def build(self, model: WorldModel) -> "Dyna":
        return Dyna(self, model)


class Dyna(SoftActorCritic):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)
    updates: Tensor

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config
        self.register_buffer("updates", torch.tensor(0))

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        length = self.config.rollout(int(self.updates)) if self.config.real_ratio < 1 else 0
        imagined = self.imagine(model, map_latent(lambda part: part[:, :-1].flatten(0, 1), latent), real, length)
        share = self.config.real_ratio if imagined else 1.0
        # both kinds weigh as much as the real ones alone would, whatever the length of the rollouts
        whole = real.weight.sum()
        reached = torch.stack([step.weight.sum() for step in imagined]).sum().clamp_min(1) if imagined else whole
        weights = [share * real.weight, *((1 - share) * whole / reached * step.weight for step in imagined)]
        every = Transitions(*(torch.cat(parts) for parts in zip(real, *imagined, strict=True)))
        value, _ = self.value(self.target_critics, every.next_features, lowest)
        target = every.reward + self.soft.discount * every.live * value
        metrics = {"rollout": torch.tensor(float(length), device=target.device)}
        if imagined:
            metrics["imagined_reward"] = torch.stack([step.reward.mean() for step in imagined]).mean()
        weight = torch.cat(weights).expand(self.critics.members, -1)
        return Lessons(every.features, every.action, target, weight, metrics)

    def imagine(self, model: WorldModel, latent: Latent, real: Transitions, length: int) -> list[Transitions]:
        """``length`` transitions from each latent ``[N]``; their weight is the chance to get there."""
        assert isinstance(model, Rewarded)  # ``needs``
        steps, features, weight = [], model.features(latent), real.weight
        for _ in range(length):
            action, _ = self.decide(features)
            latent = model.imagine(latent, action)
            following, going_on = model.features(latent), model.continues(latent)
            steps.append(Transitions(features, action, model.reward(latent), following, going_on, weight))
            features, weight = following, weight * going_on
        return steps

    def after_update(self, updates: int) -> None:
        super().after_update(updates)
        self.updates.fill_(updates)
