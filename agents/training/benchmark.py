"""How fast are the parts? Medians of many short turns, and what is compared takes turns in one process.

Machines are shared and drift, so a ratio of two medians of the same process says more than either of them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.base import Agent
from agents.pretrained import Trained
from agents.training.config import RunConfig
from agents.training.evaluate import Stage, evaluate_agent, evaluate_baselines
from agents.training.policies import AgentPolicy
from worldmodels.base import Spaces, WorldModel


class Timing(NamedTuple):
    """Seconds of each turn."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a share of the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def take_turns(work: dict[str, Callable[[], Any]], turns: int, device: torch.device) -> dict[str, Timing]:
    """Call each once to warm up, then all of them in turn, ``turns`` times; whole calls, the device waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(turns + 1):
        for name, call in work.items():
            begin = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(values) for name, values in seconds.items()}


def act(
    models: dict[str, tuple[RunConfig, WorldModel, Agent]], spaces: Spaces, envs: list[int], turns: int
) -> list[dict[str, Any]]:
    """Deciding on actions, images to actions and nothing else: one row for each agent and number of environments."""
    device = next(next(iter(models.values()))[1].parameters()).device
    work: dict[str, Callable[[], Any]] = {}
    for name, (_, model, agent) in models.items():
        for count in envs:
            policy = AgentPolicy(model, agent, count, explore=False, seed=0)
            obs = torch.randint(256, (count, *spaces.image), dtype=torch.uint8).numpy()
            first = torch.zeros(count, dtype=torch.bool).numpy()
            work[f"{name} {count}"] = lambda policy=policy, obs=obs, first=first: policy(obs, first)
    timings = take_turns(work, turns, device)
    rows = []
    for name in models:
        alone = timings[f"{name} {envs[0]}"].median
        for count in envs:
            timing = timings[f"{name} {count}"]
            rows.append({
                "agent": name, "envs": count, "ms": 1e3 * timing.median, "spread": timing.spread,
                "actions_per_s": count / timing.median, "times_the_first": timing.median / alone,
            })  # fmt: skip
    return rows


def uses(trained: dict[str, Trained], stage: Stage, episodes: int, resamples: int = 10_000) -> list[dict[str, Any]]:
    """What each of several agents makes of the same world model: returns on the same seeds, and actions per second.

    ``low`` and ``high`` are the 95 % percentile bootstrap interval of the mean over episodes. Random play comes last.
    """
    rows = []
    for name, (_, model, agent) in trained.items():
        begin = time.perf_counter()
        played = evaluate_agent(stage, model, agent, episodes)
        seconds = time.perf_counter() - begin
        rows.append(row(name, played.returns, resamples) | {"actions_per_s": sum(played.lengths) / seconds})
    spaces = next(iter(trained.values())).model.spaces
    random = evaluate_baselines(stage, spaces, episodes)["random"]
    return [*rows, row("random", random.returns, resamples)]


def row(name: str, returns: list[float], resamples: int) -> dict[str, Any]:
    values, draw = np.array(returns), np.random.default_rng(0)
    means = values[draw.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"agent": name, "mean": float(values.mean()), "low": float(low), "high": float(high), "returns": returns}
