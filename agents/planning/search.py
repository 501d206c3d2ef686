"""What planners share: the space they search, what they hand over, and how beliefs are drawn from and refitted.

Letters: B rows (environments, which never exchange anything), N candidates, K elites, H steps, A action dimensions.
A ``Belief`` says which action sequences are worth a try: an independent normal for every entry, or, where actions are
discrete, an independent categorical for every step.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from agents.planning.noise import cut

Score = Callable[[Float[Tensor, "B N H A"]], Float[Tensor, "B N"]]
"""Returns to maximise. Non-finite ones, infinity too, lose against all others."""

SMOOTHING = 0.1  # added to the count of every discrete action when probabilities are refitted
REOPENED = 0.5  # share of the uniform distribution in the probabilities that a next search begins with


@dataclass(frozen=True)
class SearchSpace:
    """Entries in [-bound, bound], or any number where ``bound`` is None; one-hot of length ``dim`` where discrete."""

    dim: int
    discrete: bool
    bound: float | None = 1.0

    def __post_init__(self) -> None:
        if self.dim < 1 or (self.bound is not None and not self.bound > 0):
            raise ValueError(f"dim and bound must be above 0, not {self.dim} and {self.bound}")

    def centre(self, batch: int, horizon: int, device: torch.device) -> Float[Tensor, "B H A"]:
        """The mean of a search that knows nothing: 0, or equal probabilities."""
        return torch.full((batch, horizon, self.dim), 1 / self.dim if self.discrete else 0.0, device=device)

    def valid(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """Actions within the bounds; one-hot actions from probabilities or logits."""
        if self.discrete:
            return F.one_hot(actions.argmax(-1), self.dim).to(actions)
        return actions if self.bound is None else actions.clamp(-self.bound, self.bound)


class Plan(NamedTuple):
    """A warm start: what one search hands to the next, one environment step later.

    ``mean`` is where a search begins, probabilities where actions are discrete. ``elites`` are sequences to try again,
    ignored in rows that have not ``begun``; their last action is drawn anew.
    """

    mean: Float[Tensor, "B H A"]
    elites: Float[Tensor, "B E H A"]
    begun: Bool[Tensor, " B"]


class Found(NamedTuple):
    """The result of a search: what to execute, the best sequence evaluated and its score, and the next warm start.

    Where no score was finite, ``score`` is -inf and ``best`` the valid sequence nearest to where the search began.
    """

    actions: Float[Tensor, "B H A"]
    score: Float[Tensor, " B"]
    best: Float[Tensor, "B H A"]
    plan: Plan


class Belief(NamedTuple):
    mean: Float[Tensor, "B H A"]  # probabilities where actions are discrete
    std: Float[Tensor, "B H A"]  # of no meaning where actions are discrete


class Best(NamedTuple):
    actions: Float[Tensor, "B H A"]
    score: Float[Tensor, " B"]


def first_plan(batch: int, horizon: int, kept: int, space: SearchSpace, device: torch.device) -> Plan:
    """The warm start at the beginning of an episode, with room for ``kept`` sequences."""
    mean = space.centre(batch, horizon, device)
    elites = space.valid(mean).unsqueeze(1).repeat(1, kept, 1, 1)
    return Plan(mean, elites, torch.zeros(batch, dtype=torch.bool, device=device))


def next_plan(mean: Float[Tensor, "B H A"], elites: Float[Tensor, "B E H A"]) -> Plan:
    return Plan(mean, elites, torch.ones(len(mean), dtype=torch.bool, device=mean.device))


def shift(mean: Float[Tensor, "B H A"], last: Float[Tensor, "B 1 A"], space: SearchSpace) -> Float[Tensor, "B H A"]:
    """A plan seen from one step later, ``last`` appended, ``reopened``."""
    return reopened(torch.cat([mean[:, 1:], last], 1), space)


def reopened(mean: Float[Tensor, "B H A"], space: SearchSpace) -> Float[Tensor, "B H A"]:
    """What a search begins with to look around ``mean``: probabilities are moved half way to uniform ones.

    That is what a std that begins anew does for continuous actions; without it a discrete search could never leave what
    it once converged to.
    """
    return (1 - REOPENED) * mean + REOPENED / space.dim if space.discrete else mean


def draw(
    belief: Belief, noise: Float[Tensor, "B N H A"], space: SearchSpace, truncated: bool = False
) -> Float[Tensor, "B N H A"]:
    """Sequences of valid actions from standard normal noise.

    Continuous: mean + std * noise, clipped; ``truncated`` cuts the noise at 2 std and lowers the std until that fits
    between the bounds, so that nothing is clipped (PETS). Discrete: Phi(noise) drives the Gumbel-max trick, a Gaussian
    copula, so noise that is coloured along time makes actions that last.
    """
    mean, std = belief.mean.unsqueeze(1), belief.std.unsqueeze(1)
    if space.discrete:
        uniform = torch.special.ndtr(noise).clamp(1e-20, 1 - 1e-7)  # of single precision
        return space.valid(mean.log() - torch.log(-torch.log(uniform)))
    if truncated:
        if space.bound is not None:
            std = torch.minimum(std, (space.bound - mean.abs()).clamp_min(0) / 2)
        noise = cut(noise)
    return space.valid(mean + std * noise)


def evaluate(score: Score, candidates: Float[Tensor, "B N H A"]) -> Float[Tensor, "B N"]:
    """Scores in which everything non-finite is -inf."""
    scores = score(candidates)
    if scores.shape != candidates.shape[:2]:
        raise ValueError(f"a score of {tuple(candidates.shape)} candidates has to be {tuple(candidates.shape[:2])}, "
                         f"not {tuple(scores.shape)}")  # fmt: skip
    return torch.where(scores.isfinite(), scores, -torch.inf).to(candidates.dtype)


def top(
    candidates: Float[Tensor, "B N H A"], scores: Float[Tensor, "B N"], count: int
) -> tuple[Float[Tensor, "B K H A"], Float[Tensor, "B K"]]:
    """The ``count`` best sequences and their scores, best first."""
    values, index = scores.topk(count, 1)
    return torch.take_along_dim(candidates, index[..., None, None], 1), values


def no_best(plan: Plan, space: SearchSpace) -> Best:
    """What the first finite score replaces."""
    return Best(space.valid(plan.mean), torch.full_like(plan.mean[:, 0, 0], -torch.inf))


def better(best: Best, candidates: Float[Tensor, "B N H A"], scores: Float[Tensor, "B N"]) -> Best:
    """The best of the candidates where it beats the best so far."""
    actions, score = (part.squeeze(1) for part in top(candidates, scores, 1))
    return Best(where(score > best.score, actions, best.actions), torch.maximum(score, best.score))


def equal_weights(scores: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """1 / count for what has a finite score, 0 for the rest."""
    finite = scores.isfinite().to(scores)
    return finite / finite.sum(1, keepdim=True).clamp_min(1)


def refit(
    belief: Belief, actions: Float[Tensor, "B K H A"], weights: Float[Tensor, "B K"], space: SearchSpace
) -> Belief:
    """The belief that fits weighted sequences best; weights sum to 1; where they sum to 0 or NaN, nothing changes.

    The variance is the biased one. Probabilities are smoothed counts, of as many samples as the weights are worth.
    """
    weight = weights[..., None, None]
    mean = (weight * actions).sum(1)
    std = (weight * (actions - mean.unsqueeze(1)).square()).sum(1).sqrt()
    if space.discrete:
        worth = 1 / weights.square().sum(1).clamp_min(1e-12)[:, None, None]
        mean = (worth * mean + SMOOTHING) / (worth + SMOOTHING * space.dim)
    return keep(weights.sum(1) > 0, Belief(mean, std), belief)


def keep(rows: Bool[Tensor, " B"], new: Belief, old: Belief) -> Belief:
    """``new`` in these rows, ``old`` in the others."""
    return Belief(where(rows, new.mean, old.mean), where(rows, new.std, old.std))


def where(rows: Bool[Tensor, " B"], new: Float[Tensor, "B *S"], old: Float[Tensor, "B *S"]) -> Float[Tensor, "B *S"]:
    return torch.where(rows.view(-1, *[1] * (new.ndim - 1)), new, old)


def mix(old: Tensor, new: Tensor, momentum: float) -> Tensor:
    return momentum * old + (1 - momentum) * new


def chunked(score: Score, rows: int) -> Score:
    """``score`` on at most ``rows`` sequences (B * N) at once, yet at least one for each of the B rows.

    The same result where a score draws no noise of its own.
    """
    if rows < 1:
        raise ValueError(f"rows must be 1 or more, not {rows}")

    def in_chunks(candidates: Tensor) -> Tensor:
        parts = candidates.split(max(1, rows // len(candidates)), 1)
        return torch.cat([score(part) for part in parts], 1)

    return in_chunks


RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("horizon", "iterations", "candidates", "elites"), (lambda v: v >= 1, "1 or more")),
    **dict.fromkeys(("initial_std", "temperature", "learning_rate"), (lambda v: v > 0, "above 0")),
    **dict.fromkeys(("min_std", "epsilon", "beta"), (lambda v: v >= 0, "0 or more")),
    "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "kept": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "decay": (lambda v: v >= 1, "1 or more"),
}
"""What the values of planners may be, by the names of their fields."""


def check(planner: Any) -> None:
    """Raise a ``ValueError`` that begins with the name of the field that is out of its range."""
    values = {field.name: getattr(planner, field.name) for field in fields(planner)}
    for name, value in values.items():
        fits, range_ = RANGES.get(name, (lambda v: True, ""))
        if not fits(value):
            raise ValueError(f"{name} must be {range_}, not {value}")
    if values.get("elites", 0) > values["candidates"]:
        raise ValueError(f"elites must be at most the {values['candidates']} candidates, not {values['elites']}")
