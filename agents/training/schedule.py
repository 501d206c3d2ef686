"""Which phases a run has, in what order, and how much they are going to do."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from agents.training.evaluate import stage_of
from agents.training.evolve import Evolve
from agents.training.learner import parameter_groups
from agents.training.phases import Collect, Learn, Offline, Online, Phase, Tally
from agents.training.sections import (
    CollectPhase,
    EvolvePhase,
    LearnPhase,
    OfflinePhase,
    OnlinePhase,
    PhaseConfig,
    TrainingConfig,
)
from worldmodels.replay.memory import Replay

if TYPE_CHECKING:
    from agents.training.run import Run

OFFLINE = "--training.offline-updates"


def planned_env_steps(training: TrainingConfig) -> int:
    """Env steps that a run is going to collect."""
    if any(isinstance(phase, OnlinePhase) for phase in training.phases):
        return training.env_steps
    each_round = sum(phase.env_steps for phase in training.phases if isinstance(phase, CollectPhase))
    return min(training.env_steps, training.rounds * each_round)


def planned_updates(training: TrainingConfig) -> int:
    """Updates of a run, as far as they do not follow from its env steps."""
    each_round = sum(
        phase.updates if isinstance(phase, LearnPhase) else phase.generations
        for phase in training.phases
        if isinstance(phase, LearnPhase | EvolvePhase)
    )
    offline = any(isinstance(phase, OfflinePhase) for phase in training.phases)
    return training.rounds * each_round + (training.offline_updates if offline else 0)


def evolving(training: TrainingConfig) -> bool:
    """Whether a run has phases whose axis is updates, since its env steps stand still in them."""
    return any(isinstance(phase, LearnPhase | EvolvePhase) for phase in training.phases)


class Schedule:
    """The phases that are there, round after round."""

    def __init__(self, run: "Run"):
        self.rounds, kinds = run.config.training.rounds, run.config.training.phases
        self.tally = Tally([0] * len(kinds))
        made = [build(run, phase, index, self.tally) for index, phase in enumerate(kinds)]
        self.phases: list[Phase] = [phase for phase in made if phase is not None]

    @property
    def evolves(self) -> bool:
        return any(isinstance(phase, Evolve) for phase in self.phases)

    @property
    def teaches(self) -> bool:
        """Whether some phase that only learns moves a part of the agent, and not the world model alone."""
        named = [name for phase in self.phases if isinstance(phase, Learn) for name in phase.phase.optimizers]
        return any(name.partition(".")[0] != "model" for name in named)

    def next(self) -> Phase | None:
        """The first phase of the round that is not finished; of a later round, which then begins, where all are."""
        while True:
            for phase in self.phases:
                if not phase.finished:
                    return phase
            if self.tally.round + 1 >= self.rounds or not self.phases:
                return None
            self.tally.round += 1
            self.tally.done[:] = [0] * len(self.tally.done)

    def adopt(self, env_steps: int) -> None:
        """Env steps that were collected after the checkpoint count for the phase that was under way."""
        phase = self.next()
        if isinstance(phase, Collect):
            self.tally.done[phase.index] += env_steps


def build(run: "Run", phase: PhaseConfig, index: int, tally: Tally) -> Phase | None:
    """None where it has nothing to work with: no data, no env steps. Raises ``ValueError``."""
    config, learner, collector = run.config, run.learner, run.collector
    match phase:
        case OfflinePhase():
            if run.dataset is None or not config.training.offline_updates:
                return None
            return Offline(config, learner, run.dataset, tally)
        case OnlinePhase():
            return Online(config, learner, collector, tally) if collector is not None else None
        case CollectPhase():
            return Collect(phase, index, config, collector, tally) if collector is not None else None
        case LearnPhase():
            return Learn(phase, index, recorded(run, phase.length), tally)
        case EvolvePhase():
            return Evolve(phase, index, config, learner, recorded(run, 1), stage_of(config), tally)


def recorded(run: "Run", length: int) -> Callable[[], Replay]:
    """The run's own experience or, as long as it holds no window of ``length`` steps, the data that it was given."""

    def replay() -> Replay:
        for held in (run.collector.replay if run.collector is not None else None, run.dataset):
            if held is not None and held.num_starts(length):
                return held
        raise ValueError(
            "nothing is recorded that a phase could use: put a collect phase before it, or give --data DIR"
        )

    return replay


def check_needs(run: "Run") -> None:
    """Raises ``ValueError`` where data are given and not used, or used and not given."""
    training = run.config.training
    if run.dataset is not None and not planned_updates(training):
        raise ValueError(f"--data needs a number of updates to make on it: {OFFLINE} 10000")
    if run.dataset is None and training.offline_updates:
        raise ValueError(f"{OFFLINE} needs recorded data to make them on: --data DIR")
    check_frozen(run)


def check_frozen(run: "Run") -> None:
    """Raises ``ValueError`` where a phase is to teach only what a transfer keeps as it is."""
    learner = run.learner
    if learner.frozen.updates is not None:
        return
    groups, fixed = parameter_groups(run.model, run.agent, list(run.config.optimizers)), set(map(id, learner.fixed))
    for i, phase in enumerate(run.config.training.phases):
        if not isinstance(phase, LearnPhase):
            continue
        if all(id(parameter) in fixed for name in phase.optimizers for parameter in groups[name]):
            what = f"training.phases[{i}] teaches {', '.join(phase.optimizers)}, which this transfer keeps as it is"
            raise ValueError(f"{what}: choose another --transfer, or other --training.phases")
