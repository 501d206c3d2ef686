"""Tables of evaluations, and each agent's difference from a baseline on the same seeds.

    python results/summarise.py results/model-use/reach --baseline sac --threshold 36.2
    python results/summarise.py results/i2a --baseline a2c --metric terminal_share --digits 2

A folder holds AGENT/seedN/metrics.jsonl. First env steps at or above the threshold are told. `curve` is the mean over
all evaluations of a run, so that learning sooner counts; differences are over those that both have, and at the last of
them. Intervals are Student's t at 95 % over the seeds: wide, as three seeds are few. Runs on recorded data alone, which
make no env steps, go by their updates; --ends compares each run at its own end, for those that began at other points.
"""

import argparse
import json
import statistics
from pathlib import Path

from agents.training.report.statistics import t_interval


def evaluations(run: Path, metric: str, until: float) -> dict[int, float]:
    """What each evaluation gave, by env steps to the nearest thousand: environments side by side overshoot a little."""
    lines = [
        line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if f"eval/{metric}" in line
    ]
    moved = any(line["env_steps"] for line in lines)
    curve = {round(line["env_steps"], -3) if moved else line["updates"]: line[f"eval/{metric}"] for line in lines}
    return {steps: value for steps, value in curve.items() if steps <= until}


def runs_of(folder: Path) -> dict[str, list[Path]]:
    """The runs of each agent, both in order of names."""
    return {agent.name: sorted(agent.iterdir()) for agent in sorted(folder.iterdir()) if agent.is_dir()}


def interval(values: list[float], digits: int) -> str:
    """Mean and half the width of its 95 % interval."""
    mean, _, high = t_interval(values)
    return f"{mean:.{digits}f}" if len(values) < 2 else f"{mean:+.{digits}f} +- {high - mean:.{digits}f}"


def last_of(values: list[float]) -> float:
    return values[-1]


def first_at(curve: dict[int, float], threshold: float) -> str:
    return next((f"{steps // 1000}k" for steps, value in curve.items() if value >= threshold), "-")


def main(
    folder: Path, baseline: str, metric: str, threshold: float | None, until: float, digits: int, ends: bool
) -> None:
    found = sorted(runs_of(folder).items(), key=lambda pair: (pair[0] != baseline, pair[0]))
    read = {agent: {run.name: evaluations(run, metric, until) for run in runs} for agent, runs in found}
    curves = {agent: some for agent, runs in read.items() if (some := {seed: c for seed, c in runs.items() if c})}
    steps = sorted({s for runs in curves.values() for curve in runs.values() for s in curve})
    reached = "" if threshold is None else " reached at |"
    print(f"| agent | seed | {' | '.join(f'{s / 1000:.3g}k' for s in steps)} |{reached}")
    print("|---" * (len(steps) + 2 + bool(reached)) + "|")
    for agent, runs in curves.items():
        for seed, curve in runs.items():
            cells = " | ".join(f"{curve[s]:.{digits}f}" if s in curve else "" for s in steps)
            end = "" if threshold is None else f" {first_at(curve, threshold)} |"
            print(f"| `{agent}` | {seed[4:]} | {cells} |{end}")
    print(f"\n| agent | last | curve | last, minus `{baseline}` | curve, minus `{baseline}` |\n|---|---|---|---|---|")
    for agent, runs in curves.items():
        last = {seed: curve[max(curve)] for seed, curve in runs.items()}
        whole = {seed: statistics.mean(curve.values()) for seed, curve in runs.items()}
        cells = [f"{statistics.mean(x.values()):.{digits}f}" for x in (last, whole)]
        pairs = [(curve, curves[baseline][seed]) for seed, curve in runs.items() if seed in curves.get(baseline, {})]
        apart = [[own[step] - base[step] for step in own if step in base] for own, base in pairs]
        if ends:
            finals, ways = [own[max(own)] - base[max(base)] for own, base in pairs], []
        else:
            finals, ways = ([take(shared) for shared in apart if shared] for take in (last_of, statistics.mean))
        for shared in (finals, ways):
            cells.append(interval(shared, digits) if agent != baseline and shared else "")
        print(f"| `{agent}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--metric", default="return_mean")
    parser.add_argument("--threshold", type=float)
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="env steps or updates; later ones do not count"
    )
    parser.add_argument("--digits", type=int, default=1)
    parser.add_argument("--ends", action="store_true", help="compare each run's own last evaluation")
    arguments = parser.parse_args()
    main(**vars(arguments))
