"""Rollouts that branch off from real states: what agents share whose critics learn from imagined transitions too.

Paper: Janner et al., "When to Trust Your Model: Model-Based Policy Optimization", NeurIPS 2019, arXiv 1906.08253.

    for every real state s of the batch, k times:  a ~ pi(s),  s' ~ move(s, a),  y = r(s') + gamma c(s') V(s')
    critic   real_ratio of the weight on real transitions, the rest on imagined ones, as far as they are reached
    k        grows in whole numbers from ``first`` to ``last`` between the updates ``begin`` and ``end``

Latents drift while the model learns. Here imagined transitions are made for one update and forgotten: none is ever
older than the model, and there is no buffer to flush. The actor learns from the states of real transitions.

What moves a latent, and which of the imagined transitions count, is each agent's own: its ``imagine``.

Metrics: ``rollout`` (k) and ``imagined_reward`` (mean of what was imagined, whether it counts or not).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.imagination import Move
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
class BranchingConfig(SoftConfig, ABC):
    """What the configs of these agents have in common."""

    rollout: Schedule  # k, by learner updates
    real_ratio: float  # share of the real transitions in the critics' loss; 1: SAC

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.real_ratio <= 1:
            raise ValueError(f"real_ratio must be in [0, 1], not {self.real_ratio}")


class Branching(SoftActorCritic, ABC):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)
    updates: Tensor

    def __init__(self, config: BranchingConfig, model: WorldModel):
        super().__init__(config, model)
        self.branching = config
        self.register_buffer("updates", torch.tensor(0))
        self.count = 0  # ``updates`` for Python: to read it from a GPU is to wait for everything the GPU has to do
        self.register_load_state_dict_post_hook(_recount)

    @abstractmethod
    def imagine(
        self, model: WorldModel, start: Latent, real: Transitions, length: int
    ) -> tuple[list[Transitions], dict[str, Tensor]]:
        """``length`` transitions from each latent ``[N]``, the one before each of ``real``, and metrics."""

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        config = self.branching
        length = config.rollout(self.count) if config.real_ratio < 1 else 0
        start = map_latent(lambda part: part[:, :-1].flatten(0, 1), latent)
        imagined, metrics = self.imagine(model, start, real, length) if length else ([], {})
        share = config.real_ratio if imagined else 1.0
        # both kinds weigh as much as the real ones alone would, whatever the length of the rollouts
        whole = real.weight.sum()
        reached = torch.stack([step.weight.sum() for step in imagined]).sum().clamp_min(1) if imagined else whole
        weights = [share * real.weight, *((1 - share) * whole / reached * step.weight for step in imagined)]
        every = Transitions(*(torch.cat(parts) for parts in zip(real, *imagined, strict=True)))
        value, _ = self.value(self.target_critics, every.next_features, lowest)
        target = every.reward + self.soft.discount * every.live * value
        metrics["rollout"] = torch.full((), float(length), device=target.device)
        if imagined:
            metrics["imagined_reward"] = torch.stack([step.reward.mean() for step in imagined]).mean()
        weight = torch.cat(weights).expand(self.critics.members, -1)
        return Lessons(every.features, every.action, target, weight, metrics)

    def after_update(self, updates: int) -> None:
        super().after_update(updates)
        self.count = updates
        self.updates.fill_(updates)


def _recount(agent: Branching, _: Any) -> None:
    agent.count = int(agent.updates)


def branch(
    agent: SoftActorCritic, model: WorldModel, start: Latent, real: Transitions, length: int, move: Move
) -> list[Transitions]:
    """``length`` transitions of the policy from each latent ``[N]``; their weight is the chance to get there.

    ``move`` takes latents ``[N]`` and actions ``[N, A]`` to latents. A row of ``real`` that is no transition starts
    nothing: its weight is 0 from the beginning.
    """
    assert isinstance(model, Rewarded)  # ``needs``
    steps, latent, features, weight = [], start, model.features(start), real.weight
    for _ in range(length):
        action, _ = agent.decide(features)
        latent = move(latent, action)
        following, going_on = model.features(latent), model.continues(latent)
        steps.append(Transitions(features, action, model.reward(latent), following, going_on, weight))
        features, weight = following, weight * going_on
    return steps
