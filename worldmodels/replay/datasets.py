"""Folders of recorded episodes, as a replay for training offline.

Two formats, which may be mixed: this project's ``.wme``, and the ``.npz`` of Dreamer V1 and V2, PlaNet and V-D4RL's
64-pixel data: keys image, action, reward, discount, is_first, is_last, is_terminal, where ``action[t]`` led to
``image[t]`` (it is moved to the timeline of ``worldmodels.base``). Older files lack ``is_terminal``; there it is
``discount == 0``.
"""

import logging
from pathlib import Path

import numpy as np
import torch

from worldmodels.base import Spaces
from worldmodels.replay.episodes import EpisodeError, guarded, read_episode, read_info
from worldmodels.replay.memory import Replay

log = logging.getLogger(__name__)


def load_dataset(
    directory: Path,
    *,
    max_steps: int | None = None,
    packed_bytes: int = 0,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[Replay, Spaces, dict[str, str]]:
    """Every episode of a folder, in order of names and up to ``max_steps``, in one stream of a replay.

    Returns the replay, the spaces and the environment's fingerprint, which is empty where no file says (npz).
    One-hot actions throughout an ``.npz`` folder make it discrete. Each file that is damaged, malformed, or of other
    spaces than the first one is left out with one line in the log. Raises ``ValueError`` where nothing is left.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder of episodes")
    sources: list[Path] = []
    spaces: Spaces | None = None
    fingerprints: list[dict[str, str]] = []
    total = 0
    for path in sorted(directory.iterdir()):
        if path.is_dir() or path.name.endswith(".tmp"):
            continue
        if max_steps is not None and total >= max_steps:
            break
        try:
            found, length, fingerprint = _probe(path)
            if spaces not in (None, found):
                raise EpisodeError(f"{path}: spaces: {found}, but {spaces} in the files before")
        except EpisodeError as error:
            log.warning("%s", error)
            continue
        spaces = found
        sources.append(path)
        total += length
        if fingerprint and fingerprint not in fingerprints:
            fingerprints.append(fingerprint)
    if spaces is None:
        raise ValueError(f"{directory}: no readable episode (.wme or .npz) in this folder")
    if len(fingerprints) > 1:
        log.warning("%s: episodes of %d different environment fingerprints", directory, len(fingerprints))
    replay = Replay(spaces, max(2, min(total, max_steps or total)), 1, packed_bytes, device, seed)
    for path in sources:
        room = replay.ring - len(replay)
        try:
            rows = _read(path)
        except EpisodeError as error:
            log.warning("%s", error)
            continue
        replay.extend(0, {name: values[:room] for name, values in rows.items()})
    if not len(replay):
        raise ValueError(f"{directory}: no readable episode (.wme or .npz) in this folder")
    return replay, spaces, fingerprints[0] if fingerprints else {}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The rows of an ``.npz`` episode, on this project's timeline. Raises ``EpisodeError``: file, field, problem."""
    with guarded(path):
        raw = _load_npz(path)
        length = len(raw["image"])
        flags = {name: raw[name] for name in ("is_first", "is_last", "is_terminal") if name in raw}
        if "is_terminal" not in flags:
            flags["is_terminal"] = raw["discount"] == 0
        flags.setdefault("is_first", np.arange(length) == 0)
        flags.setdefault("is_last", np.arange(length) == length - 1)
        _check(raw["image"], raw["action"], raw["reward"], flags)
        chosen = np.zeros(raw["action"].shape, np.float32)
        chosen[:-1] = raw["action"][1:]
        rows = {name: values.astype(np.bool_) for name, values in flags.items()}
        rows["is_first"][0] = True  # also of a piece of an episode: what came before it is not the file before
        return {"obs": raw["image"], "action": chosen, "reward": raw["reward"].astype(np.float32), **rows}


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as stream:  # np.load would take a bare .npy for an answer
        if stream.read(2) != b"PK":
            raise EpisodeError("not an npz file")
    with np.load(path, allow_pickle=False) as file:
        known = ("image", "action", "reward", "discount", "is_first", "is_last", "is_terminal")
        raw = {}
        for name in sorted(set(known) & set(file.files)):
            try:
                raw[name] = file[name]
            except ValueError as error:  # an array of objects, for one
                raise EpisodeError(f"{name}: {error}") from error
    for name in ("image", "action", "reward"):
        if name not in raw:
            raise EpisodeError(f"{name}: missing")
    if "is_terminal" not in raw and "discount" not in raw:
        raise EpisodeError("is_terminal: missing, and so is discount")
    return raw


def _check(image: np.ndarray, action: np.ndarray, reward: np.ndarray, flags: dict[str, np.ndarray]) -> None:
    length = len(image)
    if image.dtype != np.uint8 or image.ndim != 4 or not length:
        raise EpisodeError(f"image: {image.dtype} {list(image.shape)} where uint8 [T, h, w, c] belongs")
    if action.ndim != 2 or len(action) != length or not action.shape[1]:
        raise EpisodeError(f"action: {list(action.shape)} where [{length}, A] belongs")
    for name, values in {"reward": reward, **flags}.items():
        if values.shape != (length,):
            raise EpisodeError(f"{name}: {list(values.shape)} where [{length}] belongs")
    for name, values in {"action": action, "reward": reward}.items():
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise EpisodeError(f"{name}: not finite numbers")
    if np.abs(action).max() > 1.0 + 1e-3:
        raise EpisodeError("action: outside [-1, 1]")


def _probe(path: Path) -> tuple[Spaces, int, dict[str, str]]:
    """Spaces, rows and fingerprint of a file."""
    if path.suffix == ".wme":
        info = read_info(path)
        return info.spaces, info.length, info.fingerprint
    if path.suffix != ".npz":
        raise EpisodeError(f"{path}: not an episode file (.wme or .npz)")
    rows = read_npz(path)
    chosen = rows["action"][:-1]
    one_hot = chosen.size > 0 and bool(np.isin(chosen, (0, 1)).all() and (chosen.sum(1) == 1).all())
    height, width, channels = rows["obs"].shape[1:]
    return Spaces((height, width, channels), chosen.shape[1], one_hot and chosen.shape[1] > 1), len(rows["obs"]), {}


def _read(path: Path) -> dict[str, np.ndarray]:
    return read_episode(path).rows() if path.suffix == ".wme" else read_npz(path)
