"""What a step of experience costs: to make one in the environments, and to keep and draw it again."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.training import cli
from agents.training.benchmark.timing import Report, Timing, machine, take_turns
from agents.training.config import RunConfig
from agents.training.run import build_networks, packed_bytes
from worldmodels.base import Spaces
from worldmodels.envs import EnvPool
from worldmodels.replay.episodes import read_episode
from worldmodels.replay.memory import Replay
from worldmodels.replay.store import EpisodeStore

CPU = torch.device("cpu")
PLAYED = 400  # steps at least, in whole episodes, of which the bytes on disk are the mean


class Stepper:
    """A pool that random actions are played in; ``workers`` 0 is one environment in this process."""

    def __init__(self, config: RunConfig, workers: int):
        seeds, kind = list(range(max(1, workers))), "process" if workers else "serial"
        self.pool = EnvPool(config.task, config.env, seeds, kind, config.collect.worker_timeout_s)
        self._draw = np.random.default_rng(0)
        self.pool.reset()

    def actions(self) -> np.ndarray:
        spaces, count = self.pool.spaces, self.pool.num_envs
        if spaces.discrete:
            return np.eye(spaces.action_dim, dtype=np.float32)[self._draw.integers(spaces.action_dim, size=count)]
        return self._draw.uniform(-1, 1, (count, spaces.action_dim)).astype(np.float32)

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.pool.step(self.actions())


def env(
    tasks: list[str], qualities: list[str], workers: list[int], steps: int, settings: list[str], turns: int = 10
) -> Report:
    """Steps and images with random actions, one row for each task, render quality and number of worker processes.

    A turn is ``steps`` steps of the whole pool, the resets among them included. ``times_the_first`` is the ratio of
    images per second to the task's first row. Raises ``ValueError``.
    """
    with ExitStack() as stack:
        steppers: dict[tuple[str, str, int], Stepper] = {}
        for task in tasks:
            for quality in qualities:
                words = ["--agent", "none", *settings, "--task", task, "--env.quality", quality]
                config = cli.parse(words).config
                for count in workers:
                    stepper = steppers[config.task, quality, count] = Stepper(config, count)
                    stack.callback(stepper.pool.close)
        work = {name: lambda stepper=stepper: stepper.play(steps) for name, stepper in steppers.items()}
        timings = take_turns(work, turns, CPU)
        rows = [env_row(name, steppers[name], timing, steps) for name, timing in timings.items()]
    firsts: dict[str, float] = {}
    for row in rows:
        first = firsts.setdefault(row["task"], row["images_per_s"])
        row["times_the_first"] = row["images_per_s"] / first
    return Report({"device": machine(CPU), "turns": turns, "steps": steps, "settings": settings}, rows)


def env_row(name: tuple[str, str, int], stepper: Stepper, timing: Timing, steps: int) -> dict[str, Any]:
    task, quality, workers = name
    pool, seconds = stepper.pool, timing.median / steps
    return {
        "task": task, "quality": pool.fingerprint.get("quality", quality), "workers": workers, "envs": pool.num_envs,
        "ms": 1e3 * seconds, "spread": timing.spread, "images_per_s": pool.num_envs / seconds,
        "env_steps_per_s": pool.num_envs * pool.action_repeat / seconds,
    }  # fmt: skip


def replay(sizes: list[int], settings: list[str], turns: int = 10) -> Report:
    """Drawing a batch of windows and writing latents back, one row for each number of steps held; bytes a step.

    Episodes of random actions are played and written to disk once, and repeated to fill every replay. Bytes in memory
    are those claimed, latents included. Raises ``ValueError``.
    """
    config = cli.parse(settings).config
    with tempfile.TemporaryDirectory() as folder:
        spaces, rows, on_disk = played(config, Path(folder))
    model, _ = build_networks(config, spaces)
    packed = packed_bytes(config, model)
    replays = {size: filled(spaces, rows, size, packed) for size in sizes}
    batch, length = config.replay.batch, config.replay.length
    draws = take_turns({size: lambda r=r: r.sample(batch, length) for size, r in replays.items()}, turns, CPU)
    writes = {}
    if packed:
        latents = torch.randint(256, (batch, length, packed), dtype=torch.uint8)
        index = {size: r.sample(batch, length).index for size, r in replays.items()}
        work = {size: lambda r=r, size=size: r.write_back(index[size], latents) for size, r in replays.items()}
        writes = take_turns(work, turns, CPU)
    table = [
        {
            "steps": size, "memory_mb": Replay.bytes_needed(spaces, size, packed) / 1e6,
            "memory_bytes_per_step": Replay.bytes_needed(spaces, size, packed) / size,
            "disk_bytes_per_step": on_disk, "latent_bytes_per_step": packed,
            "sample_ms": 1e3 * draws[size].median, "sample_spread": draws[size].spread,
            "sequences_per_s": batch / draws[size].median, "steps_per_s": batch * length / draws[size].median,
        } | ({"write_back_ms": 1e3 * writes[size].median} if packed else {})
        for size in sizes
    ]  # fmt: skip
    about = {"task": config.task, "quality": config.env.quality, "batch": batch, "length": length}
    return Report(about | {"device": machine(CPU), "turns": turns, "settings": settings}, table)


def played(config: RunConfig, folder: Path) -> tuple[Spaces, dict[str, np.ndarray], float]:
    """Rows of whole episodes of random actions, as they came back from disk, and the bytes there of each row."""
    stepper = Stepper(config, workers=0)
    with stepper.pool as pool:
        store = EpisodeStore(
            folder, pool.spaces, 1, task=config.task, fingerprint=pool.fingerprint, seed=0, background=False
        )
        step, held = pool.reset(), 0
        while held < PLAYED or len(store.tails[0]):
            action = stepper.actions()
            store.add(step, action)
            step, held = pool.step(action), held + 1
        spaces = pool.spaces
    episodes = [read_episode(folder / name).rows() for name in store.names]
    rows = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    return spaces, rows, sum((folder / name).stat().st_size for name in store.names) / len(rows["reward"])


def filled(spaces: Spaces, rows: dict[str, np.ndarray], size: int, packed: int) -> Replay:
    """A replay of one stream that holds ``size`` steps, with latents of all of them."""
    made = Replay(spaces, size, 1, packed)
    while len(made) < size:
        made.extend(0, {name: values[: size - len(made)] for name, values in rows.items()})
    if packed:
        steps = torch.arange(size)[None]
        made.write_back(steps, torch.zeros(1, size, packed, dtype=torch.uint8))
    return made
