"""Recorded data in HDF5: V-D4RL's 84-pixel shards and Minari's data sets, read with ``h5py`` alone.

V-D4RL, flat arrays of N rows: ``observation`` uint8 [N, c, h, w], ``action``, ``reward``, ``discount``, ``step_type``
(0 first, 1 between, 2 last); ``action[t]`` led to ``observation[t]``.

Minari, a group ``episode_<n>`` each: ``observations`` with T + 1 rows, ``actions``, ``rewards``, ``terminations`` and
``truncations`` with T. Images are uint8 [T + 1, h, w, c], or [T + 1, c, h, w], or grey without c; of a dictionary of
observations they are the one entry that looks so. Actions are float vectors, or integers of a discrete space, which
``metadata.json`` beside the file describes (Minari 0.5) or the attribute ``action_space`` of the file or the group.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodels.base import Spaces
from worldmodels.replay.episodes import MAX_SIDE, EpisodeError, guarded
from worldmodels.replay.recorded import (
    Facts,
    Recorded,
    check_actions,
    check_columns,
    check_numbers,
    chosen_after,
    one_episode,
    spaces_of,
)

FLAT = ("observation", "action", "reward", "discount", "step_type")
FIRST, LAST = 0, 2
FLAT_NAMES = {"image": "observation"}
MINARI_NAMES = {"image": "observations", "action": "actions", "reward": "rewards"}


def hdf5_episodes(path: Path) -> tuple[list[Recorded], list[str]]:
    """The episodes of a file, and one line for each problem. Raises ``EpisodeError`` where it is of neither kind."""
    with _opened(path) as file:
        groups = sorted((name for name in file if re.fullmatch(r"episode_\d+", name)), key=lambda n: int(n[8:]))
        if groups:
            return [
                Recorded(f"{path}: {name}", partial(_probe_minari, path, name), partial(_read_minari, path, name))
                for name in groups
            ], []
        if not set(FLAT) & set(file):
            raise EpisodeError("neither V-D4RL (observation, action, ...) nor Minari (episode_0, ...)")
        spans, problems = _spans(file)
    episodes = []
    for start, stop in spans:
        where, call = f"{path}: rows {start} to {stop - 1}", (path, start, stop)
        episodes.append(Recorded(where, partial(_probe_flat, *call), partial(_read_flat, *call)))
    return episodes, [f"{path}: {problem}" for problem in problems]


@contextmanager
def _opened(path: Path, where: str = "") -> Iterator[Any]:
    """An HDF5 file; whatever its damage raises becomes one line, which names the episode too where one is meant."""
    with guarded(f"{path}: {where}" if where else path):
        try:
            import h5py
        except ImportError as error:
            raise EpisodeError("HDF5 needs pip install -e '.[datasets]'") from error
        with h5py.File(path, "r") as file:
            yield file


def _array(group: Any, name: str) -> Any:
    """A data set of a file, not yet read. Links and storage outside the file are not followed."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        raise EpisodeError(f"{name}: missing")
    found = group[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise EpisodeError(f"{name}: not an array in this file")
    return found


def _spans(file: Any) -> tuple[list[tuple[int, int]], list[str]]:
    """First row and the one after the last of each episode of a shard, and what is wrong with the others."""
    arrays = {name: _array(file, name) for name in FLAT}
    kinds, length = arrays["step_type"][()], len(arrays["observation"]) if arrays["observation"].ndim else 0
    for name, array in arrays.items():
        if not array.ndim or len(array) != length:
            raise EpisodeError(f"{name}: {list(array.shape)} where {length} rows belong")
    if kinds.shape != (length,) or not np.isin(kinds, (0, 1, 2)).all():
        raise EpisodeError("step_type: not 0, 1 or 2 in every row")
    starts = np.flatnonzero(kinds == FIRST).tolist()
    problems = [] if not length or starts[:1] == [0] else ["rows from 0: step_type: no first step begins them"]
    spans = []
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        if (kinds[start : stop - 1] == LAST).any():
            problems.append(f"rows {start} to {stop - 1}: step_type: goes on after the last step")
        else:
            spans.append((start, stop))
    return spans, problems


def _probe_flat(path: Path, start: int, stop: int) -> Facts:
    with _opened(path, f"rows {start} to {stop - 1}") as file:
        images, action = _array(file, "observation"), _array(file, "action")[start:stop]
        check_actions(action, stop - start, "action")
        if images.ndim != 4:
            raise EpisodeError(f"observation: {list(images.shape)} where uint8 [N, c, h, w] belongs")
        _, channels, height, width = images.shape
        return Facts(spaces_of((height, width, channels), chosen_after(action)), stop - start)


def _read_flat(path: Path, start: int, stop: int) -> dict[str, np.ndarray]:
    with _opened(path, f"rows {start} to {stop - 1}") as file:
        image, action, reward, discount, kind = (_array(file, name)[start:stop] for name in FLAT)
        if image.ndim == 4:
            image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        reward, discount = (column[:, 0] if column.shape[1:] == (1,) else column for column in (reward, discount))
        columns = {"image": image, "action": action, "reward": reward, "discount": discount}
        check_columns(columns, FLAT_NAMES)
        check_numbers(discount, "discount")
        last = kind[-1] == LAST
        return one_episode(image, chosen_after(action), reward, bool(last), bool(last and discount[-1] == 0))


def _probe_minari(path: Path, name: str) -> Facts:
    with _opened(path, name) as file:
        images, discrete = _images(file[name]), _choices(path, file, file[name])
        image = _channels_last(images[:1]).shape[1:]
        action = _vectors(_array(file[name], "actions")[()], discrete)
        check_actions(action, len(images) - 1, "actions")
        return Facts(Spaces((image[0], image[1], image[2]), action.shape[1], discrete is not None), len(images))


def _read_minari(path: Path, name: str) -> dict[str, np.ndarray]:
    with _opened(path, name) as file:
        group = file[name]
        image = _channels_last(_images(group)[()])
        action = _vectors(_array(group, "actions")[()], _choices(path, file, group))
        columns = {key: _array(group, key)[()] for key in ("rewards", "terminations", "truncations")}
        for key, values in columns.items():
            if values.shape != (len(image) - 1,):
                raise EpisodeError(f"{key}: {list(values.shape)} where [{len(image) - 1}] belongs")
        check_actions(action, len(image) - 1, "actions")
        check_numbers(columns["rewards"], "rewards")
        chosen = np.concatenate([action, np.zeros_like(action[:1])])
        reward = np.concatenate([[0.0], columns["rewards"]])
        check_columns({"image": image, "action": chosen, "reward": reward}, MINARI_NAMES)
        for key in ("terminations", "truncations"):
            if columns[key][:-1].any():
                raise EpisodeError(f"{key}: true before the last step")
        terminal, cut = bool(columns["terminations"][-1]), bool(columns["truncations"][-1])
        return one_episode(image, chosen, reward, terminal or cut, terminal)


def _images(group: Any) -> Any:
    """The observations of an episode that are images, not yet read."""
    import h5py

    if not isinstance(group.get("observations"), h5py.Group):
        images = _array(group, "observations")
        if not _looks_like_images(images):
            raise EpisodeError(f"observations: {images.dtype} {list(images.shape)}, and no uint8 images")
        return images
    parts = group["observations"]
    found = [array for key in parts if _looks_like_images(array := _array(parts, key))]
    if len(found) != 1:
        raise EpisodeError(f"observations: {len(found)} of {', '.join(parts)} are images, where one belongs")
    return found[0]


def _looks_like_images(array: Any) -> bool:
    sides = array.shape[1:]
    return array.dtype == np.uint8 and len(sides) in (2, 3) and len(array) > 1 and 0 < min(sides) <= MAX_SIDE


def _channels_last(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    return images


def _choices(path: Path, file: Any, group: Any) -> tuple[int, int] | None:
    """The first of the integers that stand for actions and how many there are; None where actions are vectors."""
    beside, said = path.with_name("metadata.json"), None
    if beside.is_file():
        said = json.loads(beside.read_text(encoding="utf-8")).get("action_space")
    said = said or group.attrs.get("action_space") or file.attrs.get("action_space")
    space = json.loads(said) if said else {}
    if space.get("type") != "Discrete":
        return None
    start, count = space.get("start", 0), space.get("n")
    if type(start) is not int or type(count) is not int or not 1 <= count <= MAX_SIDE:
        raise EpisodeError(f"action_space: {str(space)[:100]}")
    return start, count


def _vectors(action: np.ndarray, discrete: tuple[int, int] | None) -> np.ndarray:
    """Actions [T, A]; the integers of a discrete space as one-hot vectors."""
    if discrete is None:
        if action.dtype.kind != "f":
            raise EpisodeError(f"actions: {action.dtype} {list(action.shape)}, and no Discrete action_space is given")
        return action
    start, count = discrete
    if action.ndim != 1 or action.dtype.kind not in "iu" or not np.isin(action - start, np.arange(count)).all():
        raise EpisodeError(f"actions: {list(action.shape)}, not all of them are one of {count} integers from {start}")
    return np.eye(count, dtype=np.float32)[action - start]
