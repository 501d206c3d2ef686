"""Did the model help? Tables of evaluations, and each agent's difference from `sac` on the same seeds.

    python results/model-use/summarise.py results/model-use/reach 36.2
    python results/model-use/summarise.py results/model-use/walker-stand

A folder holds AGENT/seedN/metrics.jsonl. The number is a threshold; first env steps at or above it are told. `curve` is
the mean over all evaluations of a run, so that learning sooner counts; differences are over those that both have.
Intervals are Student's t at 95 % over the
seeds: wide, as three seeds are few.
"""

import json
import statistics
import sys
from pathlib import Path

from agents.training.report.statistics import t_interval


def evaluations(run: Path) -> dict[int, float]:
    """Mean return of each evaluation by env steps."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["env_steps"]: line["eval/return_mean"] for line in lines if "eval/return_mean" in line}


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    mean, _, high = t_interval(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:+.1f} +- {high - mean:.1f}"


def first_at(curve: dict[int, float], threshold: float) -> str:
    return next((f"{steps // 1000}k" for steps, value in curve.items() if value >= threshold), "-")


def main(folder: Path, threshold: float | None) -> None:
    agents = sorted(path.name for path in folder.iterdir() if path.is_dir())
    agents.sort(key=lambda name: name != "sac")
    curves = {a: {r.name: evaluations(r) for r in sorted((folder / a).iterdir())} for a in agents}
    steps = sorted({s for runs in curves.values() for curve in runs.values() for s in curve})
    print(f"| agent | seed | {' | '.join(f'{s / 1000:g}k' for s in steps)} | {'reached at' if threshold else ''} |")
    print("|---" * (len(steps) + 3) + "|")
    for agent, runs in curves.items():
        for seed, curve in runs.items():
            cells = " | ".join(f"{curve[s]:.1f}" if s in curve else "" for s in steps)
            print(f"| `{agent}` | {seed[4:]} | {cells} | {first_at(curve, threshold) if threshold else ''} |")
    print("\n| agent | last | curve | last, minus `sac` | curve, minus `sac` |\n|---|---|---|---|---|")
    for agent, runs in curves.items():
        last = {seed: curve[max(curve)] for seed, curve in runs.items()}
        whole = {seed: statistics.mean(curve.values()) for seed, curve in runs.items()}
        cells = [f"{statistics.mean(x.values()):.1f}" for x in (last, whole)]
        pairs = [(curve, curves["sac"][seed]) for seed, curve in runs.items() if seed in curves.get("sac", {})]
        ends = [own[max(own)] - sac[max(sac)] for own, sac in pairs]
        ways = [statistics.mean(own[step] - sac[step] for step in own if step in sac) for own, sac in pairs]
        for shared in (ends, ways):
            cells.append(interval(shared) if agent != "sac" and shared else "")
        print(f"| `{agent}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)
