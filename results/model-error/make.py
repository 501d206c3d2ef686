"""Measures and draws what a model that is wrong in one region does to STEVE and M2AC: seconds, one thread.

Writes ``numbers.json`` beside itself and ``docs/images/model-error.png``. matplotlib is needed for this picture alone
and is not one of the project's dependencies: ``pip install matplotlib``, then ``python results/model-error/make.py``.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from model_error import MEMBERS, m2ac_shares, steve_weights  # noqa: E402

NOISE = (0.0, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SEEDS = tuple(range(5))


def measure(function: Callable[..., tuple[float, float]]) -> dict[str, list[list[float]]]:
    """For each noise, what each seed gives: inside of the region and outside."""
    found = [[function(noise, seed) for seed in SEEDS] for noise in NOISE]
    return {
        where: [[round(pair[i], 5) for pair in pairs] for pairs in found]
        for i, where in enumerate(("inside", "outside"))
    }


def draw(axis: Any, numbers: dict[str, list[list[float]]], title: str, label: str) -> None:
    """Mean over seeds, a band from the least to the greatest; noise 0 is drawn at the left end."""
    x = [noise or 0.001 for noise in NOISE]
    for where, colour in (("inside", "#c0392b"), ("outside", "#2c6fbb")):
        values = torch.tensor(numbers[where])
        axis.plot(x, values.mean(1), "o-", color=colour, label=f"{where} of the region", markersize=4)
        axis.fill_between(x, values.amin(1), values.amax(1), color=colour, alpha=0.2, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks([0.001, 0.01, 0.1, 1.0], ["0", "0.01", "0.1", "1"])
    axis.minorticks_off()
    axis.set(title=title, ylabel=label, xlabel="std of the noise in the region")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = {"noise": NOISE, "seeds": SEEDS, "steve": measure(steve_weights), "m2ac": measure(m2ac_shares)}
    (Path(__file__).parent / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw(left, numbers["steve"], f"STEVE, 1 member of {MEMBERS} is wrong", "weight of imagined horizons")
    draw(right, numbers["m2ac"], f"M2AC, {MEMBERS} members of {MEMBERS} are wrong", "share of transitions that is kept")
    figure.savefig(ROOT / "docs/images/model-error.png", dpi=100, metadata={"Software": None})
