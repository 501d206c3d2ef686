"""How many env steps a saved world model saves: those to a threshold for each kind of run, and their ratio to scratch.

    python results/transfer/measure.py results/transfer/reach-turned 40 OUT.json

A folder holds KIND/seedN/metrics.jsonl, one KIND being ``scratch``. Between evaluations the return is linear in env
steps, and at 0 env steps it is that of random actions; the first point at the threshold counts. A run that ends below
it counts with all its env steps, so means with such a run are too small: ``>``. The speed-up is the mean of scratch
over that of the kind, ``>`` or ``<`` where one of them is such a mean, and none where both are. Intervals are 95 %
percentile bootstraps, each kind's runs resampled by themselves: of three runs they are too narrow.
"""

import json
import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.training.report.statistics import Interval, bootstrap, bounds, resampled

BASE = "scratch"


class Reached(NamedTuple):
    """Env steps to the threshold, or to the end of a run that did not reach it."""

    env_steps: float
    reached: bool


def evaluations(run: Path) -> dict[int, float]:
    """Mean return of each evaluation by env steps; of random actions at 0."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [line for line in lines if "eval/return_mean" in line]
    return {0: found[0]["eval/random_return"]} | {line["env_steps"]: line["eval/return_mean"] for line in found}


def first_at(curve: Mapping[int, float], threshold: float) -> Reached:
    """Where a curve, linear between its points, is first at or above the threshold."""
    points = sorted(curve.items())
    if points[0][1] >= threshold:
        return Reached(points[0][0], True)
    for (x0, y0), (x1, y1) in pairwise(points):
        if y1 >= threshold:
            return Reached(x0 + (x1 - x0) * (threshold - y0) / (y1 - y0), True)
    return Reached(points[-1][0], False)


def mean_of(runs: list[Reached]) -> Interval:
    return bootstrap([np.array([run.env_steps for run in runs])], lambda steps: steps.mean(-1))


def speed_up(base: list[Reached], runs: list[Reached]) -> tuple[Interval, str]:
    """The ratio of mean env steps, and ``>`` or ``<`` where it bounds the true one; NaN and ``?`` where it does not."""
    steps = [np.array([run.env_steps for run in kind]) for kind in (base, runs)]
    whole = [all(run.reached for run in kind) for kind in (base, runs)]
    if not any(whole):
        return Interval(math.nan, math.nan, math.nan), "?"
    draws = [resampled([kind], seed=seed)[0].mean(-1) for seed, kind in enumerate(steps)]
    low, high = bounds(draws[0] / draws[1]) if min(map(len, steps)) > 1 else (math.nan, math.nan)
    mark = {(True, True): "", (False, True): ">", (True, False): "<"}[whole[0], whole[1]]
    return Interval(float(steps[0].mean() / steps[1].mean()), float(low), float(high)), mark


def summary(kinds: Mapping[str, Mapping[str, Reached]]) -> dict[str, dict[str, Any]]:
    """Of each kind its runs, their mean and the speed-up, as JSON has them."""

    def plain(interval: Interval) -> dict[str, float | None]:
        return {name: None if math.isnan(x) else x for name, x in interval._asdict().items()}

    found = {}
    for kind, seeds in kinds.items():
        runs, base = list(seeds.values()), list(kinds[BASE].values())
        ratio, bound = speed_up(base, runs)
        found[kind] = {
            "runs": {seed: run._asdict() for seed, run in seeds.items()},
            "env_steps": plain(mean_of(runs)) | {"bound": "" if all(run.reached for run in runs) else ">"},
            "speed_up": None if kind == BASE else plain(ratio) | {"bound": bound},
        }
    return found


def cell(part: Mapping[str, Any] | None, digits: int, unit: float = 1.0) -> str:
    """An interval of ``summary`` in a table."""
    if part is None or part["value"] is None:
        return "" if part is None else part["bound"]
    value, low, high = (None if x is None else f"{x / unit:.{digits}f}" for x in (part[k] for k in Interval._fields))
    return f"{part['bound']} {value}".strip() + (f" ({low} to {high})" if low else "")


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Rows of markdown: thousands of env steps of each seed, their mean, the speed-up."""
    seeds = sorted({seed for kind in found.values() for seed in kind["runs"]})
    rows = [f"| kind | {' | '.join(seeds)} | mean, k | times as fast |", "|---" * (len(seeds) + 3) + "|"]
    for kind, part in found.items():
        runs = [part["runs"].get(seed) for seed in seeds]
        steps = ["" if run is None else f"{'' if run['reached'] else '> '}{run['env_steps'] / 1e3:.1f}" for run in runs]
        rows.append(
            f"| {kind} | {' | '.join(steps)} | {cell(part['env_steps'], 1, 1e3)} | {cell(part['speed_up'], 2)} |"
        )
    return rows


def main(folder: Path, threshold: float, out: Path) -> None:
    names = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=lambda name: (name != BASE, name))
    if BASE not in names:
        raise SystemExit(f"{folder}: no {BASE} there to compare with")
    kinds = {
        kind: {run.name: first_at(evaluations(run), threshold) for run in sorted((folder / kind).iterdir())}
        for kind in names
    }
    found = summary(kinds)
    print("\n".join(table(found)))
    about = {"folder": folder.name, "threshold": threshold}
    out.write_text(json.dumps({"about": about, "kinds": found}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
