"""What a run writes down: ``metrics.jsonl``, TensorBoard and Weights & Biases.

One line of ``metrics.jsonl`` is one call of ``MetricsLog.log``: ``env_steps``, ``updates``, ``time`` (seconds that the
run has been running, resumes included) and the metrics logged then, named ``room/term``; null is a number that was
not finite. Nothing is ever removed: a resumed run writes a line with ``resumed`` true at the counts it resumed from
and goes on. What a killed process wrote beyond those counts is void; ``read_metrics`` leaves it out.
"""

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.training.video import gif_bytes

RESERVED = frozenset({"env_steps", "updates", "time", "resumed"})
Clock = Callable[[], float]


class MetricsLog:
    """Writes the numbers of one run, in the run's folder.

    ``resumed_at`` are the (env_steps, updates) of the checkpoint that a resumed run continues; without it the folder
    must not hold a ``metrics.jsonl`` (``ValueError``). TensorBoard's axis is ``axis``: env_steps, or updates where a
    run never touches an environment. ``wandb`` needs the extra of that name (``ValueError`` without it).
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        resumed_at: tuple[int, int] | None = None,
        wandb: bool = False,
        config: Mapping[str, Any] | None = None,
        axis: str = "env_steps",
        clock: Clock = time.monotonic,
    ):
        if axis not in ("env_steps", "updates"):
            raise ValueError(f"axis is {axis!r}, it must be 'env_steps' or 'updates'")
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "metrics.jsonl"
        if self.path.exists() and resumed_at is None:
            raise ValueError(f"{self.path} exists: resume that run, or choose another folder")
        self._wandb = _start_wandb(self.run_dir, config) if wandb else None
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._axis, self._clock, before = axis, clock, _seconds_so_far(self.path)
        self._began = clock() - before
        self._board = _start_tensorboard(self.run_dir, None if resumed_at is None else self._step(*resumed_at))
        _end_last_line(self.path)
        self._file = self.path.open("a", buffering=1, encoding="utf-8")
        if resumed_at is not None:
            self._write({"resumed": True}, *resumed_at)

    def log(self, metrics: Mapping[str, float | int], env_steps: int, updates: int) -> None:
        """One line, and one point per metric. ``ValueError`` for a name that the log itself uses."""
        if taken := RESERVED & metrics.keys():
            raise ValueError(f"{sorted(taken)} are names of the log itself; call the metric 'room/term'")
        values = {name: float(value) for name, value in metrics.items()}
        self._write(values, env_steps, updates)
        for name, value in values.items():
            self._board.add_scalar(name, value, self._step(env_steps, updates))
        if self._wandb is not None:
            self._wandb.log({**values, "env_steps": env_steps, "updates": updates})

    def video(self, name: str, film: np.ndarray, env_steps: int, updates: int, path: Path | None = None) -> None:
        """Show a film uint8 [T, H, W, 3]: a small GIF in TensorBoard, the file at ``path`` in Weights & Biases."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        # SummaryWriter.add_video needs a moviepy that no longer exists; a GIF as an image event is what it would write
        image = Summary.Image(encoded_image_string=gif_bytes(film, max_width=480), colorspace=3)
        image.height, image.width = film.shape[1:3]
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._board._get_file_writer().add_summary(summary, self._step(env_steps, updates))
        if self._wandb is not None and path is not None:
            video = _import_wandb().Video(str(path))
            self._wandb.log({name: video, "env_steps": env_steps, "updates": updates})

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self, env_steps: int, updates: int) -> int:
        return env_steps if self._axis == "env_steps" else updates

    def _write(self, values: Mapping[str, Any], env_steps: int, updates: int) -> None:
        line = {"env_steps": env_steps, "updates": updates, "time": round(self._clock() - self._began, 3), **values}
        finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")


def read_metrics(path: str | Path, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The history that led to the run as it is now, oldest first; null is NaN again.

    Metrics logged at the same counts are one entry, the last value of a name counts. What a killed process wrote
    beyond the checkpoint that was resumed is left out, and so is a line it did not finish; ``ValueError`` for any
    other line that is not JSON. With ``damaged`` that line is left out too, and what is wrong is told to it.
    """
    history: dict[tuple[int, int], dict[str, Any]] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    parsed = [_parse(line) for line in lines]
    for number, entry in enumerate(parsed, start=1):
        if entry is None:
            if number < len(lines) and not (parsed[number] or {}).get("resumed"):
                problem = f"{path} line {number} is not a line of metrics; restore the file or delete the line"
                if damaged is None:
                    raise ValueError(problem)
                damaged(problem)
            continue
        counts = (entry["env_steps"], entry["updates"])
        if entry.pop("resumed", False):
            history = {key: value for key, value in history.items() if key <= counts}
        else:
            history.setdefault(counts, {}).update(
                {key: math.nan if value is None else value for key, value in entry.items()}
            )
    return [history[key] for key in sorted(history)]


class MeanMetrics:
    """Means of a learner's metrics over many updates, with one transfer from the device when they are read."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the 0-d tensors of one update; updates may differ in which metrics they have."""
        if not metrics:
            return
        values, names = torch.stack([value.detach().float() for value in metrics.values()]), tuple(metrics)
        assert values.ndim == 1, {name: value.shape for name, value in metrics.items()}
        total, count = self._sums.get(names, (torch.zeros_like(values), 0))
        self._sums[names] = (total + values, count + 1)

    def take(self) -> dict[str, float]:
        """The means since the last time, and begin anew."""
        if not self._sums:
            return {}
        totals = iter(torch.cat([total for total, _ in self._sums.values()]).cpu().tolist())
        sums: dict[str, tuple[float, int]] = {}
        for names, (_, count) in self._sums.items():
            for name in names:
                total, seen = sums.get(name, (0.0, 0))
                sums[name] = (total + next(totals), seen + count)
        self._sums = {}
        return {name: total / count for name, (total, count) in sums.items()}


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError):  # a line of brackets alone
        return None
    counted = isinstance(entry, dict) and all(isinstance(entry.get(name), int) for name in ("env_steps", "updates"))
    return entry if counted else None


def _seconds_so_far(path: Path) -> float:
    if not path.exists():
        return 0.0
    entries = (_parse(line) for line in path.read_text(encoding="utf-8").splitlines())
    return max((entry["time"] for entry in entries if entry is not None), default=0.0)


def _end_last_line(path: Path) -> None:
    """A killed process may have left half a line, which must not swallow the next."""
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, 2), file.read())[1] != b"\n":
            file.write(b"\n")


def _start_tensorboard(run_dir: Path, resumed_step: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    purge = None if resumed_step is None else resumed_step + 1  # hides what was written beyond the checkpoint
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge, flush_secs=30)


def _import_wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("wandb is not installed: pip install wandb, or log without it") from error
    return wandb


def _start_wandb(run_dir: Path, config: Mapping[str, Any] | None) -> Any:
    """The run's name there is kept in its folder, so that a resumed run goes on in the same place."""
    wandb = _import_wandb()
    run_dir.mkdir(parents=True, exist_ok=True)
    name = run_dir / "wandb_id"
    if not name.exists():
        name.write_text(secrets.token_hex(4))
    where = {"id": name.read_text(), "resume": "allow", "name": run_dir.name, "dir": str(run_dir)}
    run = wandb.init(**where, config=dict(config or {}))
    run.define_metric("*", step_metric="env_steps")
    return run
