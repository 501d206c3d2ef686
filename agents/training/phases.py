"""A run is a list of phases; each is a stream of samples for the learner, in blocks that are Lightning's epochs.

A phase pulls: it collects experience when that is due and hands out a sample when an update is. It has a length only
because Lightning fetches a batch ahead from streams that have none, and each batch would be one update stale.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch.utils.data import IterableDataset

from agents.training.collect import Collector, Finished
from agents.training.config import RunConfig
from agents.training.learner import Learner
from worldmodels.replay.memory import Replay, Sample


class Phase(IterableDataset[Sample], ABC):
    """One iteration over it is one block; nothing may happen between blocks that the next one depends on."""

    stopping = False
    """Set from outside: hand out nothing more."""
    replay: Replay

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]: ...

    def __len__(self) -> int:
        return sys.maxsize // 2

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to do, in this block or another."""


class Online(Phase):
    """Collect and learn in turns, at ``updates_per_env_step``."""

    def __init__(self, config: RunConfig, learner: Learner, collector: Collector, replay: Replay):
        self.config, self.learner, self.collector, self.replay = config, learner, collector, replay
        self.finished_episodes: list[Finished] = []
        """Episodes that ended since somebody emptied this list."""

    def __iter__(self) -> Iterator[Sample]:
        training, replay, counts = self.config.training, self.config.replay, self.collector
        block = training.block_env_steps
        end = min((counts.env_steps // block + 1) * block, training.env_steps)
        handed_out = 0
        while not self.stopping:
            if self.learner.updates < self.updates_due():
                handed_out += 1
                yield self.replay.sample(replay.batch, replay.length, replay.newest)
            elif counts.env_steps < end or (not handed_out and not self.finished):
                self.finished_episodes += self.collector.step()
            else:
                return

    @property
    def finished(self) -> bool:
        return self.collector.env_steps >= self.config.training.env_steps and (
            self.learner.updates >= self.updates_due()
        )

    def updates_due(self) -> int:
        """Updates that should have been made by now; 0 until the prefill is over and a window can be drawn."""
        config, env_steps = self.config, self.collector.env_steps
        if env_steps < config.collect.prefill or not self.replay.num_starts(config.replay.length):
            return 0
        since = env_steps - config.collect.prefill
        return (
            config.training.offline_updates
            + config.training.pretrain_updates
            + int(since * config.training.updates_per_env_step)
        )


class Offline(Phase):
    """Learn from recorded data alone, ``offline_updates`` times."""

    BLOCK = 500  # updates

    def __init__(self, config: RunConfig, learner: Learner, replay: Replay):
        self.config, self.learner, self.replay = config, learner, replay

    def __iter__(self) -> Iterator[Sample]:
        end = min((self.learner.updates // self.BLOCK + 1) * self.BLOCK, self.config.training.offline_updates)
        while not self.stopping and self.learner.updates < end:
            yield self.replay.sample(self.config.replay.batch, self.config.replay.length)

    @property
    def finished(self) -> bool:
        return self.learner.updates >= self.config.training.offline_updates
