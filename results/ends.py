"""Draws how runs ended: a panel for each folder, a dot for each seed's last evaluation, a line for an agent's mean.

    python results/ends.py docs/images/offline.png results/offline/random results/offline/medium results/offline/expert

A folder holds AGENT/seedN/metrics.jsonl. The dotted line is what random actions get. ``pip install matplotlib``, which
is not one of the project's dependencies.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from curves import colors_of, random_return
from summarise import evaluations, runs_of


def main(out: Path, folders: list[Path]) -> None:
    size = (3.2 * len(folders), 3.2)
    figure, panels = plt.subplots(1, len(folders), figsize=size, squeeze=False, sharey=True, layout="constrained")
    colors = colors_of(folders)
    for panel, folder in zip(panels[0], folders, strict=True):
        found = runs_of(folder)
        for place, (agent, runs) in enumerate(found.items()):
            ends = [list(evaluations(run, "return_mean", float("inf")).values())[-1] for run in runs]
            panel.scatter([place] * len(ends), ends, s=18, color=colors[agent])
            panel.hlines(np.mean(ends), place - 0.25, place + 0.25, color=colors[agent])
            panel.axhline(random_return(runs[0]), color="grey", linestyle=":", linewidth=1)
        panel.set_xticks(range(len(found)), list(found), rotation=25, ha="right")
        panel.set_title(folder.name)
    panels[0][0].set_ylabel("return at the end")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
