"""Gather experience: act in a pool of environments, remember every step."""

from typing import Any, NamedTuple

import numpy as np
import torch

from agents.training.policies import AgentPolicy
from worldmodels.base import Storing
from worldmodels.envs import EnvPool, Step
from worldmodels.replay.memory import Replay
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
        action = self.policy.act_randomly() if self.env_steps < self.prefill else self.policy.act()
        model, action = self.policy.model, action.float().cpu()
        packed = model.pack(latent) if isinstance(model, Storing) and self.replay.packed_bytes else None
        self.replay.add(step, action, packed)
        self.store.add(step, action)
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
        """For a checkpoint: counters, policy, environments as far as they can, and the step not yet acted on."""
        arrived = None if self.arrived is None else [torch.from_numpy(np.array(part)) for part in self.arrived]
        return {
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "totals": self.totals.tolist(),
            "lengths": self.lengths.tolist(),
            "policy": self.policy.state_dict(),
            "arrived": arrived,
            "envs": self.pool.get_state() if arrived is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any], restart: list[int]) -> list[int]:
        """Go on from a checkpoint. Environments in ``restart``, and those without a saved state, begin an episode.

        Returns the environments that do.
        """
        self.env_steps, self.episodes = state["env_steps"], state["episodes"]
        self.totals, self.lengths = np.array(state["totals"]), np.array(state["lengths"], np.int64)
        self.policy.load_state_dict(state["policy"])
        if state["arrived"] is None:
            return []
        saved = Step(*(part.numpy() for part in state["arrived"]))
        envs = [None if i in restart else env for i, env in enumerate(state["envs"])]
        # an episode that had just ended needs no state: its environment is reset at the next step anyway
        begun = [i for i, env in enumerate(envs) if env is None and not (saved.is_last[i] and i not in restart)]
        restored = self.pool.set_state(envs)
        fresh = np.isin(np.arange(self.pool.num_envs), begun)
        self.arrived = Step(
            *(
                np.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(restored, saved, strict=True)
            )
        )
        return begun
