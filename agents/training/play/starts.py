"""Where dreams begin: a frame of a real episode, from the run's replay or fresh from the environment."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch

from worldmodels.base import Sequence, Spaces, cut
from worldmodels.envs.base import HELD_OUT_SEED, Env
from worldmodels.replay.episodes import Episode, EpisodeError, oldest_first, parse_name, read_episode

LOOKBACK = 100  # frames before the chosen one that the model sees
EPISODES = 500  # the newest so many of a replay can be chosen
LEVELS = 100  # seeds of the real environment that can be chosen


class Starts(ABC):
    """Real episodes to choose from."""

    lengths: list[int]  # frames of each episode

    @abstractmethod
    def sequence(self, episode: int, frame: int) -> Sequence:
        """What the model is to have seen when it stands at this frame, ``[1, T]``. Raises ``ValueError``."""


class ReplayStarts(Starts):
    """The newest episodes of a folder, oldest first. ``ValueError`` where there are none."""

    def __init__(self, folder: Path, spaces: Spaces):
        self._paths, self._spaces = oldest_first(folder)[-EPISODES:], spaces
        if not self._paths:
            raise EpisodeError(f"{folder}: no episodes there")
        self.lengths = [parse_name(path.name)[2] for path in self._paths]
        self._open: Episode | None = None

    def sequence(self, episode: int, frame: int) -> Sequence:
        path = self._paths[episode]
        if self._open is None or self._open.info.path != path:
            self._open = read_episode(path)
        if self._open.info.spaces != self._spaces or self._open.info.length != self.lengths[episode]:
            raise EpisodeError(f"{path}: not of this run, its images, actions or length are others")
        seen = cut(self._open.to_sequence(), slice(max(0, frame + 1 - LOOKBACK), frame + 1))
        is_first = torch.zeros_like(seen.is_first)
        is_first[:, 0] = True  # what was before it, the model does not know
        return seen._replace(is_first=is_first, log_prob=None)


class FreshStarts(Starts):
    """First frames of the environment, for models that come without a replay; it is closed again each time."""

    def __init__(self, make: Callable[[], Env]):
        self._make = make
        self.lengths = [1] * LEVELS

    def sequence(self, episode: int, frame: int) -> Sequence:
        env = self._make()
        try:
            obs = torch.from_numpy(env.reset(seed=HELD_OUT_SEED + episode).obs)[None, None]
            action = torch.zeros(1, 1, env.spaces.action_dim)
        finally:
            env.close()
        no = torch.zeros(1, 1, dtype=torch.bool)
        return Sequence(obs, action, torch.zeros(1, 1), ~no, no, no, prev_action=action[:, 0])


def starts_of(source: Path, spaces: Spaces, make: Callable[[], Env]) -> Starts:
    """Those of a run's replay, else fresh ones."""
    replay = source / "replay"
    return ReplayStarts(replay, spaces) if any(replay.glob("*.wme")) else FreshStarts(make)
