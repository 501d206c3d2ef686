"""Play whole episodes with a policy and say what came of it."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.base import Agent
from agents.training.config import RunConfig
from agents.training.policies import AgentPolicy, Policy, RandomPolicy, ZeroPolicy
from worldmodels.base import Sequence, Spaces, WorldModel
from worldmodels.envs import EnvConfig, EnvPool
from worldmodels.envs.base import HELD_OUT_SEED

ENVS_AT_ONCE = 16
FIRST_SEED = HELD_OUT_SEED  # of evaluation episodes; seeds of training stay below


def training_seeds(entropy: Items[int], count: int = 1) -> list[int]:
    """Seeds of environments that no evaluation has; other numbers give other ones."""
    return [int(number) % FIRST_SEED for number in np.random.SeedSequence(entropy).generate_state(count)]


class Recording(NamedTuple):
    """One episode, timeline of ``worldmodels.base``; T = actions + 1."""

    obs: np.ndarray  # uint8 [T, h, w, c]
    action: np.ndarray  # float32 [T, A]; the last one was never taken
    reward: np.ndarray  # float32 [T]
    is_terminal: bool


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths (actions) of whole episodes, and whether they ended terminally, by seed."""

    returns: list[float]
    lengths: list[int]
    terminal: list[bool]
    recordings: list[Recording]  # of the first few episodes

    def summary(self) -> dict[str, Any]:
        """Mean, standard deviation over episodes, and every single value; ``terminal_share`` did not end by time.

        What a terminal end means is the task's affair: in ``toy:sokoban`` that it was solved.
        """
        return {
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "length_mean": float(np.mean(self.lengths)),
            "terminal_share": float(np.mean(self.terminal)),
            "returns": self.returns,
            "lengths": self.lengths,
        }


class Stage(NamedTuple):
    """Where episodes are played."""

    task: str
    env: EnvConfig
    workers: str = "serial"
    timeout_s: float = 60.0


def stage_of(config: RunConfig) -> Stage:
    """Where a run's episodes are played."""
    return Stage(config.task, config.env, config.collect.workers, config.collect.worker_timeout_s)


def check_stage(stage: Stage, spaces: Spaces) -> dict[str, str]:
    """The fingerprint of the world there; raises ``ValueError`` where it has other spaces than what is learned from."""
    with EnvPool(stage.task, stage.env, [FIRST_SEED], "serial", stage.timeout_s) as pool:
        if pool.spaces != spaces:
            cure = f"--env.size {spaces.image[0]}, or --training.eval-every 0 to play nothing"
            raise ValueError(f"what is learned from has {spaces}, and {stage.task} is {pool.spaces}: {cure}")
        return pool.fingerprint


def evaluation_seeds(episodes: int) -> list[int]:
    """Seeds of evaluation episodes, the same every time."""
    return [FIRST_SEED + i for i in range(episodes)]


def evaluate(stage: Stage, policy: Callable[[int], Policy], seeds: Items[int], *, record: int = 0) -> Evaluation:
    """One episode for each seed, many at once; ``policy`` makes one for a given number of environments.

    Images are kept of the first ``record`` episodes.
    """
    returns, lengths, terminal, recordings = [], [], [], []
    for begin in range(0, len(seeds), ENVS_AT_ONCE):
        chunk = seeds[begin : begin + ENVS_AT_ONCE]
        with EnvPool(stage.task, stage.env, chunk, stage.workers, stage.timeout_s) as pool:
            for episode in play(pool, policy(len(chunk)), record - len(recordings)):
                returns.append(float(episode.reward.sum()))
                lengths.append(len(episode.reward) - 1)
                terminal.append(episode.is_terminal)
                if len(recordings) < record:
                    recordings.append(episode)
    return Evaluation(returns, lengths, terminal, recordings)


def evaluate_agent(stage: Stage, model: WorldModel, agent: Agent, episodes: int, *, record: int = 0) -> Evaluation:
    """The agent at its best: no exploration."""
    noise = count(FIRST_SEED)  # other noise whenever environments begin anew, or episodes repeat each other's luck

    def policy(batch: int) -> Policy:
        return AgentPolicy(model, agent, batch, explore=False, seed=next(noise))

    return evaluate(stage, policy, evaluation_seeds(episodes), record=record)


def evaluate_baselines(stage: Stage, spaces: Spaces, episodes: int) -> dict[str, Evaluation]:
    """Random actions and no actions, on the seeds that an agent is evaluated on."""
    noise = count(FIRST_SEED)
    policies: dict[str, Callable[[int], Policy]] = {
        "random": lambda batch: RandomPolicy(spaces, next(noise)),
        "zero": lambda batch: ZeroPolicy(spaces),
    }
    return {name: evaluate(stage, policy, evaluation_seeds(episodes)) for name, policy in policies.items()}


def play(pool: EnvPool, policy: Policy, record: int) -> list[Recording]:
    """The first episode of every environment; images of the first ``record`` ones only."""
    rows: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in range(pool.num_envs)]
    terminal = [False] * pool.num_envs
    going_on = set(range(pool.num_envs))
    step = pool.reset()
    while going_on:
        action = policy(step.obs, step.is_first)
        for i in sorted(going_on):
            image = step.obs[i].copy() if i < record else np.empty((0, 0, 0), np.uint8)
            rows[i].append((image, action[i], float(step.reward[i])))
            if step.is_last[i]:
                terminal[i] = bool(step.is_terminal[i])
                going_on.remove(i)
        step = pool.step(action)
    columns = [[np.stack(column) for column in zip(*row, strict=True)] for row in rows]
    return [
        Recording(obs, action, reward.astype(np.float32), end)
        for (obs, action, reward), end in zip(columns, terminal, strict=True)
    ]


def windows(recordings: Items[Recording], spaces: Spaces, length: int) -> Sequence:
    """The middle ``length`` steps (or as many as the shortest has) of recorded episodes, as a batch to look at."""
    length = min([length, *(len(r.reward) for r in recordings)])
    starts = [(len(r.reward) - length) // 2 for r in recordings]

    def cut(field: str) -> torch.Tensor:
        parts = [getattr(r, field)[s : s + length] for r, s in zip(recordings, starts, strict=True)]
        return torch.from_numpy(np.stack(parts))

    is_first = torch.zeros(len(recordings), length, dtype=torch.bool)
    is_last, is_terminal = is_first.clone(), is_first.clone()
    is_first[:, 0] = True
    for i, (recording, start) in enumerate(zip(recordings, starts, strict=True)):
        if start + length == len(recording.reward):
            is_last[i, -1], is_terminal[i, -1] = True, recording.is_terminal
    prev_action = torch.zeros(len(recordings), spaces.action_dim)
    return Sequence(cut("obs"), cut("action"), cut("reward"), is_first, is_last, is_terminal, prev_action)
