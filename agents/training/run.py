"""One run from its config to its last checkpoint: build the parts, hand them to Lightning, look after them.

A run's folder explains itself: ``config.yaml`` (complete), ``fingerprint.json`` (versions, simulator, renderer),
``metrics.jsonl``, ``tensorboard/``, ``replay/`` (one file per episode), ``checkpoints/``, ``videos/``,
``baselines.json`` (returns of random and of no actions), ``transfer.txt`` (what came from ``--world-model``, if that
was a saved one), ``data.txt`` (the folder that ``--data`` named; correct it there if the data have moved).
"""

import json
import platform
import random
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import Agent, Evolving
from agents.pretrained import plan_transfer
from agents.training import checkpoint
from agents.training.allocator import keep_freed_memory
from agents.training.cli import Command
from agents.training.collect import Collector
from agents.training.config import RunConfig, save_config
from agents.training.devices import choose_device, choose_precision
from agents.training.drive import carry_out
from agents.training.evaluate import check_stage, stage_of, training_seeds
from agents.training.learner import Learner
from agents.training.policies import AgentPolicy
from agents.training.schedule import OFFLINE, Schedule, check_needs, evolving, planned_env_steps, planned_updates
from agents.training.watch import LearningFailedError, Watch
from worldmodels.base import Spaces, Storing, WorldModel
from worldmodels.envs import EnvPool
from worldmodels.pretrained import check_fits
from worldmodels.replay.datasets import Dataset, load_dataset
from worldmodels.replay.memory import Replay
from worldmodels.replay.store import EpisodeStore
from worldmodels.strict import from_dict
from worldmodels.transfer import NOTHING_FROZEN, Frozen

PACKAGES = ("torch", "lightning", "numpy", "mujoco", "dm-control", "gymnasium")


