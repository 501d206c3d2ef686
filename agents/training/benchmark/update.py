"""What one update of a learner costs, and its parts: sample, world model, agent, backward, optimiser, write-back.

The replay holds noise: what images show changes no shape. Nothing is collected and nothing is written.
"""

import shlex
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from agents.training import cli
from agents.training.allocator import keep_freed_memory
from agents.training.benchmark.timing import CLOCKS, Report, Timing, half_quartiles, machine, take_turns, wait_for
from agents.training.config import RunConfig
from agents.training.devices import choose_device, choose_precision
from agents.training.learner import Learner
from agents.training.run import build_networks, packed_bytes
from worldmodels.base import Spaces
from worldmodels.envs import EnvPool
from worldmodels.replay.memory import Replay
from worldmodels.strict import ConfigError

VARIED = {
    "length": "replay.length",
    "batch": "replay.batch",
    "horizon": "agent.imagination-horizon",
    "image": "env.size",
    "size": "preset",
}
"""Short names of what ``--vary`` can vary; a dotted setting will do as well. ``size`` takes 1m, 12m, ..."""


class Case:
    """A learner and a replay full of noise; ``update`` is what training does each time, with nothing around it."""

    def __init__(self, config: RunConfig, threads: int):
        self.config, self.threads = config, config.training.threads or threads
        self.device = choose_device(config.training.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.precision = choose_precision(config.training.precision, self.device)
        with EnvPool(config.task, config.env, [0], "serial", config.collect.worker_timeout_s) as pool:
            spaces = pool.spaces
        model, agent = build_networks(config, spaces)
        self.learner: Any = Learner(
            model.to(self.device), agent.to(self.device), config.optimizers, config.world_model.scales, self.precision
        )
        packed = packed_bytes(config, model)
        self.replay = noise(spaces, config, packed, self.device)
        self.learner.replay = self.replay
        # what Lightning would do
        optimizers = self.learner.configure_optimizers()
        self.learner.optimizers, self.learner.manual_backward = lambda: optimizers, Tensor.backward

    def update(self) -> None:
        torch.set_num_threads(self.threads)
        replay = self.config.replay
        sample = self.replay.sample(replay.batch, replay.length, replay.newest)
        self.learner.training_step(self.learner.transfer_batch_to_device(sample, self.device, 0), 0)

    @property
    def parts(self) -> dict[str, tuple[Any, str]]:
        """The methods that make up an update."""
        learner = self.learner
        return {
            "sample": (self.replay, "sample"),
            "model": (learner.model, "loss"),
            "agent": (learner.agent, "loss"),
            "backward": (learner, "manual_backward"),
            "optimizer": (learner, "move_weights"),
            "write_back": (learner, "remember"),
        }


def noise(spaces: Spaces, config: RunConfig, packed: int, device: torch.device) -> Replay:
    """A replay with as many streams as the run has, a few times the steps of a batch in all."""
    streams, length = config.collect.num_envs, 4 * config.replay.length
    steps = max(length, 2 * config.replay.batch * config.replay.length // streams)
    replay = Replay(spaces, streams * steps, streams, packed, device)
    draw = np.random.default_rng(0)
    for stream in range(streams):
        action = draw.uniform(-1, 1, (steps, spaces.action_dim)).astype(np.float32)
        if spaces.discrete:
            action = np.eye(spaces.action_dim, dtype=np.float32)[action.argmax(1)]
        first, last = np.arange(steps) % length == 0, np.arange(steps) % length == length - 1
        replay.extend(
            stream,
            {
                "obs": draw.integers(256, size=(steps, *spaces.image), dtype=np.uint8), "action": action,
                "reward": draw.normal(size=steps).astype(np.float32), "is_first": first, "is_last": last,
                "is_terminal": last & False,
            },
        )  # fmt: skip
    return replay


def update(
    settings: list[str], against: str | None = None, vary: str | None = None, turns: int = 10, clock: str = "wall"
) -> Report:
    """One row for each case: the settings alone, and with the words ``against`` added, or for each value to ``vary``.

    ``settings`` are words of the command line of training. Raises ``ValueError``.
    """
    threads = torch.get_num_threads()
    cases = {name: Case(cli.parse(words).config, threads) for name, words in variants(settings, against, vary).items()}
    first = next(iter(cases.values()))
    timings = take_turns({name: case.update for name, case in cases.items()}, turns, first.device, clock)
    rows = [
        {"case": name, **describe(case, timings[name], clock), **compared(timings[name], next(iter(timings.values())))}
        | {f"{part}_ms": 1e3 * timing.median for part, timing in breakdown(case, turns, clock).items()}
        | {"seconds": timings[name].seconds}
        for name, case in cases.items()
    ]
    config = first.config
    about = {"agent": config.agent_name, "world_model": config.world_model_name, "task": config.task}
    about |= {"preset": list(config.preset), "device": machine(first.device), "turns": turns, "clock": clock}
    return Report(about | {"settings": settings, "torch": torch.__version__}, rows)


def variants(settings: list[str], against: str | None, vary: str | None) -> dict[str, list[str]]:
    """The words of each case by its name."""
    if against is not None and vary is not None:
        raise ValueError("--against compares two and --vary many: give one of them")
    if against is not None:
        return {"this": settings, against: [*settings, *shlex.split(against)]}
    if vary is None:
        return {"this": settings}
    name, _, values = vary.partition("=")
    if not values or (name not in VARIED and "." not in name):
        raise ConfigError(f"--vary is NAME=VALUE,VALUE with {', '.join(VARIED)} or a dotted setting, not {vary!r}")
    return {f"{name}={value}": [*settings, f"--{VARIED.get(name, name)}", value] for value in values.split(",")}


def describe(case: Case, timing: Timing, clock: str) -> dict[str, Any]:
    """Speed, arithmetic and memory of a case."""
    seconds, config, (flops, memory) = timing.median, case.config, count(case)
    peak = matmul_peak(case.device, case.precision, clock)
    weights = sum(p.numel() for p in case.learner.parameters() if p.requires_grad)
    row = {
        "batch": config.replay.batch, "length": config.replay.length, "precision": case.precision, "weights": weights,
        "ms": 1e3 * seconds, "spread": timing.spread, "updates_per_s": 1 / seconds,
    }  # fmt: skip
    if config.training.updates_per_env_step:
        row["env_steps_per_s"] = 1 / seconds / config.training.updates_per_env_step
    return row | {
        "gflop": flops / 1e9, "gflop_per_s": flops / seconds / 1e9, "matmul_gflop_per_s": peak / 1e9,
        "matmul_share": flops / seconds / peak, "peak_mb": memory / 1e6,
    }  # fmt: skip


def compared(timing: Timing, first: Timing) -> dict[str, float]:
    """The ratio of medians to the first case's; its spread is that of the ratios of single turns."""
    ratios = [a / b for a, b in zip(timing.seconds, first.seconds, strict=True)]
    ratio = timing.median / first.median
    return {"times_the_first": ratio, "ratio_spread": half_quartiles(ratios) / ratio}


def breakdown(case: Case, turns: int, clock: str) -> dict[str, Timing]:
    """The time of each part in updates of their own: a GPU is waited for after each, which costs a little."""
    seconds: dict[str, list[float]] = {part: [] for part in case.parts}
    with stopwatches(case, seconds, clock):
        for _ in range(turns):
            case.update()
    return {part: Timing(values) for part, values in seconds.items()}


@contextmanager
def stopwatches(case: Case, seconds: dict[str, list[float]], clock: str) -> Iterator[None]:
    """While in here, every call of a part is timed."""

    def timed(call: Any, record: list[float]) -> Any:
        def run(*arguments: Any) -> Any:
            wait_for(case.device)
            begin = CLOCKS[clock]()
            result = call(*arguments)
            wait_for(case.device)
            record.append(CLOCKS[clock]() - begin)
            return result

        return run

    before = {part: (owner, name, vars(owner).get(name)) for part, (owner, name) in case.parts.items()}
    for part, (owner, name) in case.parts.items():
        setattr(owner, name, timed(getattr(owner, name), seconds[part]))
    try:
        yield
    finally:
        for owner, name, own in before.values():
            delattr(owner, name) if own is None else setattr(owner, name, own)


class Counter(TorchDispatchMode):
    """Adds up torch's formulas for products and convolutions, and the bytes of tensors made while they live.

    ``FlopCounterMode`` also asks which module is at work, and fails where one is called without gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes, self.peak_bytes = 0, 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._follow(made.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.bytes -= size


def count(case: Case) -> tuple[int, int]:
    """Multiplications and additions in the products and convolutions of an update, forward and backward; the bytes of
    weights, of optimisers and of what the update makes on top, at most."""
    with Counter() as counter:
        case.update()
    kept = list(case.learner.parameters())
    kept += [t for o in case.learner.optimizers() for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
    return counter.flops, counter.peak_bytes + sum(tensor.nbytes for tensor in kept)


def matmul_peak(device: torch.device, precision: str, clock: str, repeats: int = 10) -> float:
    """Floating-point operations per second of a large product of square matrices, the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timing = take_turns({"product": lambda: a @ b}, repeats, device, clock)["product"]
    return 2 * size**3 / min(timing.seconds)
