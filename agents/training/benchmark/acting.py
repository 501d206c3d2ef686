"""What deciding on an action costs, and what several agents make of one run's world model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import Simulating
from agents.pretrained import load_trained, load_with_agent
from agents.training import cli
from agents.training.benchmark.timing import Report, machine, take_turns
from agents.training.benchmark.update import Counter, matmul_peak, variants
from agents.training.devices import choose_device
from agents.training.evaluate import Stage, evaluate_agent, evaluate_baselines
from agents.training.policies import AgentPolicy
from agents.training.run import build_networks
from worldmodels.envs import EnvPool


def act(
    names: list[str],
    settings: list[str],
    envs: list[int],
    turns: int = 10,
    against: str | None = None,
    clock: str = "wall",
) -> Report:
    """Deciding on actions, images to actions and nothing else: one row for each agent and number of environments.

    ``settings`` are words of the command line of training, ``against`` those to add for a second row of each.
    ``matmul_share`` is the arithmetic of a decision over that of float32 products in the same time;
    ``simulations_per_s`` is there for agents that grow trees. Raises ``ValueError``.
    """
    cases = variants(settings, against, None)
    configs = {(name, case): cli.parse(["--agent", name, *cases[case]]).config for name in names for case in cases}
    first = next(iter(configs.values()))
    device = choose_device(first.training.device)
    with EnvPool(first.task, first.env, [0], "serial", first.collect.worker_timeout_s) as pool:
        spaces = pool.spaces
    work: dict[tuple[str, str, int], Callable[[], Any]] = {}
    simulations: dict[tuple[str, str], int] = {}
    for (name, case), config in configs.items():
        model, agent = build_networks(config, spaces)
        simulations[name, case] = agent.simulations if isinstance(agent, Simulating) else 0
        for count in envs:
            policy = AgentPolicy(model.to(device).eval(), agent.to(device).eval(), count, explore=False, seed=0)
            obs = torch.randint(256, (count, *spaces.image), dtype=torch.uint8).numpy()
            begins = torch.zeros(count, dtype=torch.bool).numpy()
            work[name, case, count] = lambda policy=policy, obs=obs, begins=begins: policy(obs, begins)
    timings, peak, rows = take_turns(work, turns, device, clock), matmul_peak(device, "fp32", clock), []
    for (name, case, count), timing in timings.items():
        with Counter() as counter:
            work[name, case, count]()
        speed = counter.flops / timing.median
        rows.append({
            "agent": name, "case": "-" if case == "this" else case, "envs": count,
            "ms": 1e3 * timing.median, "spread": timing.spread,
            "actions_per_s": count / timing.median,
            **({"simulations_per_s": grown * count / timing.median} if (grown := simulations[name, case]) else {}),
            "times_the_first": timing.median / timings[name, case, envs[0]].median,
            "times_without": timing.median / timings[name, "this", count].median,
            "gflop": counter.flops / 1e9, "gflop_per_s": speed / 1e9, "matmul_share": speed / peak,
        })  # fmt: skip
    about = {"task": first.task, "preset": list(first.preset), "device": machine(device), "turns": turns}
    return Report(about | {"clock": clock, "matmul_gflop_per_s": round(peak / 1e9, 1)}, rows)


def uses(run: str | Path, names: list[str], settings: list[str], episodes: int, resamples: int = 10_000) -> Report:
    """What each of several agents makes of one run's world model: returns on the same seeds, and actions per second.

    The agent that trained it comes first, random play last. ``low`` and ``high`` are the 95 % percentile bootstrap
    interval of the mean over episodes. Raises ``ValueError``.
    """
    device = choose_device("auto")
    own = load_trained(run, device)
    trained = {f"own ({own.card.agent.name if own.card.agent else '-'})": own}
    trained |= {name: load_with_agent(run, name, settings, device) for name in names}
    stage = Stage(own.card.task, own.card.env)
    rows = []
    for name, (_, model, agent) in trained.items():
        begin = time.perf_counter()
        played = evaluate_agent(stage, model, agent, episodes)
        seconds = time.perf_counter() - begin
        rows.append(row(name, played.returns, resamples) | {"actions_per_s": sum(played.lengths) / seconds})
    random = evaluate_baselines(stage, own.model.spaces, episodes)["random"]
    rows.append(row("random", random.returns, resamples))
    about = {"run": str(run), "task": own.card.task, "env_steps": own.card.training.env_steps, "episodes": episodes}
    return Report(about | {"device": str(device)}, rows)


def row(name: str, returns: list[float], resamples: int) -> dict[str, Any]:
    values, draw = np.array(returns), np.random.default_rng(0)
    means = values[draw.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"agent": name, "mean": float(values.mean()), "low": float(low), "high": float(high), "returns": returns}
