"""Recorded data of any readable format as ``.wme`` episodes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from worldmodels.base import Spaces
from worldmodels.envs.gymnasium_env import resized
from worldmodels.replay.datasets import find_episodes
from worldmodels.replay.episodes import Episode, EpisodeError, EpisodeInfo, guarded, require_empty, write_episode
from worldmodels.replay.recorded import Facts, Recorded


class Converted(NamedTuple):
    """What was written, and what was not."""

    episodes: list[EpisodeInfo]
    problems: list[str]  # one line for each episode or file that was left out


def convert(
    source: Path,
    target: Path,
    *,
    size: int | None = None,
    task: str = "",
    action_repeat: int = 1,
    say: Callable[[str], None] = lambda problem: None,
) -> Converted:
    """Write every episode of a source into a new or empty folder, each whole or not at all.

    Episodes come one after another in stream 0. With ``size`` images become ``size`` x ``size``, each pixel the mean of
    the area that it covers. ``task``, and ``action_repeat`` for the count of env steps, are for formats that lack them.
    An episode of other spaces than the first one is left out. ``say`` gets each problem as it is found.
    Raises ``ValueError`` where there is nothing to read or the folder holds something.
    """
    require_empty(target)
    found, problems = find_episodes(source)
    for problem in problems:
        say(problem)
    written: list[EpisodeInfo] = []
    for recorded in found:
        spaces = written[0].spaces if written else None
        before = (written[-1].position + written[-1].length, written[-1].env_steps) if written else (0, 0)
        try:
            episode = _episode(recorded, spaces, size, EpisodeDefaults(task, action_repeat), before)
            target.mkdir(parents=True, exist_ok=True)
            written.append(write_episode(target, episode))
        except EpisodeError as error:
            problems.append(str(error))
            say(str(error))
    if not written:
        raise ValueError(f"{source}: no readable episode in it (docs/offline.md has the formats)")
    return Converted(written, problems)


class EpisodeDefaults(NamedTuple):
    """What formats other than ``.wme`` do not say."""

    task: str
    action_repeat: int


def _episode(
    recorded: Recorded, wanted: Spaces | None, size: int | None, defaults: EpisodeDefaults, before: tuple[int, int]
) -> Episode:
    """One episode as it is to be written, ``before`` rows and env steps being there already."""
    facts = recorded.probe()
    height, width, channels = facts.spaces.image
    image = (height, width, channels) if size is None else (size, size, channels)
    spaces = replace(facts.spaces, image=image)
    if wanted not in (None, spaces):
        raise EpisodeError(f"{recorded.where}: spaces: {spaces}, but {wanted} in the episodes before")
    rows = recorded.read()
    with guarded(recorded.where):
        if channels not in (1, 3) and size is not None:
            raise EpisodeError(f"image: {channels} channels, and only 1 or 3 can be resized")
        if size is not None:
            rows["obs"] = np.stack([resized(picture, size) for picture in rows["obs"]])
        info = _info(facts, rows, spaces, defaults, before)
        rows["is_last"] = np.append(rows["is_last"][:-1], True)  # a piece of an episode ends here too
        return Episode(info, **rows)


def _info(
    facts: Facts, rows: dict[str, np.ndarray], spaces: Spaces, defaults: EpisodeDefaults, before: tuple[int, int]
) -> EpisodeInfo:
    position, env_steps = before
    if facts.info is not None:
        fingerprint = dict(facts.info.fingerprint)
        if spaces != facts.spaces:
            fingerprint["resized"] = f"{facts.spaces.image[0]}x{facts.spaces.image[1]} to {spaces.image[0]}"
        env_steps += facts.info.episode_env_steps
        task = facts.info.task or defaults.task
        moved = {"stream": 0, "position": position, "env_steps": env_steps}
        return replace(facts.info, task=task, fingerprint=fingerprint, spaces=spaces, **moved)
    taken = (len(rows["reward"]) - 1) * defaults.action_repeat
    return EpisodeInfo(
        task=defaults.task,
        fingerprint={},
        seed=0,
        stream=0,
        position=position,
        length=len(rows["reward"]),
        episode_return=float(rows["reward"].sum(dtype=np.float64)),
        env_steps=env_steps + taken,
        episode_env_steps=taken,
        cut=not rows["is_last"][-1],
        spaces=spaces,
    )
