"""Draws learning curves: a panel for each folder, a line for each agent in it, a band from the worst to the best seed.

    python results/curves.py docs/images/transfer.png results/transfer/reach-turned results/transfer/reach-light

A folder holds AGENT/seedN/metrics.jsonl. Runs on recorded data alone, which make no env steps, go by their updates.
The dotted line is what random actions get. matplotlib is not one of the project's dependencies: ``pip install
matplotlib``.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from summarise import evaluations, runs_of


def random_return(run: Path) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(line["eval/random_return"] for line in lines if "eval/random_return" in line)


def colors_of(folders: list[Path]) -> dict[str, str]:
    """A color for each agent, the same in all folders."""
    names = sorted({agent for folder in folders for agent in runs_of(folder)})
    return {name: f"C{index}" for index, name in enumerate(names)}


def draw(panel: plt.Axes, folder: Path, colors: dict[str, str]) -> None:
    """The curves of one folder, each over the evaluations that all its seeds have."""
    for agent, runs in runs_of(folder).items():
        curves = [evaluations(run, "return_mean", float("inf")) for run in runs]
        at = sorted(set.intersection(*map(set, curves)))
        values = np.array([[curve[x] for x in at] for curve in curves])
        x = np.array(at) / 1e3
        panel.fill_between(x, values.min(0), values.max(0), color=colors[agent], alpha=0.2, linewidth=0)
        panel.plot(x, values.mean(0), color=colors[agent], label=agent, marker="o", markersize=3)
        chance = random_return(runs[0])
    panel.axhline(chance, color="grey", linestyle=":", linewidth=1)
    panel.set(title=folder.name)
    panel.set_ylim(bottom=0)


def main(out: Path, folders: list[Path], unit: str) -> None:
    colors = colors_of(folders)
    figure, panels = plt.subplots(
        1, len(folders), figsize=(4 * len(folders) + 1, 3.2), squeeze=False, layout="constrained"
    )
    for panel, folder in zip(panels[0], folders, strict=True):
        draw(panel, folder, colors)
        panel.set_xlabel(f"{unit}, thousands")
    panels[0][0].set_ylabel("return")
    lines = [pair for panel in panels[0] for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    named = {label: line for line, label in lines}
    figure.legend(named.values(), named.keys(), fontsize=8, loc="outside right center")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--unit", default="env steps", help="what the horizontal axis counts")
    arguments = parser.parse_args()
    main(**vars(arguments))
