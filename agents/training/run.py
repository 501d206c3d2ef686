"""One run from its config to its last checkpoint: build the parts, hand them to Lightning, look after them.

A run's folder explains itself: ``config.yaml`` (complete), ``fingerprint.json`` (versions, simulator, renderer),
``metrics.jsonl``, ``tensorboard/``, ``replay/`` (one file per episode), ``checkpoints/``, ``videos/``,
``baselines.json`` (returns of random and of no actions), ``transfer.txt`` (what came from ``--world-model``, if that
was a saved one).
"""

import json
import logging
import platform
import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import Agent
from agents.pretrained import plan_transfer
from agents.training import checkpoint
from agents.training.cli import Command
from agents.training.collect import Collector
from agents.training.config import RunConfig, save_config
from agents.training.devices import choose_device, choose_precision
from agents.training.learner import Learner
from agents.training.lightning import Trainer
from agents.training.phases import Offline, Online, Phase
from agents.training.policies import AgentPolicy
from agents.training.watch import Watch
from worldmodels.base import Spaces, Storing, WorldModel
from worldmodels.envs import EnvPool
from worldmodels.replay.datasets import load_dataset
from worldmodels.replay.memory import Replay
from worldmodels.replay.restore import adopt, restore, set_aside
from worldmodels.replay.store import EpisodeStore

PACKAGES = ("torch", "lightning", "numpy", "mujoco", "dm-control", "gymnasium")


def build_networks(config: RunConfig, spaces: Spaces) -> tuple[WorldModel, Agent]:
    """World model and agent of a config, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    model = config.world_model.build(spaces)
    return model, config.agent.build(model)


class Run:
    """The parts of a run. ``env_steps`` and ``updates`` are the run's own counts, not Lightning's."""

    def __init__(self, command: Command):
        self.config, self.folder = command.config, command.run_dir
        config = self.config
        transfer = plan_transfer(command.world_model, command.transfer, config)  # a mistake shows before simulators run
        self.device = choose_device(config.training.device)
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        self.pool: EnvPool | None = None
        self.dataset: Replay | None = None
        fingerprint: dict[str, str] = {}
        if command.data is not None:
            self.dataset, spaces, fingerprint = self._load_data(command.data)
        if config.training.env_steps:
            seeds = [config.seed * 1000 + i for i in range(config.collect.num_envs)]
            self.pool = EnvPool(config.task, config.env, seeds, config.collect.workers, config.collect.worker_timeout_s)
            self._check_fits(fingerprint, spaces if self.dataset else self.pool.spaces)
            spaces, fingerprint = self.pool.spaces, self.pool.fingerprint
        elif self.dataset is None:
            raise ValueError("nothing to learn from: give --env-steps more than 0, or --data DIR")
        self.fingerprint, self.spaces = fingerprint, spaces
        self.model, self.agent = build_networks(config, spaces)
        self.transferred = transfer.into(self.model, fingerprint) if transfer else None
        self.model.to(self.device)
        self.agent.to(self.device)
        self.learner = Learner(
            self.model,
            self.agent,
            config.optimizers,
            config.world_model.scales,
            choose_precision(config.training.precision, self.device),
        )
        self.collector = self._collector() if self.pool is not None else None
        self.phases = self._phases()

    @property
    def env_steps(self) -> int:
        return self.collector.env_steps if self.collector else 0

    @property
    def updates(self) -> int:
        return self.learner.updates

    def _packed_bytes(self) -> int:
        return self.model.packed_bytes if self.config.replay.latents and isinstance(self.model, Storing) else 0

    def _replay_device(self, spaces: Spaces, capacity: int) -> torch.device:
        wanted = self.config.replay.device
        if wanted != "auto" or self.device.type == "cpu":
            return torch.device("cpu" if wanted == "auto" else wanted)
        # half of what is free: the networks and their activations need the rest
        fits = Replay.bytes_needed(spaces, capacity, self._packed_bytes()) < torch.cuda.mem_get_info()[0] // 2
        return self.device if fits else torch.device("cpu")

    def _collector(self) -> Collector:
        config, pool = self.config, self.pool
        assert pool is not None
        # a run never makes more steps than this; memory that it cannot fill is not claimed
        steps = config.training.env_steps // pool.action_repeat + 2 * pool.num_envs
        steps += steps // 20 + 100 * pool.num_envs  # resets are steps too
        capacity = max(min(config.replay.capacity, steps), config.replay.length * pool.num_envs)
        device = self._replay_device(pool.spaces, capacity)
        packed = self._packed_bytes()
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

    def _phases(self) -> list[Phase]:
        phases: list[Phase] = []
        if self.dataset is not None:
            if not self.config.training.offline_updates:
                raise ValueError("--data needs a number of updates to make on it: --training.offline-updates 10000")
            phases.append(Offline(self.config, self.learner, self.dataset))
        if self.collector is not None:
            phases.append(Online(self.config, self.learner, self.collector, self.collector.replay))
        return phases

    def _load_data(self, folder: Path) -> tuple[Replay, Spaces, dict[str, str]]:
        packed = 0  # a dataset has no latents, and none that training makes are kept
        return load_dataset(folder, packed_bytes=packed, device="cpu", seed=self.config.seed)

    def _check_fits(self, fingerprint: dict[str, str], spaces: Spaces) -> None:
        assert self.pool is not None
        if spaces != self.pool.spaces:
            raise ValueError(
                f"--data holds {spaces}, and {self.config.task} is {self.pool.spaces}: choose another task"
            )
        warn_of_differences(fingerprint, self.pool.fingerprint, "the data")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        optimizers = self.learner.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        state: dict[str, Any] = {
            "updates": self.updates,
            "env_steps": self.env_steps,
            "model": self.model.state_dict(),
            "agent": self.agent.state_dict(),
            "optimizers": [plain(optimizer.state_dict()) for optimizer in optimizers],
            "rng": random_state(),
            "fingerprint": self.fingerprint,
            "spaces": {
                "image": list(self.spaces.image),
                "action_dim": self.spaces.action_dim,
                "discrete": self.spaces.discrete,
            },
        }
        if self.dataset is not None:
            state["dataset"] = self.dataset.state_dict()
        if self.collector is not None:
            replay, store = self.collector.replay, self.collector.store
            state |= {
                "collector": self.collector.state_dict(),
                "replay": replay.state_dict(),
                "latents": replay.export_latents() if replay.packed_bytes else None,
                "manifest": store.manifest(),
                "open_tails": store.open_tails(),
            }
        return state

    def save(self) -> Path:
        return checkpoint.save(self.folder / "checkpoints", self.env_steps, self.updates, self.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, all but the optimisers and the random state: see ``load_optimizers``."""
        self.model.load_state_dict(state["model"])
        self.agent.load_state_dict(state["agent"])
        self.learner.updates = state["updates"]
        warn_of_differences(state["fingerprint"], self.fingerprint, "the checkpoint")
        if self.dataset is not None and "dataset" in state:
            self.dataset.load_state_dict(state["dataset"])
        if self.collector is not None and "collector" in state:
            self._load_experience(self.collector, state)

    def _load_experience(self, collector: Collector, state: dict[str, Any]) -> None:
        replay, store = collector.replay, collector.store
        replay.load_state_dict(state["replay"])
        restored = restore(replay, store, state["manifest"], state["open_tails"], state["latents"])
        restart: list[int] = []
        gained = 0
        for problem in restored.problems:
            print(f"warning: {problem}: left out", file=sys.stderr)
        if restored.newer:
            adopted = adopt(replay, store, restored.newer)
            set_aside(store, adopted.left)
            restart, gained = adopted.streams, adopted.env_steps
            print(
                f"{len(adopted.episodes)} episodes ({gained} env steps) were finished after the checkpoint: they are "
                f"in the replay again, the updates they are due will be made; {len(adopted.left)} set aside",
                file=sys.stderr,
            )
        begun = collector.load_state_dict(state["collector"], restart)
        collector.env_steps += gained
        if begun:
            print(f"{len(begun)} environments begin a new episode", file=sys.stderr)

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """To be called last, when Lightning has made the optimisers."""
        optimizers = self.learner.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        set_random_state(state["rng"])

    def close(self) -> None:
        if self.collector is not None:
            self.collector.store.flush()
        if self.pool is not None:
            self.pool.close()


