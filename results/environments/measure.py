"""Steps a second beside dm_control as it comes: its own loop and ``physics.render``, in turns with each quality here.

    python results/environments/measure.py results/environments/speed.json

One process, one environment, images of 64x64, action repeat 2, random actions; a turn is 10 steps of each. Seconds are
CPU seconds of all threads, the software renderer's included: a busy machine changes them less than wall time.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from agents.training import cli
from agents.training.benchmark.stepping import CPU, Stepper
from agents.training.benchmark.timing import machine, processor, take_turns
from worldmodels.envs import gl

TASKS, QUALITIES, STEPS, TURNS = ("cartpole-balance", "walker-walk"), ("full", "fast", "lean"), 10, 9


class Plain:
    """dm_control with its defaults."""

    def __init__(self, task: str):
        gl.choose_backend()
        from dm_control import suite

        self.env = suite.load(*task.split("-"), task_kwargs={"random": 0})
        self._draw = np.random.default_rng(0)
        self.env.reset()

    def play(self, steps: int) -> None:
        bounds = self.env.action_spec()
        for _ in range(steps):
            action = self._draw.uniform(bounds.minimum, bounds.maximum)
            for _ in range(2):
                self.env.step(action)
            self.env.physics.render(64, 64, camera_id=0)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    rows, load = [], os.getloadavg()[0]
    for task in TASKS:
        ours = {}
        for quality in QUALITIES:
            words = ["--agent", "none", "--preset", "cpu", "--task", task, "--env.quality", quality]
            ours[quality] = Stepper(cli.parse(words).config, workers=0)
        work = {"dm_control": Plain(task), **ours}
        timings = take_turns(
            {name: lambda one=one: one.play(STEPS) for name, one in work.items()}, TURNS, CPU, clock="cpu"
        )
        first = timings["dm_control"]
        for name, timing in timings.items():
            ratios = [a / b for a, b in zip(first.seconds, timing.seconds, strict=True)]
            ms = 1e3 * timing.median / STEPS
            rows.append({"task": task, "quality": name, "cpu_ms": ms, "times_dm_control": float(np.median(ratios))})
            rows[-1] |= {"ratios": ratios}
            print(f"{task:18} {name:11} {ms:6.2f} ms  x{rows[-1]['times_dm_control']:.1f}")
        for stepper in ours.values():
            stepper.pool.close()
    about = {"processor": processor(), "machine": machine(CPU), "load": [load, os.getloadavg()[0]], "turns": TURNS}
    out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
