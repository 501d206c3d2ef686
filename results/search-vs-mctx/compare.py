"""Our tree search on the worlds, roots and noise of ``run_mctx.py``, beside what mctx found.

    python results/search-vs-mctx/compare.py tests/data/mctx.npz results/search-vs-mctx/compared.json

``visits`` and ``nodes`` are about whole trees: every edge's count, every node's place. ``best`` is about the actions
to execute; the others are largest differences, float32 on both sides. ``deepest`` is the longest path that a tree has.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Generator, Tensor

from agents.planning import PUCT, Gumbel, Root, Searched, Step, gumbel
from agents.planning.tree import NONE


def search(case: dict[str, Any], world: dict[str, Tensor], noise: Tensor, invalid: Tensor) -> Searched:
    def recurrent(state: Tensor, action: Tensor, generator: Generator | None) -> Step:
        reached = world["next"][state, action]
        reward, discount = world["reward"][state, action], world["discount"][state, action]
        return Step(reached, reward, discount, world["logits"][reached], world["value"][reached])

    state = torch.arange(len(noise))
    root = Root(world["logits"][state], world["value"][state], state)
    size: dict[str, Any] = {"simulations": case["simulations"], "max_depth": case["max_depth"], "least_range": 1e-8}
    if case["search"] == "puct":
        puct = PUCT(
            type="puct", **size, c1=1.25, c2=19652.0, stretch="siblings", noise=0.3, noise_share=0.0, temperature=0.0
        )  # fmt: skip
        return puct(root, recurrent, None, explore=True, invalid=invalid)
    halving = Gumbel(
        type="gumbel", **size, considered=16, c_visit=case["maxvisit_init"], c_scale=case["value_scale"],
        stretch=case["rescale_values"],
    )  # fmt: skip
    with mock.patch.object(gumbel, "gumbel_noise", lambda like, generator: noise):
        return halving(root, recurrent, None, explore=True, invalid=invalid)


def compare(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each case: the settings, and what is equal."""
    rows = []
    for number, case in enumerate(json.loads(str(arrays["cases"]))):
        theirs = part_of(arrays, f"case{number}/")
        world = part_of(arrays, f"world{case['world']}/")
        ours = search(case, world, theirs["noise"], theirs["invalid"])
        tree = ours.tree
        there = tree.parent != NONE
        there[:, 0] = True
        means = tree.first(tree.parent.shape[1]).mean_value
        rows.append(case | {
            "visits": torch.equal(tree.visits.long(), theirs["visits"].long()),
            "nodes": torch.equal(tree.child, theirs["child"].long()),
            "best": torch.equal(ours.action, theirs["action"].long()),
            "weights": (ours.weights - theirs["weights"]).abs().max().item(),
            "value": (ours.value - theirs["value"]).abs().max().item(),
            "node_values": (means - theirs["node_values"])[there].abs().max().item(),
            "deepest": int(depths(tree.parent).max()),
        })  # fmt: skip
    return rows


def part_of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)}


def depths(parent: Tensor) -> Tensor:
    """Edges between each node and the root; 0 for nodes that are not there."""
    depth = torch.zeros_like(parent)
    for i in range(1, parent.shape[1]):
        above = depth.gather(1, parent[:, i : i + 1].clamp_min(0)).squeeze(1) + 1
        depth[:, i] = torch.where(parent[:, i] == NONE, 0, above)
    return depth


def main(data: Path, out: Path) -> None:
    with np.load(data, allow_pickle=False) as arrays:
        rows = compare(dict(arrays))
    out.write_text("[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
