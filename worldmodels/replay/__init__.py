"""What was seen: sequences in memory, episodes on disk, the way back from disk, and datasets of others."""

from worldmodels.replay.datasets import load_dataset
from worldmodels.replay.episodes import Episode, EpisodeError, EpisodeInfo, read_episode, scan, write_episode
from worldmodels.replay.memory import Replay, Sample
from worldmodels.replay.restore import Adopted, Restored, adopt, restore, set_aside
from worldmodels.replay.store import EpisodeStore

__all__ = [
    "Adopted",
    "Episode",
    "EpisodeError",
    "EpisodeInfo",
    "EpisodeStore",
    "Replay",
    "Restored",
    "Sample",
    "adopt",
    "load_dataset",
    "read_episode",
    "restore",
    "scan",
    "set_aside",
    "write_episode",
]
