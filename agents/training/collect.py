"""Gather experience: act in a pool of environments, remember every step."""

import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.training.policies import AgentPolicy
from worldmodels.base import Storing
from worldmodels.envs import EnvPool, Step
from worldmodels.replay.episodes import sync_directory
from worldmodels.replay.memory import Replay
from worldmodels.replay.restore import adopt, restore
from worldmodels.replay.store import EpisodeStore


class Finished(NamedTuple):
    """An episode that has just ended."""

    total: float  # return, undiscounted
    length: int  # actions taken


class Collector:
    """Steps B environments with a policy and feeds replay and episode store.

    ``env_steps`` counts what has been remembered. Until ``prefill`` env steps actions are random.
    """

    def __init__(self, pool: EnvPool, policy: AgentPolicy, replay: Replay, store: EpisodeStore, prefill: int):
        self.pool, self.policy, self.replay, self.store, self.prefill = pool, policy, replay, store, prefill
        self.env_steps, self.episodes = 0, 0
        self.arrived: Step | None = None  # not yet acted on
        self.totals, self.lengths = np.zeros(pool.num_envs), np.zeros(pool.num_envs, np.int64)

    def step(self) -> list[Finished]:
        """Act once in every environment; the episodes that ended with what was seen before acting."""
        step = self.arrived if self.arrived is not None else self.pool.reset()
        latent = self.policy.observe(step.obs, step.is_first)
        model = self.policy.model
        features, random = model.features(latent), self.env_steps < self.prefill
        if random:
            action = self.policy.act_randomly()
        else:
            action = self.policy.act()
            is_first = torch.as_tensor(step.is_first, device=action.device)
            self.policy.agent.collected(features, action, self.policy.carry, is_first)
        log_prob = self.policy.log_prob(features, random=random)
        action, log_prob = action.float().cpu(), None if log_prob is None else log_prob.float().cpu()
        packed = model.pack(latent) if isinstance(model, Storing) and self.replay.packed_bytes else None
        self.replay.add(step, action, packed, log_prob)
        self.store.add(step, action, log_prob)
        self.env_steps += int(step.env_steps.sum())
        finished = self._count(step)
        self.arrived = self.pool.step(action.numpy())
        return finished

    def _count(self, step: Step) -> list[Finished]:
        self.totals = np.where(step.is_first, 0.0, self.totals) + step.reward
        self.lengths = np.where(step.is_first, 0, self.lengths + 1)
        self.episodes += int(step.is_last.sum())
        ends = np.flatnonzero(step.is_last)
        return [Finished(float(self.totals[i]), int(self.lengths[i])) for i in ends]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: counters, policy, environments as far as they can, the step not yet acted on, and what
        brings replay and store back to this moment. Every finished episode is on disk when this returns."""
        arrived = None if self.arrived is None else [torch.from_numpy(np.array(part)) for part in self.arrived]
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "totals": self.totals.tolist(),
            "lengths": self.lengths.tolist(),
            "policy": self.policy.state_dict(),
            "arrived": arrived,
            "envs": self.pool.get_state() if arrived is not None else None,
            "replay": self.replay.state_dict(),
            "latents": self.replay.export_latents() if self.replay.packed_bytes else None,
            "manifest": self.store.manifest(),
            "open_tails": self.store.open_tails(),
        }

    def load_state_dict(self, state: dict[str, Any], *, same_world: bool = True) -> None:
        """Go on from a checkpoint; on stderr what is not as it was then.

        Episodes that were finished after it are adopted, or set aside where they do not continue what is held.
        Environments whose episodes these were begin new ones, as do those without a saved state, and all of them
        where ``same_world`` is False: the simulator is another one.
        """
        self.env_steps, self.episodes = state["env_steps"], state["episodes"]
        self.totals, self.lengths = np.array(state["totals"]), np.array(state["lengths"], np.int64)
        self.policy.load_state_dict(state["policy"])
        overtaken = self._load_experience(state)
        if state["arrived"] is not None:
            restart = overtaken if same_world else list(range(self.pool.num_envs))
            begun = self._load_envs(state["envs"], Step(*(part.numpy() for part in state["arrived"])), restart)
            if begun:
                print(f"{len(begun)} of {self.pool.num_envs} environments begin a new episode", file=sys.stderr)

    def _load_experience(self, state: dict[str, Any]) -> list[int]:
        """Replay and store, and what was finished since; the streams that have gone on since."""
        replay, store = self.replay, self.store
        replay.load_state_dict(state["replay"])
        restored = restore(replay, store, state["manifest"], state["open_tails"], state["latents"])
        adopted = adopt(replay, store, restored.newer)
        self.env_steps += adopted.env_steps
        self.episodes += len(adopted.episodes)
        for problem in restored.problems + adopted.problems:
            print(f"warning: {problem}: left out", file=sys.stderr)
        if adopted.episodes:
            print(
                f"{len(adopted.episodes)} episodes ({adopted.env_steps} env steps) were finished after the checkpoint: "
                "they are in the replay again, and the updates that they are due will be made",
                file=sys.stderr,
            )
        if strays := set_strays_aside(store):
            print(f"{strays} files in {store.directory} are no part of this run any more: set aside", file=sys.stderr)
        return adopted.streams

    def _load_envs(self, states: list[dict[str, Any] | None], saved: Step, restart: list[int]) -> list[int]:
        """The environments' states and what had arrived from them; those that begin a new episode."""
        envs = [None if i in restart else env for i, env in enumerate(states)]
        begun = [i for i, env in enumerate(envs) if env is None and (i in restart or not saved.is_last[i])]
        new = self.pool.set_state(envs)
        fresh = np.isin(np.arange(self.pool.num_envs), begun)
        self.arrived = Step(
            *(np.where(fresh.reshape(-1, *[1] * (b.ndim - 1)), a, b) for a, b in zip(new, saved, strict=True))
        )
        for i in np.flatnonzero(saved.is_last & ~fresh):  # ended, maybe without a state: to be reset at the next step
            self.pool._last[i] = Step(*(part[i] for part in self.arrived))
        return begun


def set_strays_aside(store: EpisodeStore) -> int:
    """Move episode files that a restored store does not list into ``set_aside``; how many there were.

    A run must not come upon them under names that it is going to use: they do not continue what it holds, or are
    damaged.
    """
    strays = sorted({path.name for path in store.directory.glob("*.wme")} - set(store.names))
    folder = store.directory / "set_aside"
    for name in strays:
        folder.mkdir(exist_ok=True)
        target, copies = folder / name, 1
        while target.exists():
            copies += 1
            target = folder / f"{copies}-{name}"
        (store.directory / name).rename(target)
    if strays:
        sync_directory(folder)
        sync_directory(store.directory)
    return len(strays)
