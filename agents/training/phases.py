"""A run is a list of phases. Those that learn by gradients are streams of samples for the learner, which Lightning
drives; the others work by themselves. Either way they go block by block, and what is periodic happens in between.

A stream pulls: it collects experience when that is due and hands out a sample when an update is. It has a length only
because Lightning fetches a batch ahead from streams that have none, and each batch would be one update stale.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import IterableDataset

from agents.training.collect import Collector, Finished
from agents.training.config import RunConfig
from agents.training.learner import Learner
from agents.training.sections import CollectPhase, LearnPhase
from worldmodels.replay.memory import Replay, Sample

UPDATES = 500  # in a block of a phase that only learns


def block_end(done: int, size: int, goal: int) -> int:
    """Where the block under way ends, of blocks of ``size`` up to ``goal``."""
    return min((done // size + 1) * size, goal)


@dataclass
class Tally:
    """How far a run is in its phases; with the counts of learner and collector all that they go by."""

    done: list[int]
    """By phase, in the round under way: env steps collected, updates, generations; unused by offline and online."""
    round: int = 0
    elsewhere: int = 0  # updates of phases other than offline and online, in all rounds
    tried: int = 0  # env steps that are in no replay: candidates were tried

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round, "done": list(self.done), "elsewhere": self.elsewhere, "tried": self.tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` where the phases were others."""
        if len(state["done"]) != len(self.done):
            was, now = len(state["done"]), len(self.done)
            raise ValueError(f"the run has {was} phases and now {now} are given: only their numbers may change")
        self.round, self.done[:], self.elsewhere, self.tried = (
            state[name] for name in ("round", "done", "elsewhere", "tried")
        )


class Phase(ABC):
    """Goes on for as many blocks as it takes; nothing may happen between blocks that the next one depends on."""

    films_itself: ClassVar[bool] = False
    """Whether to film at its end, however few env steps there were since the last time."""
    about: str = ""
    """For the progress line."""

    def __init__(self) -> None:
        self.stopping = False
        """Set from outside: begin nothing more."""
        self.finished_episodes: list[Finished] = []
        """Episodes that ended since somebody emptied this list."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to do, in this block or another."""

    def evaluates(self, crossed: bool) -> bool:
        """Whether to evaluate after this block; ``crossed``: the env steps have passed a multiple of ``eval_every``."""
        return crossed or self.finished


class Stream(Phase, IterableDataset[Sample], ABC):
    """A phase that learns by gradients; one iteration over it is one block."""

    moving: tuple[str, ...] | None = None
    """The optimisers that move; None: all."""

    @property
    @abstractmethod
    def replay(self) -> Replay:
        """What it learns from."""

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]: ...

    def __len__(self) -> int:
        return sys.maxsize // 2


class Work(Phase, ABC):
    """A phase without gradients."""

    @abstractmethod
    def block(self, worked: Callable[[dict[str, Tensor]], None]) -> None:
        """Do one block; ``worked`` is to be called now and then on the way, with metrics if there are any."""


class Online(Stream):
    """Collect and learn in turns, at ``updates_per_env_step``."""

    def __init__(self, config: RunConfig, learner: Learner, collector: Collector, tally: Tally):
        super().__init__()
        self.config, self.learner, self.collector, self.tally = config, learner, collector, tally

    @property
    def replay(self) -> Replay:
        return self.collector.replay

    def __iter__(self) -> Iterator[Sample]:
        training, replay, counts = self.config.training, self.config.replay, self.collector
        block = training.block_env_steps
        end = block_end(counts.env_steps, block, training.env_steps)
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
        """Updates that should have been made by now; none until the prefill is over and a window can be drawn."""
        config, env_steps = self.config, self.collector.env_steps
        if env_steps < config.collect.prefill or not self.replay.num_starts(config.replay.length):
            return 0
        since = env_steps - config.collect.prefill
        return (
            self.tally.elsewhere
            + config.training.offline_updates
            + config.training.pretrain_updates
            + int(since * config.training.updates_per_env_step)
        )


class Offline(Stream):
    """Learn from recorded data alone, ``offline_updates`` times."""

    def __init__(self, config: RunConfig, learner: Learner, replay: Replay, tally: Tally):
        super().__init__()
        self.config, self.learner, self.tally, self._replay = config, learner, tally, replay

    @property
    def replay(self) -> Replay:
        return self._replay

    @property
    def updates(self) -> int:
        return self.learner.updates - self.tally.elsewhere

    def __iter__(self) -> Iterator[Sample]:
        end = block_end(self.updates, UPDATES, self.config.training.offline_updates)
        while not self.stopping and self.updates < end:
            yield self.replay.sample(self.config.replay.batch, self.config.replay.length)

    @property
    def finished(self) -> bool:
        return self.updates >= self.config.training.offline_updates


class Collect(Work):
    """Act and remember, at random until the prefill is over; as far as ``training.env_steps`` in all."""

    def __init__(self, phase: CollectPhase, index: int, config: RunConfig, collector: Collector, tally: Tally):
        super().__init__()
        self.phase, self.index, self.config, self.collector, self.tally = phase, index, config, collector, tally

    def block(self, worked: Callable[[dict[str, Tensor]], None]) -> None:
        training = self.config.training
        end = block_end(self.collector.env_steps, training.block_env_steps, training.env_steps)
        while not (self.stopping or self.finished or self.collector.env_steps >= end):
            before = self.collector.env_steps
            self.finished_episodes += self.collector.step()
            self.tally.done[self.index] += self.collector.env_steps - before
            worked({})

    @property
    def finished(self) -> bool:
        done, counts = self.tally.done[self.index], self.collector
        return done >= self.phase.env_steps or counts.env_steps >= self.config.training.env_steps

    def evaluates(self, crossed: bool) -> bool:
        return False  # it acts no better than before


class Learn(Stream):
    """Make updates with some of the optimisers, on what is ``recorded``."""

    films_itself: ClassVar[bool] = True

    def __init__(self, phase: LearnPhase, index: int, recorded: Callable[[], Replay], tally: Tally):
        super().__init__()
        self.phase, self.index, self.recorded, self.tally = phase, index, recorded, tally
        self.moving = phase.optimizers
        self.about = f"learning {', '.join(phase.optimizers)}"

    @property
    def replay(self) -> Replay:
        return self.recorded()

    def __iter__(self) -> Iterator[Sample]:
        done, phase = self.tally.done, self.phase
        end = block_end(done[self.index], UPDATES, phase.updates)
        end = block_end(done[self.index], phase.eval_every, end) if phase.eval_every else end
        while not self.stopping and done[self.index] < end:
            yield self.replay.sample(phase.batch, phase.length)
            done[self.index] += 1
            self.tally.elsewhere += 1

    @property
    def finished(self) -> bool:
        return self.tally.done[self.index] >= self.phase.updates

    def evaluates(self, crossed: bool) -> bool:
        every = self.phase.eval_every
        return self.finished or bool(every and self.tally.done[self.index] % every == 0)
