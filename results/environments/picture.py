"""The three qualities of rendering side by side, the same moment in each: docs/images/quality.png

    python results/environments/picture.py docs/images/quality.png

Columns: full, fast, lean. Rows: walker-walk, cheetah-run, reacher-easy. 64x64 pixels, enlarged twice.
"""

import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from agents.training import cli
from worldmodels.envs import make_env

TASKS, QUALITIES = ("walker-walk", "cheetah-run", "reacher-easy"), ("full", "fast", "lean")


def shot(task: str, quality: str) -> np.ndarray:
    """The image after ten random actions, uint8 [64, 64, 3]."""
    words = ["--agent", "none", "--preset", "cpu", "--task", task, "--env.quality", quality]
    config = cli.parse(words).config
    env = make_env(config.task, config.env, seed=1)
    draw, step = np.random.default_rng(0), env.reset()
    for _ in range(10):
        step = env.step(draw.uniform(-1, 1, env.spaces.action_dim).astype(np.float32))
    env.close()
    return step.obs


def main(out: Path) -> None:
    rows = []
    for task in TASKS:
        images = [np.pad(shot(task, quality), ((2, 2), (2, 2), (0, 0)), constant_values=255) for quality in QUALITIES]
        rows.append(np.concatenate(images, 1))
    iio.imwrite(out, np.concatenate(rows, 0).repeat(2, 0).repeat(2, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
