"""The sections of a run's config, and the phases that it is made of; values are in ``configs/``."""

from dataclasses import dataclass
from typing import Literal

from worldmodels.strict import above, at_least


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """How experience is gathered."""

    num_envs: int  # environments that act at the same time
    workers: Literal["serial", "process"]  # in this process, or one process for each environment
    prefill: int  # env_steps with random actions before the first update
    worker_timeout_s: float  # how long one step of an environment may take before its worker is given up

    def __post_init__(self) -> None:
        at_least(self, 1, "num_envs")
        at_least(self, 0, "prefill")
        above(self, 0, "worker_timeout_s")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is remembered, and how much of it is learned from at once."""

    capacity: int  # steps kept in memory; the oldest go first
    batch: int  # sequences in one update
    length: int  # steps in one sequence
    latents: bool  # keep latents with the steps and start sequences from them (DreamerV3's replay context)
    newest: int  # sequences of each batch that are the newest ones not yet seen
    device: Literal["auto", "cpu", "cuda"]  # where images are kept; auto: with the model if they fit

    def __post_init__(self) -> None:
        at_least(self, 1, "batch")
        at_least(self, 2, "length")  # a step is learned from with the one after it
        at_least(self, 0, "newest")
        at_least(self, self.length, "capacity")
        if self.newest > self.batch:
            raise ValueError(f"newest must be at most batch ({self.batch}), got {self.newest}")


@dataclass(frozen=True, kw_only=True)
class OfflinePhase:
    """Learn from ``--data`` alone, ``offline_updates`` times; not there without data."""

    type: Literal["offline"]


@dataclass(frozen=True, kw_only=True)
class OnlinePhase:
    """Collect and learn in turns until ``env_steps``; not there where that is 0."""

    type: Literal["online"]


@dataclass(frozen=True, kw_only=True)
class CollectPhase:
    """Act and remember, learn nothing."""

    type: Literal["collect"]
    env_steps: int  # in each round; in all rounds together no more than training.env_steps

    def __post_init__(self) -> None:
        at_least(self, 1, "env_steps")


@dataclass(frozen=True, kw_only=True)
class LearnPhase:
    """Learn from what the run has collected or, as long as that is nothing, from ``--data``."""

    type: Literal["learn"]
    updates: int  # in each round
    optimizers: tuple[str, ...]  # names of those that move; what the others train stands still
    batch: int  # windows in one update, here instead of replay.batch
    length: int  # steps of one
    eval_every: int = 0  # updates between evaluations; 0: after the last one alone, as in runs saved before

    def __post_init__(self) -> None:
        at_least(self, 1, "updates", "batch")
        at_least(self, 0, "eval_every")
        at_least(self, 2, "length")
        if not self.optimizers:
            raise ValueError("optimizers must name at least one that moves")


@dataclass(frozen=True, kw_only=True)
class EvolvePhase:
    """Improve the behaviour without gradients; a generation counts as an update."""

    type: Literal["evolve"]
    generations: int  # in each round
    eval_every: int  # generations between evaluations; 0: after the last one alone

    def __post_init__(self) -> None:
        at_least(self, 1, "generations")
        at_least(self, 0, "eval_every")


PhaseConfig = OfflinePhase | OnlinePhase | CollectPhase | LearnPhase | EvolvePhase


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how often, how fast."""

    env_steps: int  # simulator control steps in all, prefill and action repeats included; 0: learn from data alone
    updates_per_env_step: float  # learner updates for each env_step after the prefill
    pretrain_updates: int  # updates after the prefill before acting goes on
    offline_updates: int  # updates on data alone, before the first env_step
    precision: Literal["auto", "fp32", "bf16"]  # of the networks; auto: bf16 where the hardware has it. Losses: fp32
    threads: int  # CPU threads of the learner; 0: all
    device: Literal["auto", "cpu", "cuda"]  # where the networks are
    block_env_steps: int  # env_steps collected and learned from as one Lightning epoch; saving happens between two
    eval_every: int  # env_steps between evaluations; 0: none
    eval_episodes: int  # episodes of one evaluation
    video_every: int  # env_steps between videos of acting and imagining; 0: none
    log_every_s: float  # seconds between lines in metrics.jsonl
    checkpoint_every_s: float  # seconds between checkpoints
    wandb: bool  # log to Weights & Biases too; needs the extra of that name
    phases: tuple[PhaseConfig, ...]  # one after the other
    rounds: int  # how often all phases are gone through

    def __post_init__(self) -> None:
        at_least(self, 0, "env_steps", "updates_per_env_step", "pretrain_updates", "offline_updates", "threads")
        at_least(self, 0, "eval_every", "video_every", "log_every_s", "checkpoint_every_s")
        at_least(self, 1, "eval_episodes", "block_env_steps", "rounds")
        if not self.phases:
            raise ValueError("phases must be at least one, such as [{type: online}]")
