"""What a whole run makes of the machine: env steps per second, how long it takes to begin, who waits for whom."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.training import cli

if TYPE_CHECKING:
    from agents.training.benchmark.timing import Report

QUIET = ["--training.eval-every", "0", "--training.video-every", "0"]


def run(settings: list[str]) -> "Report":
    """Train in a temporary folder, in a process of its own, as ``scripts/train.py`` does; a ``Report`` of one row.

    ``startup_s``: from starting the process to the end of the first step in the environments. The other figures are
    of what came after: ``wait_share`` is the share of the time between the first and the last update in which the
    learner waited for experience, ``update_share`` that of the updates; what is left is logging, drawing samples
    and checkpoints. Nothing is evaluated unless ``settings`` say so. Raises ``ValueError``.
    """
    from agents.training.benchmark.timing import Report, machine
    from agents.training.devices import choose_device

    with tempfile.TemporaryDirectory() as folder:
        out, words = Path(folder) / "seen.json", [*QUIET, *settings, "--run-dir", f"{folder}/run"]
        config = cli.parse(words).config
        command = [sys.executable, "-m", __name__, str(out), repr(time.time()), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        if done.returncode:
            raise ValueError(f"the run ended with {done.returncode}: {(done.stderr.splitlines() or ['?'])[-1]}")
        seen = json.loads(out.read_text())
    if not seen["updates"]:
        steps = config.training.env_steps
        raise ValueError(f"no update in {steps} env steps: raise --env-steps, or lower --collect.prefill")
    about = {"agent": config.agent_name, "task": config.task, "preset": list(config.preset)}
    device = choose_device(config.training.device)
    return Report(about | {"device": machine(device), "settings": settings}, [described(seen)])


def described(seen: dict[str, Any]) -> dict[str, Any]:
    """The row: ``steps`` and ``updates`` are begin, end and the env steps there were at the end, of each call."""
    steps, updates = seen["steps"], seen["updates"]
    begin, end = updates[0][0], updates[-1][1]
    within = [step for step in steps if begin <= step[0] and step[1] <= end]
    collecting = sum(step[1] - step[0] for step in within)
    updating = sum(update[1] - update[0] for update in updates)
    last = max(step[2] for step in steps)
    before = max((step[2] for step in steps if step[1] <= begin), default=0)
    row = {
        "env_steps": last, "updates": len(updates), "startup_s": steps[0][1] - seen["launched"],
        "first_update_s": updates[0][1] - seen["launched"], "seconds": max(end, steps[-1][1]) - steps[0][0],
        "env_steps_per_s": last / (max(end, steps[-1][1]) - steps[0][0]),
    }  # fmt: skip
    if within:
        learned = max(step[2] for step in within) - before
        row |= {"learning_env_steps_per_s": learned / (end - begin), "ms_per_env_step": 1e3 * collecting / learned}
    return row | {
        "ms_per_update": 1e3 * updating / len(updates), "update_share": updating / (end - begin),
        "wait_share": collecting / (end - begin),
    }  # fmt: skip


def watched(owner: type, method: str, record: list[tuple[float, float, int]]) -> None:
    """Have a method of a class note when it begins and ends, and the env steps then where its owner counts them."""
    original: Callable[..., Any] = getattr(owner, method)

    def noted(self: Any, *arguments: Any) -> Any:
        begin = time.time()
        result = original(self, *arguments)
        record.append((begin, time.time(), getattr(self, "env_steps", 0)))
        return result

    setattr(owner, method, noted)


def watched_run(out: Path, launched: float, words: list[str]) -> None:
    """What the child process does: training, with a stopwatch on collecting and on updating."""
    command = cli.parse(words)
    from agents.training import collect, learner, run  # as late as scripts/train.py does: torch takes seconds to import

    steps: list[tuple[float, float, int]] = []
    updates: list[tuple[float, float, int]] = []
    watched(collect.Collector, "step", steps)
    watched(learner.Learner, "training_step", updates)
    run.train(command)
    out.write_text(json.dumps({"launched": launched, "steps": steps, "updates": updates}))


if __name__ == "__main__":
    watched_run(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
