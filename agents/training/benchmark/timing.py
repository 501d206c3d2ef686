"""Medians of many short turns; what is compared takes turns in one process.

Machines are shared and drift, so a ratio of two medians of the same process says more than either of them.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


Key = TypeVar("Key")


class Timing(NamedTuple):
    """Seconds of each turn."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a share of the median."""
        return half_quartiles(self.seconds) / self.median


class Report(NamedTuple):
    """What was measured, and a row for each case of it."""

    about: dict[str, Any]
    rows: list[dict[str, Any]]


def half_quartiles(values: list[float]) -> float:
    """Half of the distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def take_turns(
    work: dict[Key, Callable[[], Any]], turns: int, device: torch.device, clock: str = "wall"
) -> dict[Key, Timing]:
    """Call each once to warm up, then all of them in turn, ``turns`` times; whole calls, the device waited for.

    ``clock`` is ``wall``, or ``cpu`` for the CPU seconds of all threads of this process, which a busy machine changes
    less; threads that wait for each other count, so it is for one thread.
    """
    now = CLOCKS[clock]
    seconds: dict[Key, list[float]] = {name: [] for name in work}
    for turn in range(turns + 1):
        for name, call in work.items():
            begin = now()
            call()
            wait_for(device)
            if turn:
                seconds[name].append(now() - begin)
    return {name: Timing(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """The processor in words, and how much of it is used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} of {torch.multiprocessing.cpu_count()} cores"


def processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows for people, as columns where there are few of them. What is a list is left to JSON."""
    texts = [{name: text for name, value in row.items() if (text := written(name, value))} for row in rows]
    names = list(dict.fromkeys(name for row in texts for name in row))
    cells = [[name, *(row.get(name, "-") for row in texts)] for name in names]
    cells = cells if len(texts) < len(names) / 2 else [list(column) for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells)
    return "\n".join("  ".join(line) for line in lines)


def written(name: str, value: Any) -> str:
    """A value as its name wants it; nothing where a table has no room for it."""
    if isinstance(value, list | dict):
        return ""
    if not isinstance(value, float):
        return str(value)
    if name.endswith(("spread", "share")):
        return f"{value:.0%}"
    return f"{value:,.1f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"