def build_networks(config: RunConfig, spaces: Spaces) -> tuple[WorldModel, Agent]:
    """World model and agent of a config, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    model = config.world_model.build(spaces)
    return model, config.agent.build(model)


def packed_bytes(config: RunConfig, model: WorldModel) -> int:
    """Bytes of a latent in the replay; 0 where none are kept."""
    return model.packed_bytes if config.replay.latents and isinstance(model, Storing) else 0


class Run:
    """The parts of a run. ``env_steps`` and ``updates`` are the run's own counts, not Lightning's.

    Built for a checkpoint's ``state`` where there is one, which ``load`` then brings in.
    """

    def __init__(self, command: Command, state: dict[str, Any] | None = None):
        self.config, self.folder = command.config, command.run_dir
        config = self.config
        self.evaluated_at, self.filmed_at = 0, -1  # env_steps; -1: never
        random.seed(config.seed)  # this and the next for simulators that use them
        np.random.seed(config.seed % 2**32)
        transfer = plan_transfer(command.world_model, command.transfer, config)  # a mistake shows before simulators run
        self.device = choose_device(config.training.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        self.pool: EnvPool | None = None
        self.dataset: Replay | None = None
        fingerprint: dict[str, str] = {}
        data: Dataset | None = None
        if command.data is not None:
            # a dataset has no latents, and none that training makes are kept
            data = load_dataset(command.data, seed=config.seed)
            self.dataset, spaces, fingerprint = data.replay, data.spaces, data.fingerprint
        if planned_env_steps(config.training):
            seeds = env_seeds(config, len(list((self.folder / "replay").glob("*.wme"))))
            self.pool = EnvPool(config.task, config.env, seeds, config.collect.workers, config.collect.worker_timeout_s)
        if data is not None:
            check_data(f"--data {command.data}", data, config.task, self.pool)
        if self.pool is not None:
            spaces, fingerprint = self.pool.spaces, self.pool.fingerprint
        elif state is not None:
            spaces, fingerprint = from_dict(Spaces, state["spaces"], "the checkpoint: spaces"), state["fingerprint"]
        elif transfer is not None and self.dataset is None:
            spaces, fingerprint = transfer.saved.card.spaces, transfer.saved.card.fingerprint
        elif self.dataset is None:
            raise ValueError(
                "nothing to learn from: give --env-steps more than 0, --data DIR, or a saved --world-model"
            )
        self.fingerprint, self.spaces = fingerprint, spaces
        self.model, self.agent = build_networks(config, spaces)
        self.transferred, frozen = (
            transfer.into(self.model, fingerprint) if transfer else (None, frozen_before(state or {}))
        )
        self.model.to(self.device)
        self.agent.to(self.device)
        self.learner = Learner(
            self.model,
            self.agent,
            config.optimizers,
            config.world_model.scales,
            choose_precision(config.training.precision, self.device),
            frozen,
        )
        self.collector = self._collector(state["env_steps"] if state else 0) if self.pool is not None else None
        check_needs(self)
        self.schedule = Schedule(self)
        if self.plays and self.pool is None and config.training.eval_every:
            warn_of_differences(fingerprint, check_stage(stage_of(config), spaces), "the data")

    @property
    def env_steps(self) -> int:
        return (self.collector.env_steps if self.collector else 0) + self.schedule.tally.tried

    @property
    def updates(self) -> int:
        return self.learner.updates

    def _replay_device(self, spaces: Spaces, capacity: int) -> torch.device:
        wanted = self.config.replay.device
        if wanted != "auto" or self.device.type == "cpu":
            return torch.device("cpu" if wanted == "auto" else wanted)
        # half of what is free: the networks and their activations need the rest
        fits = (
            Replay.bytes_needed(spaces, capacity, packed_bytes(self.config, self.model))
            < torch.cuda.mem_get_info()[0] // 2
        )
        return self.device if fits else torch.device("cpu")

    def _collector(self, env_steps: int) -> Collector:
        config, pool = self.config, self.pool
        assert pool is not None
        # A run never has more steps than this, and memory that it cannot fill is not claimed: an episode is a reset
        # and at least one action, and each environment may go one action beyond the end.
        actions = max(config.training.env_steps, env_steps) // pool.action_repeat + 2 * pool.num_envs
        capacity = max(min(config.replay.capacity, 2 * actions), config.replay.length * pool.num_envs)
        device = self._replay_device(pool.spaces, capacity)
        packed = packed_bytes(config, self.model)
        memory = Replay.bytes_needed(pool.spaces, capacity, packed) / 1e9
        print(f"replay: {capacity} steps, {memory:.2f} GB on {device}", file=sys.stderr)
        replay = Replay(pool.spaces, capacity, pool.num_envs, packed, device, config.seed)
        store = EpisodeStore(
            self.folder / "replay",
            pool.spaces,
            pool.num_envs,
            task=config.task,
            fingerprint=pool.fingerprint,
            seed=config.seed,
        )
        policy = AgentPolicy(self.model, self.agent, pool.num_envs, explore=True, seed=config.seed)
        return Collector(pool, policy, replay, store, config.collect.prefill)

    @property
    def plays(self) -> bool:
        """Whether there is a behaviour to evaluate, rather than a world model alone."""
        return self.collector is not None or self.schedule.evolves or self.schedule.teaches

    def totals(self) -> tuple[int, int]:
        """Env steps and updates that are planned; 0 where they are not known, or updates that follow from env steps."""
        training = self.config.training
        env_steps, updates = planned_env_steps(training), planned_updates(training)
        if self.schedule.evolves and isinstance(self.agent, Evolving) and self.agent.where == "world":
            return 0, updates
        return env_steps, updates if evolving(training) or not env_steps else 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "updates": self.updates,
            "env_steps": self.env_steps,
            "evaluated_at": self.evaluated_at,
            "filmed_at": self.filmed_at,
            "model": self.model.state_dict(),
            "agent": self.agent.state_dict(),
            "optimizers": [checkpoint.plain(optimizer.state_dict()) for optimizer in self.learner.made],
            "frozen": checkpoint.plain(self.learner.frozen._asdict()),
            "schedule": self.schedule.tally.state_dict(),
            "rng": checkpoint.random_state(),
            "fingerprint": self.fingerprint,
            "spaces": checkpoint.plain(self.spaces.__dict__),
            "dataset": None if self.dataset is None else self.dataset.state_dict(),
            "collector": None if self.collector is None else self.collector.state_dict(),
        }

    def save(self) -> Path:
        """Write a checkpoint. Raises ``ValueError`` rather than keep weights that are not numbers."""
        self.check_weights()
        return checkpoint.save(self.folder / "checkpoints", self.env_steps, self.updates, self.state_dict())

    def check_weights(self) -> None:
        """Raises ``LearningFailedError`` where a weight is not a number."""
        for room, module in (("model", self.model), ("agent", self.agent)):
            for name, weights in module.named_parameters():
                if not weights.isfinite().all():
                    what = f"{room}.{name} is not a number after update {self.updates}"
                    raise LearningFailedError(f"{what}; {self.remedy()}")

    def remedy(self) -> str:
        """What to do when learning has failed."""
        return f"the last good checkpoint is in {self.folder / 'checkpoints'}: resume with a lower learning rate"

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, all but the optimisers and the random state: see ``load_optimizers``."""
        for room, module in (("model", self.model), ("agent", self.agent)):
            check_fits(state[room], module.state_dict(), f"the checkpoint's {room} does not fit this run's config.yaml")
            module.load_state_dict(state[room])
        self.learner.updates = state["updates"]
        self.evaluated_at, self.filmed_at = state["evaluated_at"], state["filmed_at"]
        if "schedule" in state:  # not in checkpoints of runs before there was one
            self.schedule.tally.load_state_dict(state["schedule"])
        if self.dataset is not None and state["dataset"] is not None:
            extent, before = self.dataset.state_dict(), state["dataset"]
            if not torch.equal(extent["end"], before["end"]):
                steps = (int(part["end"].sum()) for part in (before, extent))
                raise ValueError("the data had {} steps and now {}: restore the folder, or start anew".format(*steps))
            self.dataset._generator.set_state(before["generator"])  # the rows are here already
        same_world = warn_of_differences(state["fingerprint"], self.fingerprint, "the checkpoint")
        if self.collector is not None and state["collector"] is not None:
            self.collector.load_state_dict(state["collector"], same_world=same_world)
            self.schedule.adopt(self.collector.env_steps - state["collector"]["env_steps"])

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """To be called last, when Lightning is ready; a run that learned nothing by gradients had none."""
        if state["optimizers"]:
            for optimizer, saved in zip(self.learner.configure_optimizers(), state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                for group in optimizer.param_groups:  # of checkpoints before groups counted
                    for name, value in (("frozen", False), ("moved", state["updates"]), ("waited", 0)):
                        group.setdefault(name, value)
        checkpoint.set_random_state(state["rng"])

    def close(self) -> None:
        """End the workers, and wait until every finished episode is on disk."""
        if self.pool is not None:
            self.pool.close()
        if self.collector is not None:
            self.collector.store.flush()


def frozen_before(state: dict[str, Any]) -> Frozen:
    """What a checkpoint says is frozen; of runs before there was such a thing, nothing."""
    said = state.get("frozen")
    return NOTHING_FROZEN if said is None else Frozen(tuple(said["tensors"]), said["updates"])


def env_seeds(config: RunConfig, finished: int) -> list[int]:
    """One for each environment. Those that begin anew after ``finished`` episodes must not repeat these."""
    return [training_seeds([config.seed, i, finished])[0] for i in range(config.collect.num_envs)]


def check_data(source: str, data: Dataset, task: str, pool: EnvPool | None) -> None:
    """Raises ``ValueError`` where recorded data cannot be of a task; warns where they come from another world."""
    other = f"{source} holds episodes of {', '.join(data.tasks)}, and the task is {task}"
    if pool is not None and data.spaces != pool.spaces:
        raise ValueError(f"{source} holds {data.spaces}, and {task} is {pool.spaces}: choose another task")
    if data.tasks and task not in data.tasks:
        if pool is None:
            raise ValueError(f"{other}: --task {data.tasks[0]}")
        print(f"warning: {other}", file=sys.stderr)
    elif pool is not None:
        warn_of_differences(data.fingerprint, pool.fingerprint, "the data")


def train(command: Command) -> int:
    """Make or resume a run and see it through; the signal that it was asked to stop with, 0 if it was not.

    Raises ``ValueError`` for what a person can mend, a full disk and a loss that is not a number included.
    """
    try:
        return _train(command)
    except Exception as error:
        if checkpoint.disk_full(error) and not isinstance(error, ValueError):
            raise ValueError(f"the disk is full: free some space, then --resume {command.run_dir}") from error
        raise


def _train(command: Command) -> int:
    state = None
    if command.resume:
        command = replace(command, data=read_data_folder(command.run_dir))
        if never_began(command.run_dir):
            print(f"{command.run_dir} was ended before its first checkpoint: it begins anew", file=sys.stderr)
        else:
            path, state = checkpoint.load_newest(command.run_dir)
            checkpoint.set_aside_newer(path)
    run = Run(command, state)
    with ExitStack() as stack:
        stack.callback(run.close)
        if state is not None:
            run.load(state)
            if run.schedule.next() is None:
                goal = " and ".join(map(str, filter(None, run.totals())))
                print(
                    f"nothing to do: {run.folder} has made {run.env_steps} env steps and {run.updates} updates, and "
                    f"{goal} are asked for; to go on, give a larger {larger(run)}",
                    file=sys.stderr,
                )
                return 0
        describe(run, command)
        if not run.schedule.phases:
            run.save()
            print(f"taken over as it is, nothing learned: python scripts/evaluate.py {run.folder}", file=sys.stderr)
            return 0
        watch = Watch(run, state, resumed=command.resume is not None)
        stack.callback(watch.close)
        while not watch.stopped and (phase := run.schedule.next()) is not None:
            carry_out(run, phase, watch)
        if not watch.stopped:
            say = shlex.quote(str(run.folder))
            print(f"finished; python scripts/evaluate.py {say} or scripts/imagine.py {say}", file=sys.stderr)
        return watch.stopped


def larger(run: Run) -> str:
    """The setting that decides how long a run goes on."""
    if evolving(run.config.training):
        return "number in --training.phases, or --training.rounds"
    return "--env-steps" if run.pool else OFFLINE


def never_began(folder: Path) -> bool:
    """Whether a run was ended before it could save anything; nothing is collected before the first checkpoint."""
    made = ("checkpoints/*.ckpt", "replay/*.wme", "transfer.txt")  # with the last, it must not begin without weights
    return not any(any(folder.glob(pattern)) for pattern in made)


def describe(run: Run, command: Command) -> None:
    """Write what explains the run's folder."""
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    if run.transferred is not None:
        print(run.transferred, file=sys.stderr)
        (folder / "transfer.txt").write_text(f"{run.transferred}\n", encoding="utf-8")
    if command.data is not None:
        (folder / "data.txt").write_text(f"{command.data.resolve()}\n", encoding="utf-8")
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    (folder / "fingerprint.json").write_text(json.dumps({"env": run.fingerprint, "versions": versions}, indent=1))
    save_config(run.config, folder / "config.yaml")  # last: this makes it a run


def read_data_folder(folder: Path) -> Path | None:
    """The data that a run learned from when it began, if any."""
    file = folder / "data.txt"
    return Path(file.read_text(encoding="utf-8").strip()) if file.is_file() else None


def warn_of_differences(old: dict[str, str], new: dict[str, str], what: str) -> bool:
    """One line for what looks or behaves differently from the environment that something was made in; if nothing."""
    different = [f"{key} {old[key]} -> {new[key]}" for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    if different:
        print(f"warning: {what} came from another environment: {', '.join(different)}", file=sys.stderr)
    return not different
