"""Recorded episodes of this project and of others, as a replay for training offline.

A source is a file or a folder: this project's ``.wme``, the ``.npz`` of Dreamer and V-D4RL, the HDF5 of V-D4RL and
Minari, a CSV with PNG files or videos. A folder may mix them. ``docs/offline.md`` has the formats.
"""

import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from worldmodels.base import Spaces
from worldmodels.replay.episodes import EpisodeError, read_episode, read_info
from worldmodels.replay.frames import frame_episodes
from worldmodels.replay.hdf5 import hdf5_episodes
from worldmodels.replay.memory import Replay
from worldmodels.replay.npz import npz_episode
from worldmodels.replay.recorded import MEDIA, Facts, Recorded

log = logging.getLogger(__name__)

MINARI = Path("data", "main_data.hdf5")


class Dataset(NamedTuple):
    """Recorded episodes in one stream of a replay, and what their files say of where they come from."""

    replay: Replay
    spaces: Spaces
    fingerprint: dict[str, str]
    """Of the environment; empty where no file says (all but ``.wme``)."""
    tasks: list[str]
    """As the files name them, sorted; empty where none does."""


def find_episodes(source: Path) -> tuple[list[Recorded], list[str]]:
    """The episodes of a file or a folder, in order of names, and one line for each file that has none.

    In a folder, pictures and videos belong to its CSV; folders inside are passed over, but for that of Minari's data.
    Raises ``ValueError`` where nothing is there.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such folder of episodes")
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    if (source / MINARI).is_file():
        files.append(source / MINARI)
    elif (source / MINARI.parent / "metadata.json").is_file():
        files.append(source / MINARI.parent / "metadata.json")
    tables = any(path.suffix == ".csv" for path in files)
    pictures = [path for path in files if path.suffix.lower() in MEDIA and source.is_dir()]
    known = {*pictures, *(path for path in files if path.with_name(MINARI.name).is_file() and path.suffix == ".json")}
    found, problems = [], []
    if pictures and not tables:
        problems.append(f"{source}: {len(pictures)} pictures or videos, and no CSV that says what was done in them")
    for path in files:
        if path.name.endswith(".tmp") or path in known:
            continue
        try:
            episodes, wrong = _episodes_of(path)
        except EpisodeError as error:
            episodes, wrong = [], [str(error)]
        found += episodes
        problems += wrong
    return found, problems


def load_dataset(
    source: Path,
    *,
    max_steps: int | None = None,
    packed_bytes: int = 0,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Dataset:
    """Every episode of a file or a folder, in order of names and up to ``max_steps``.

    One-hot actions throughout make a source discrete that does not say. Each episode that is damaged, malformed, or of
    other spaces than the first one is left out with one line in the log. Raises ``ValueError`` where nothing is left.
    """
    found, problems = find_episodes(source)
    for problem in problems:
        log.warning("%s", problem)
    episodes: list[Recorded] = []
    spaces: Spaces | None = None
    fingerprints: list[dict[str, str]] = []
    tasks: set[str] = set()
    total = 0
    for episode in found:
        if max_steps is not None and total >= max_steps:
            break
        try:
            facts = episode.probe()
            if spaces not in (None, facts.spaces):
                raise EpisodeError(f"{episode.where}: spaces: {facts.spaces}, but {spaces} in the files before")
        except EpisodeError as error:
            log.warning("%s", error)
            continue
        spaces = facts.spaces
        episodes.append(episode)
        total += facts.length
        if facts.info:
            tasks.add(facts.info.task)
            if facts.info.fingerprint not in (*fingerprints, {}):
                fingerprints.append(facts.info.fingerprint)
    if spaces is None:
        raise ValueError(f"{source}: no readable episode in it (docs/offline.md has the formats)")
    if len(fingerprints) > 1:
        log.warning("%s: episodes of %d different environment fingerprints", source, len(fingerprints))
    replay = Replay(spaces, max(2, min(total, max_steps or total)), 1, packed_bytes, device, seed)
    for episode in episodes:
        room = replay.ring - len(replay)
        try:
            rows = episode.read()
        except EpisodeError as error:
            log.warning("%s", error)
            continue
        replay.extend(0, {name: values[:room] for name, values in rows.items()})
    if not len(replay):
        raise ValueError(f"{source}: no readable episode in it (docs/offline.md has the formats)")
    return Dataset(replay, spaces, fingerprints[0] if fingerprints else {}, sorted(tasks - {""}))


def _episodes_of(path: Path) -> tuple[list[Recorded], list[str]]:
    if path.suffix == ".wme":
        return [Recorded(str(path), partial(_probe, path), partial(_read, path))], []
    if path.suffix == ".npz":
        return [npz_episode(path)], []
    if path.suffix in (".hdf5", ".h5"):
        return hdf5_episodes(path)
    if path.suffix == ".csv":
        return frame_episodes(path)
    if path.name == "metadata.json":
        raise EpisodeError(f"{path}: a Minari data set without main_data.hdf5: of its layouts only HDF5 is read")
    raise EpisodeError(f"{path}: not an episode file (.wme, .npz, .hdf5 or .csv)")


def _probe(path: Path) -> Facts:
    info = read_info(path)
    return Facts(info.spaces, info.length, info)


def _read(path: Path) -> dict[str, np.ndarray]:
    return read_episode(path).rows()
