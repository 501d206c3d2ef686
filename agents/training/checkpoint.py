"""Checkpoints of runs: one file each, written whole or not at all, read without running anything that is in it.

``checkpoints/000012000.ckpt`` is named by its env steps (and updates, where those do not tell two apart).
"""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import torch

FORMAT = "worldmodels-checkpoint"
VERSION = 1
KEEP = 2  # newest files to keep: the last one, and one in case that cannot be read


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or is not one that can be read."""


def save(folder: Path, env_steps: int, updates: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint atomically and delete the oldest but ``KEEP``.

    ``state`` holds tensors, str, numbers, None, lists and dicts. Raises ``CheckpointError`` where the disk is full;
    what was there before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{env_steps:09d}-{updates:09d}.ckpt"
    staged = path.with_suffix(".tmp")
    try:
        with staged.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
        staged.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        reason = "the disk is full: free some space and resume" if full else str(error).splitlines()[0]
        raise CheckpointError(f"cannot write {path}: {reason}") from error
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("*.ckpt"))


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU. Raises ``CheckpointError`` for a file that is damaged or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # torch raises half a dozen types for damaged and foreign files
        raise CheckpointError(f"{path}: damaged, or no checkpoint of this project ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this project")
    if state["version"] != VERSION:
        raise CheckpointError(f"{path}: format version {state['version']}, this program reads {VERSION}")
    return state


def load_newest(run: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run that can be read; older ones are tried, with a line each on stderr."""
    found = checkpoints(run / "checkpoints")
    if not found:
        raise CheckpointError(f"{run}: no checkpoints there; a run is the folder that training wrote")
    for path in reversed(found):
        try:
            return path, load(path)
        except CheckpointError as error:
            if path == found[0]:
                raise
            print(f"warning: {error}; going back to the one before", file=sys.stderr)
    raise AssertionError(found)