def train(command: Command) -> Run:
    """Make or resume a run and see it through; returns when it is finished or was asked to stop."""
    state = checkpoint.load_newest(command.run_dir)[1] if command.resume else None
    run = Run(command)
    if state is None:
        run.folder.mkdir(parents=True, exist_ok=True)
    else:
        run.load(state)
    if run.transferred is not None:
        print(run.transferred, file=sys.stderr)
        (run.folder / "transfer.txt").write_text(f"{run.transferred}\n", encoding="utf-8")
    save_config(run.config, run.folder / "config.yaml")
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    (run.folder / "fingerprint.json").write_text(json.dumps({"env": run.fingerprint, "versions": versions}, indent=1))
    watch = Watch(run, state)
    try:
        for phase in run.phases:
            if not phase.finished and not watch.stopped:
                fit(run, phase, watch)
    finally:
        watch.close()
        run.close()
    return run


def fit(run: Run, phase: Phase, watch: Watch) -> None:
    """Hand one phase to Lightning."""
    watch.phase, run.learner.replay = phase, phase.replay
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else it lists the devices it does not use
    with warnings.catch_warnings():
        # a stream has neither workers nor a real length, and both are as intended
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Your `IterableDataset` has `__len__` defined.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")  # Lightning 2.6 on torch 2.13
        trainer = Trainer(
            max_epochs=-1,
            accelerator="gpu" if run.device.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
        )
        loader = torch.utils.data.DataLoader(phase, batch_size=None, num_workers=0)
        trainer.fit(run.learner, loader)


def warn_of_differences(old: dict[str, str], new: dict[str, str], what: str) -> None:
    """One line for what looks or behaves differently from the environment that something was made in."""
    different = [f"{key} {old[key]} -> {new[key]}" for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    if different:
        print(f"warning: {what} came from another environment: {', '.join(different)}", file=sys.stderr)


def plain(value: Any) -> Any:
    """Tuples as lists, so that nothing but tensors, numbers, str, lists and dicts is left."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def random_state() -> dict[str, Any]:
    """Of torch, and of Python and NumPy as JSON, which no reader has to unpickle."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([name, np.asarray(keys).tolist(), *rest]),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Undo ``random_state``."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version_, internal, gauss = json.loads(state["python"])
    random.setstate((version_, tuple(internal), gauss))
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
