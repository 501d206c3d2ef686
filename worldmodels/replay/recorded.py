"""What every reader of recorded data gives: episodes that are looked at first and read when they are wanted."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from worldmodels.base import Spaces
from worldmodels.replay.episodes import MAX_SIDE, EpisodeError, EpisodeInfo

MEDIA = (".png", ".mp4")


class Facts(NamedTuple):
    """What is known of a recorded episode before its pixels are wanted."""

    spaces: Spaces
    length: int  # rows
    info: EpisodeInfo | None = None  # of a ``.wme``; other formats do not say so much


class Recorded(NamedTuple):
    """One episode of a source. Both calls raise ``EpisodeError``: file, field, problem."""

    where: str  # the file, and the episode in it where there are several
    probe: Callable[[], Facts]
    read: Callable[[], dict[str, np.ndarray]]
    """``Episode.rows``: on the timeline of ``worldmodels.base``, every check passed."""


def check_columns(columns: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None) -> None:
    """Raise ``EpisodeError`` unless image, action, reward and flags are those of one recording.

    ``names`` are the source's own names of columns, where they differ, for the error.
    """
    names, image, action = names or {}, columns["image"], columns["action"]
    if image.dtype != np.uint8 or image.ndim != 4 or not image.size or max(image.shape[1:]) > MAX_SIDE:
        name = names.get("image", "image")
        raise EpisodeError(f"{name}: {image.dtype} {list(image.shape)} where uint8 [T, h, w, c] belongs")
    check_actions(action, len(image), names.get("action", "action"))
    for role, values in columns.items():
        if role not in ("image", "action") and values.shape != (len(image),):
            raise EpisodeError(f"{names.get(role, role)}: {list(values.shape)} where [{len(image)}] belongs")
    check_numbers(columns["reward"], names.get("reward", "reward"))


def check_actions(action: np.ndarray, length: int, name: str) -> None:
    """Raise ``EpisodeError`` unless these are ``length`` action vectors in [-1, 1]."""
    if action.ndim != 2 or len(action) != length or not 1 <= action.shape[1] <= MAX_SIDE:
        raise EpisodeError(f"{name}: {list(action.shape)} where [{length}, A] belongs")
    check_numbers(action, name)
    if np.abs(action).max() > 1.0 + 1e-3:
        raise EpisodeError(f"{name}: outside [-1, 1]")


def check_numbers(values: np.ndarray, name: str) -> None:
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise EpisodeError(f"{name}: not finite numbers")


def chosen_after(arriving: np.ndarray) -> np.ndarray:
    """Actions [T, A] that led to each row, as those chosen after it: float32, zero in the last row."""
    chosen = np.zeros(arriving.shape, np.float32)
    chosen[:-1] = arriving[1:]
    return chosen


def spaces_of(image: tuple[int, ...], chosen: np.ndarray) -> Spaces:
    """Spaces of a source that does not say them: one-hot actions throughout, but for the last row, are discrete."""
    height, width, channels = image
    taken = chosen[:-1]
    one_hot = taken.size > 0 and bool(np.isin(taken, (0, 1)).all() and (taken.sum(1) == 1).all())
    return Spaces((height, width, channels), chosen.shape[1], one_hot and chosen.shape[1] > 1)


def one_episode(image: np.ndarray, chosen: np.ndarray, reward: np.ndarray, last: bool, terminal: bool) -> dict:
    """The rows of a whole episode, or of a piece of one, whose last row is then not ``last``."""
    first, final = np.arange(len(image)) == 0, np.arange(len(image)) == len(image) - 1
    flags = {"is_first": first, "is_last": final & (last or terminal), "is_terminal": final & terminal}
    return {"obs": image, "action": chosen.astype(np.float32), "reward": reward.astype(np.float32), **flags}
