"""Return against simulations of a trained run of an agent that searches trees: 0 is the apprentice alone.

    python results/search-that-teaches/measure.py RUN OUT.json [EPISODES]

The same weights and the same seeds of evaluation for every size of the tree; only ``simulations`` differs.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agents.apprentice import TreeExpert
from agents.base import Simulating
from agents.pretrained import load_trained
from agents.training.evaluate import Stage, evaluate_agent

SIMULATIONS = (0, 1, 2, 4, 8, 16, 32)


def set_simulations(agent: Any, simulations: int) -> None:
    """Let it act with so many when it does not explore."""
    config = agent.config
    if simulations:
        search = replace(config.expert.search, simulations=simulations, max_depth=simulations)
        config = replace(config, expert=replace(config.expert, search=search))
    agent.config = replace(config, control="expert" if simulations else "apprentice")


def main(run: Path, out: Path, episodes: int = 64) -> None:
    torch.set_num_threads(1)
    card, model, agent = load_trained(run)
    if not isinstance(agent, Simulating) or not isinstance(agent.config.expert, TreeExpert):
        raise SystemExit(f"{run}: its agent searches no trees")
    rows = []
    for simulations in SIMULATIONS:
        set_simulations(agent, simulations)
        played = evaluate_agent(Stage(card.task, card.env), model, agent, episodes)
        rows.append({"simulations": simulations, **played.summary()})
        print(simulations, f"{rows[-1]['return_mean']:.3f} +- {rows[-1]['return_std']:.3f}")
    about = {"task": card.task, "env_steps": card.training.env_steps, "episodes": episodes}
    out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
