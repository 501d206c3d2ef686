"""Checkpoints of runs: one file each, written whole or not at all, read without running anything that is in it.

``checkpoints/000012000-000001650.ckpt`` is named by its env steps and updates. A file that could not be read is
renamed to ``.damaged`` by the run that went back to the one before it, and stays.
"""

import errno
import json
import os
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodels.replay.episodes import sync_directory

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
    path = folder / f"{env_steps:09d}-{updates:09d}.ckpt"
    staged = path.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.tmp"):  # left by a kill in the middle of a write
            torn.unlink()
        with staged.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
        sync_directory(folder)
    except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
        staged.unlink(missing_ok=True)
        reason = "the disk is full, free some space and resume" if disk_full(error) else str(error).splitlines()[0]
        raise CheckpointError(f"cannot write {path}: {reason}") from error
    for old in checkpoints(folder)[:-KEEP]:
        old.unlink()
    return path


def disk_full(error: BaseException | None) -> bool:
    """Whether an error is, or came of, a disk that has no space left."""
    while error is not None:
        codes = (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, OSError) and (error.errno in codes or os.strerror(errno.ENOSPC) in str(error)):  # ffmpeg's
            return True
        error = error.__cause__ or error.__context__
    return False


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("*.ckpt"))


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU. Raises ``CheckpointError`` for a file that is damaged or something else."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it wrote
            if torn := archive.testzip():
                raise zipfile.BadZipFile(torn)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # torch raises half a dozen types for damaged and foreign files
        raise CheckpointError(f"{path}: damaged, or no checkpoint of this project ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this project")
    if state.get("version") != VERSION:
        raise CheckpointError(f"{path}: format version {state.get('version')}, this program reads {VERSION}")
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


def set_aside_newer(path: Path) -> None:
    """Rename the checkpoints after this one, which could not be read: the run that goes on must not meet them again."""
    for newer in checkpoints(path.parent):
        if newer > path:
            newer.rename(newer.with_suffix(".damaged"))


def plain(value: Any) -> Any:
    """Tuples as lists, so that nothing but tensors, numbers, str, lists and dicts is left."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def random_state() -> dict[str, Any]:
    """Of torch, and of Python and NumPy as JSON, which no reader has to unpickle."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([name, np.asarray(keys).tolist(), *rest]),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo ``random_state``."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
