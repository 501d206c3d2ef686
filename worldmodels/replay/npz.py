"""The ``.npz`` episodes of Dreamer V1 and V2, PlaNet and V-D4RL's 64-pixel data.

Keys image, action, reward, discount, is_first, is_last, is_terminal, where ``action[t]`` led to ``image[t]`` (it is
moved to the timeline of ``worldmodels.base``). Older files lack ``is_terminal``; there it is ``discount == 0``.
"""

from functools import partial
from pathlib import Path

import numpy as np

from worldmodels.replay.episodes import EpisodeError, guarded
from worldmodels.replay.recorded import Facts, Recorded, check_columns, chosen_after, spaces_of


def npz_episode(path: Path) -> Recorded:
    """The episode of an ``.npz`` file."""
    return Recorded(str(path), partial(_probe, path), partial(read_npz, path))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The rows of an ``.npz`` episode, on this project's timeline. Raises ``EpisodeError``: file, field, problem."""
    with guarded(path):
        raw = _load(path)
        flags = {name: raw[name] for name in ("is_first", "is_last", "is_terminal") if name in raw}
        if "is_terminal" not in flags:
            flags["is_terminal"] = raw["discount"] == 0
        length = len(raw["image"]) if raw["image"].ndim else 0
        flags.setdefault("is_first", np.arange(length) == 0)
        flags.setdefault("is_last", np.arange(length) == length - 1)
        check_columns({name: raw[name] for name in ("image", "action", "reward")} | flags)
        rows = {name: values.astype(np.bool_) for name, values in flags.items()}
        rows["is_first"][0] = True  # also of a piece of an episode: what came before it is not the file before
        reward = raw["reward"].astype(np.float32)
        return {"obs": raw["image"], "action": chosen_after(raw["action"]), "reward": reward, **rows}


def _load(path: Path) -> dict[str, np.ndarray]:
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


def _probe(path: Path) -> Facts:
    rows = read_npz(path)
    return Facts(spaces_of(rows["obs"].shape[1:], rows["action"]), len(rows["obs"]))
