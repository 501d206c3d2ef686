"""Numbers over few runs, with intervals that say how few they are.

Interquartile mean, stratified bootstrap, performance profiles, probability of improvement: Agarwal et al. (2021),
"Deep reinforcement learning at the edge of the statistical precipice", arXiv 2108.13264. A stratum is a task: runs are
resampled within it. Letters: N runs, R resamples.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
# Student's t at 97.5 %, for 1 to 30 degrees of freedom
T975 = (
    12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
    2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
    2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272,
)  # fmt: skip
Z975 = 1.959964


class Interval(NamedTuple):
    """An estimate and its 95 % interval; NaN at both ends where there is none."""

    value: float
    low: float
    high: float


def t975(freedom: int) -> float:
    """Student's t at 97.5 %: the table, beyond it two terms of Fisher and Cornish's expansion (error below 1e-4)."""
    if freedom <= len(T975):
        return T975[freedom - 1]
    first = (Z975**3 + Z975) / 4
    second = (5 * Z975**5 + 16 * Z975**3 + 3 * Z975) / 96
    return Z975 + first / freedom + second / freedom**2


def t_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of N numbers and its 95 % interval by Student's t; of a single number there is no interval."""
    x = np.asarray(values, float)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan)
    half = t975(len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def iqm(values: np.ndarray) -> np.ndarray:
    """The mean of the last axis without its lowest and highest quarter, each rounded down; of three numbers, of all."""
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(-1))


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of scores ``[..., N]`` above each of ``[K]`` thresholds: ``[..., K]``, falling from 1 to 0."""
    return np.asarray((scores[..., None] > thresholds).mean(-2))


def resampled(strata: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Of every stratum ``[n]``, ``[R, n]`` drawn from it with replacement."""
    rng = np.random.default_rng(seed)
    return [stratum[rng.integers(len(stratum), size=(resamples, len(stratum)))] for stratum in strata]


def bounds(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of resampled statistics ``[R, ...]``: percentile bootstrap."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.asarray(low), np.asarray(high)


def bootstrap(strata: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """A statistic of all N scores, ``[..., N]`` to ``[...]``, with its stratified bootstrap interval.

    With a single run for each task there is no interval.
    """
    scores = np.concatenate(list(strata))
    value = float(statistic(scores))
    if max(map(len, strata)) < 2:
        return Interval(value, math.nan, math.nan)
    low, high = bounds(statistic(np.concatenate(resampled(strata), axis=-1)))
    return Interval(value, float(low), float(high))


def improvement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Interval:
    """The chance that a run of ours beats one of theirs on the same task, mean over tasks; a tie counts half.

    With a single run of one of both for a task there is no interval.
    """

    def chance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
        pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(a, b, strict=True)]
        return np.asarray(np.mean([((x > y) + 0.5 * (x == y)).mean((-2, -1)) for x, y in pairs], axis=0))

    value = float(chance(ours, theirs))
    if min(map(len, (*ours, *theirs))) < 2:
        return Interval(value, math.nan, math.nan)
    low, high = bounds(chance(resampled(ours), resampled(theirs, seed=1)))
    return Interval(value, float(low), float(high))


def mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[Interval]]:
    """Mean of several curves (x, y) with x rising, and its t interval, at every x that any of them has.

    Between its own points a curve is linear; before its first and beyond its last it does not count.
    """
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    values = np.stack([np.interp(grid, x, y, left=math.nan, right=math.nan) for x, y in curves])
    return grid, [t_interval(column[~np.isnan(column)]) for column in values.T]
