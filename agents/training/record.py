"""Record episodes with any policy, to learn from later: random, none, scripted, or a trained agent."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.pretrained import load_trained
from agents.training import cli
from agents.training.devices import choose_device
from agents.training.evaluate import training_seeds
from agents.training.policies import AgentPolicy, Policy, RandomPolicy, ZeroPolicy
from worldmodels.base import Spaces
from worldmodels.envs import EnvConfig, EnvPool, make_env, suite_of
from worldmodels.replay.episodes import require_empty
from worldmodels.replay.store import EpisodeStore

UNTRAINED = ("random", "zero", "optimal")


class Player(NamedTuple):
    """A task, how it is shown, and who plays it."""

    task: str
    env: EnvConfig
    policy: Callable[[Spaces, list[Any]], Policy]
    """Makes the policy, for the spaces and what ``record`` says of the environments."""


class Recorded(NamedTuple):
    """What is on disk."""

    episodes: int
    cut: int  # of these, ended because enough was recorded
    env_steps: int
    returns: list[float]  # undiscounted, of the episodes that were not cut


class ScriptedPolicy:
    """What a built-in task's own player who sees the state does (``optimal_action``)."""

    def __init__(self, envs: list[Any]):
        self.envs = envs

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        return np.stack([env.optimal_action() for env in self.envs]).astype(np.float32)


class MixedPolicy:
    """One policy, but each action is ``other``'s with the chance ``share``: quality in between."""

    def __init__(self, policy: Policy, other: Policy, share: float, seed: int):
        self.policy, self.other, self.share, self.rng = policy, other, share, np.random.default_rng(seed)

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        first, second = self.policy(obs, is_first), self.other(obs, is_first)
        return np.where(self.rng.random((len(obs), 1)) < self.share, second, first)


def choose_player(
    name: str, task: str | None, settings: list[str], *, num_envs: int, seed: int, explore: bool, random_share: float
) -> Player:
    """The policy of a name: one of ``UNTRAINED``, or a run, a saved folder or ``zoo:NAME``, in its own task by default.

    ``settings`` are words of the command line, such as ``--env.size 32``. Raises ``ValueError``.
    """
    device = choose_device("auto")
    trained = None if name in UNTRAINED else load_trained(name, device)
    if trained is None and task is None:
        raise ValueError(f"--policy {name} needs a --task; --list-tasks of train.py shows what there is")
    origin = [] if trained is None else ["--world-model", name]
    task_named = task or (trained.card.task if trained else "")
    config = cli.parse(["--agent", "none", "--task", task_named, *origin, *settings]).config
    if name == "optimal" and suite_of(config.task) != "toy":
        raise ValueError(f"nobody knows the optimal player of {config.task}: only built-in tasks (toy:) have one")

    def policy(spaces: Spaces, envs: list[Any]) -> Policy:
        chance = RandomPolicy(spaces, seed)
        if trained is not None:
            if trained.model.spaces != spaces:
                raise ValueError(f"{name} plays in {trained.model.spaces}, and {config.task} is {spaces}")
            player: Policy = AgentPolicy(trained.model, trained.agent, num_envs, explore=explore, seed=seed)
        else:
            player = {"zero": ZeroPolicy(spaces), "optimal": ScriptedPolicy(envs), "random": chance}[name]
        return MixedPolicy(player, chance, random_share, seed) if random_share and player is not chance else player

    return Player(config.task, config.env, policy)


def record(player: Player, folder: Path, *, env_steps: int, num_envs: int, seed: int) -> Recorded:
    """Play until ``env_steps`` have been taken, all environments together, and write what was seen as ``.wme``.

    ``player.policy`` gets the environments themselves in built-in tasks, else none. Recording stops at the first step
    that reaches the number, which with one environment and no action repeat is exactly it; episodes still open then are
    written as ``cut``. Raises ``ValueError`` where the folder holds something.
    """
    require_empty(folder)
    envs: list[Any] = []

    def built_in(config: EnvConfig, seed: int) -> Any:
        envs.append(make_env(player.task, config, seed))
        return envs[-1]

    seeds = [training_seeds([seed, i])[0] for i in range(num_envs)]
    task = built_in if suite_of(player.task) == "toy" else player.task
    with EnvPool(task, player.env, seeds, "serial", 60.0) as pool:
        act = player.policy(pool.spaces, envs)
        store = EpisodeStore(folder, pool.spaces, num_envs, task=player.task, fingerprint=pool.fingerprint, seed=seed)
        totals, returns, said = np.zeros(num_envs), [], time.monotonic()
        step = pool.reset()
        while True:
            action = act(step.obs, step.is_first)
            store.add(step, action)
            totals = np.where(step.is_first, 0.0, totals) + step.reward
            returns += totals[step.is_last].tolist()
            if store.env_steps >= env_steps:
                break
            if time.monotonic() - said > 1:
                said = time.monotonic()
                print(f"\renv {store.env_steps}/{env_steps} · {len(returns)} episodes", end="", file=sys.stderr)
            step = pool.step(action)
        store.close()
    print(f"\renv {store.env_steps}/{env_steps} · {len(returns)} episodes", file=sys.stderr)
    return Recorded(len(store.names), len(store.names) - len(returns), store.env_steps, returns)
