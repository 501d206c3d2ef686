"""Back to a checkpoint: the replay's rows from episode files, and what to do with files that are newer.

Resuming takes four steps::

    replay.load_state_dict(saved["replay"])
    restored = restore(replay, store, saved["manifest"], saved["open_tails"], latents)
    set_aside(store, restored.newer)      # go on exactly from the checkpoint, or
    adopt(replay, store, restored.newer)  # keep what was collected since, and reset those environments

One of the last two has to be called when there are newer episodes: nothing newer than the weights is used unasked,
and the run that goes on needs their names.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from worldmodels.replay.episodes import Episode, EpisodeError, EpisodeInfo, read_episode, scan, sync_directory
from worldmodels.replay.memory import LOG_PROB, Replay
from worldmodels.replay.store import EpisodeStore


class Restored(NamedTuple):
    """What ``restore`` found beside the rows it restored."""

    newer: list[EpisodeInfo]  # finished after the checkpoint, not used yet; by stream and time
    problems: list[str]  # one line per file that could not be used


class Adopted(NamedTuple):
    """What ``adopt`` took over."""

    episodes: list[EpisodeInfo]
    left: list[EpisodeInfo]  # do not continue what is held; not used
    problems: list[str]
    streams: list[int]  # their environments must be reset before the next step
    env_steps: int  # by which the run's count grows


def restore(
    replay: Replay,
    store: EpisodeStore,
    manifest: list[str],
    open_tails: dict[str, Any],
    latents: UInt8[Tensor, "rows bytes"] | None = None,
) -> Restored:
    """Fill the rows of a replay whose ``load_state_dict`` was called, and bring the store to the same moment.

    After it ``sample`` draws bit for bit what it would have drawn at the checkpoint, packed latents included where
    ``latents`` from ``export_latents`` are given. An episode that is missing or damaged is left out: the older ones of
    its stream move up to the newer ones, so that what is held stays unbroken. Raises ``ValueError`` where checkpoint
    and replay do not belong together.
    """
    store.load_open_tails(open_tails)
    store.names = list(manifest)
    for torn in store.directory.glob(".*.wme.*.tmp"):  # left by a kill in the middle of a write
        torn.unlink()
    kept, problems = torch.ones(len(replay), dtype=torch.bool), []
    unused = kept
    for stream in range(replay.num_streams):
        held = int(replay.end[stream] - replay.begin[stream])
        _restore_stream(replay, store, stream, unused[:held], problems)
        unused = unused[held:]
    if latents is not None:
        replay.import_latents(latents if kept.all() else latents[kept])
    infos, others = scan(store.directory, skip=manifest)
    newer = []
    for info in infos:
        if info.name != info.path.name or info.stream >= store.num_streams or info.spaces != store.spaces:
            others.append(f"{info.path}: an episode of another run, or renamed")
        elif info.position < store.tails[info.stream].position:
            others.append(f"{info.path}: older than the checkpoint and not part of its history")
        else:
            newer.append(info)
    newer.sort(key=lambda info: (info.stream, info.position))
    return Restored(newer, problems + others)


def adopt(replay: Replay, store: EpisodeStore, episodes: list[EpisodeInfo]) -> Adopted:
    """Append episodes that were finished after the checkpoint to their streams.

    The file of an episode contains and supersedes the open tail of its stream. A file that does not continue the
    stream (one before it was damaged, or it comes from another continuation of the same checkpoint) is left: set it
    aside.
    """
    adopted: list[EpisodeInfo] = []
    left: list[EpisodeInfo] = []
    problems: list[str] = []
    before = store.env_steps
    for info in sorted(episodes, key=lambda info: (info.stream, info.position)):
        if info.position != store.tails[info.stream].position:
            left.append(info)
            continue
        try:
            episode = _read(info.path)
        except EpisodeError as error:
            problems.append(str(error))
            continue
        if not _continues(episode, store.tail_rows(info.stream)):
            left.append(info)
            continue
        replay.extend(info.stream, episode.rows(len(store.tails[info.stream])))
        store.supersede(info)
        adopted.append(info)
    streams = sorted({info.stream for info in adopted})
    return Adopted(adopted, left, problems, streams, store.env_steps - before)


def set_aside(store: EpisodeStore, episodes: list[EpisodeInfo]) -> list[Path]:
    """Move episodes into ``<directory>/set_aside``, where no run looks for them; returns where they are now."""
    folder, moved = store.directory / "set_aside", []
    for info in episodes:
        folder.mkdir(exist_ok=True)
        target, copies = folder / info.path.name, 1
        while target.exists():
            copies += 1
            target = folder / f"{info.path.stem}.{copies}.wme"
        os.replace(info.path, target)
        moved.append(target)
    if moved:
        sync_directory(folder)
        sync_directory(store.directory)
    return moved


def _restore_stream(replay: Replay, store: EpisodeStore, stream: int, kept: Tensor, problems: list[str]) -> None:
    """Lay the open tail and then the files, newest first, from the stream's end backwards.

    ``kept`` [held] belongs to the rows as they were saved; those that are gone become False.
    """
    tail, end = store.tail_rows(stream), int(replay.end[stream])
    position, length = store.tails[stream].position, len(store.tails[stream])
    if position + length != end:
        raise ValueError(f"stream {stream}: the replay is at step {end}, the open episodes at {position + length}")
    due = len(kept)  # rows still to come, from the oldest saved one on
    take = min(length, due)
    replay.place(stream, end - take, {name: values[length - take :] for name, values in tail.items()})
    due, target = due - take, end - take
    for name, length in store.files_of(stream):
        if not due:
            break
        take = min(length, due)
        try:
            episode = _read(store.directory / name)
        except EpisodeError as error:
            problems.append(str(error))
            store.names.remove(name)
            kept[due - take : due] = False
        else:
            target -= take
            replay.place(stream, target, episode.rows(length - take))
        due -= take
    if due:
        problems.append(f"{store.directory}: {due} steps of stream {stream} are in no file of the checkpoint")
        kept[:due] = False
    replay.begin[stream] = target


def _read(path: Path) -> Episode:
    episode = read_episode(path)
    if episode.info.name != path.name:
        raise EpisodeError(f"{path}: is {episode.info.name} under another name")
    return episode


def _continues(episode: Episode, tail: dict[str, np.ndarray]) -> bool:
    """Whether the first rows of a finished episode are the open tail, but for the is_last that a cut sets late."""
    length, rows = len(tail["reward"]), episode.rows()
    return length <= episode.info.length and all(
        name in rows and np.array_equal(rows[name][:length], values, equal_nan=name == LOG_PROB)
        for name, values in tail.items()
        if name != "is_last"
    )
