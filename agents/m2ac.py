"""Masked model-based actor-critic: of what an ensemble imagines, critics learn what one member and the rest agree on.

Paper: Pan et al., "Trust the Model When It Is Confident: Masked Model-based Actor-Critic", NeurIPS 2020, arXiv
2010.04893. Its authors released no code; numbers are those of two reimplementations, which agree.

    rollouts branch off from real states (``branching.py``); member i ~ U(1..K) for every row and step
    u     = KL(p_i(. | s, a) || p_{-i}(. | s, a)),  the other members as one distribution
    mask    of N rows at step h = 0..H-1 the w_h N with the smallest u,  w_h = 2 kept (H - h) / (H + 1), at most 1
    r~    = r - penalty * u

``kept`` 0.25 is the paper's w_h = (H - h) / (2 (H + 1)), whose mean over the steps is 0.25. ``mode``: ``non-stop`` rows
go on when they are masked out, and may count again; ``hard-stop`` rows do not.

Deviations: ends are predicted probabilities, so a row takes as much of w_h N as it is likely to be living, and one that
has ended takes nothing. In the reimplementations N and the ranking have finished rows in them, which are taken out
afterwards, so that fewer than w_h N are left. u is of the next latent alone: rewards are those of the model's own head,
and an RSSM's members share its memory, so what those do not know is not in it. Members are dealt, each to as many rows
as can be. As in ``dyna.py`` nothing imagined is kept and the actor learns from real states.

Metrics: those of ``sac.py`` and of ``branching.py``; ``kept_h`` (share of the starts that counts at step h),
``uncertainty_kept`` and ``uncertainty_dropped`` (mean u of living rows, nats), ``penalty_to_reward`` (sum of what the
penalty takes from rows that count, over the sum of their absolute rewards).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.branching import Branching, BranchingConfig, branch
from agents.imagination import Move
from agents.soft import Transitions
from worldmodels.base import Ensembled, Latent, Rewarded, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(BranchingConfig):
    kept: float  # share of the rows that counts, mean over the steps of a rollout; (H + 1) / 2 or more: all rows
    penalty: float  # alpha, of a nat of uncertainty, in units of reward
    mode: Literal["non-stop", "hard-stop"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept <= 0 or self.penalty < 0:
            raise ValueError(f"kept must be above 0 and penalty 0 or more, not {self.kept} and {self.penalty}")

    def build(self, model: WorldModel) -> "M2AC":
        return M2AC(self, model)


class M2AC(Branching):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config

    def imagine(
        self, model: WorldModel, start: Latent, real: Transitions, length: int
    ) -> tuple[list[Transitions], dict[str, Tensor]]:
        assert isinstance(model, Ensembled)  # ``needs``
        uncertainty: list[Tensor] = []

        def move(latent: Latent, action: Float[Tensor, "N A"]) -> Latent:
            place = deal(len(action), model.num_members, action.device)
            uncertainty.append(unlike_the_rest(model, latent, action, place))
            return move_dealt(model, latent, action, place)

        steps = branch(self, model, start, real, length, move)
        return self.masked(steps, uncertainty, real.weight.sum(dtype=torch.float64))

    def masked(
        self, steps: list[Transitions], uncertainty: list[Tensor], starts: Float[Tensor, ""]
    ) -> tuple[list[Transitions], dict[str, Tensor]]:
        """The same transitions, penalised, and of no weight where the mask is 0."""
        config, found, metrics = self.config, [], {}
        passed = torch.ones_like(steps[0].weight)
        living, kept = [], []
        for h, (step, doubt) in enumerate(zip(steps, uncertainty, strict=True)):
            living.append(passed * step.weight)
            mask = least(doubt, living[h], kept_share(h, len(steps), config.kept) * starts)
            kept.append(living[h] * mask)
            passed = passed * mask if config.mode == "hard-stop" else passed
            found.append(step._replace(reward=step.reward - config.penalty * doubt, weight=kept[h]))
            metrics[f"kept_{h}"] = kept[h].sum() / starts.float().clamp_min(1)
        doubt, counts = torch.stack(uncertainty), torch.stack(kept)
        dropped = torch.stack(living) - counts
        size = (counts * torch.stack([step.reward for step in steps]).abs()).sum()
        metrics["uncertainty_kept"] = (counts * doubt).sum() / counts.sum().clamp_min(1e-8)
        metrics["uncertainty_dropped"] = (dropped * doubt).sum() / dropped.sum().clamp_min(1e-8)
        metrics["penalty_to_reward"] = config.penalty * (counts * doubt).sum() / size.clamp_min(1e-8)
        return found, metrics


def kept_share(step: int, length: int, kept: float) -> float:
    """w_h: what counts of all rows at step h of H; falls in equal steps, and its mean over them is ``kept``."""
    return min(1.0, 2 * kept * (length - step) / (length + 1))


def least(
    uncertainty: Float[Tensor, " N"], living: Float[Tensor, " N"], most: Float[Tensor, ""]
) -> Float[Tensor, " N"]:
    """1 for the rows with the smallest uncertainty, as many as ``living`` adds up to at most ``most`` for; else 0.

    With rows that are living (1) or not (0) these are the ``floor(most)`` least uncertain ones of the living. Only the
    order of the uncertainties matters. Nothing here waits for a GPU.
    """
    order = uncertainty.argsort(stable=True)
    taken = living[order].cumsum(0, dtype=torch.float64) <= most + 1e-6  # rounding must not cost a row
    return torch.zeros_like(living).scatter(0, order, taken.to(living.dtype))


def deal(rows: int, members: int, device: torch.device) -> Int64[Tensor, " N"]:
    """A place of its own for every row in ``members`` groups of equal size: each row's group is uniform."""
    return torch.randperm(_group(rows, members) * members, device=device)[:rows]


def _group(rows: int, members: int) -> int:
    return -(-rows // members)


def unlike_the_rest(
    model: Ensembled, latent: Latent, action: Float[Tensor, "N A"], place: Int64[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """u: KL of the member at each row's place from the other members as one distribution, in nats."""
    every = model.one_vs_rest(model.member_stats(latent, action))
    return every.gather(0, place[None] // _group(len(place), model.num_members))[0]


def move_dealt(model: Ensembled, latent: Latent, action: Float[Tensor, "N A"], place: Int64[Tensor, " N"]) -> Latent:
    """One imagined step of every row by the member at its place; places that are left over move row 0 for nothing."""
    members, group = model.num_members, _group(len(place), model.num_members)
    row = torch.zeros(members * group, dtype=place.dtype, device=place.device)
    row = row.scatter(0, place, torch.arange(len(place), device=place.device))

    def grouped(part: Tensor) -> Tensor:
        return part[row].unflatten(0, (members, group))

    moved = model.imagine_members(map_latent(grouped, latent), grouped(action))
    return map_latent(lambda part: part.flatten(0, 1)[place], moved)


def move_by_any_member(model: Ensembled) -> Move:
    """One imagined step of each row by a member of its own, drawn anew."""

    def move(latent: Latent, action: Float[Tensor, "N A"]) -> Latent:
        return move_dealt(model, latent, action, deal(len(action), model.num_members, action.device))

    return move
