"""A model, recorded episodes and an environment to play with: ``toy:reach`` and others, 32 pixels, untrained."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from small import awake

from agents.pretrained import Trained
from agents.training.config import RunConfig
from agents.training.play.session import Session, View
from agents.training.play.starts import ReplayStarts
from worldmodels.envs import Env, EnvPool, make_env
from worldmodels.pretrained import FORMAT, Card, Part, Training
from worldmodels.replay import EpisodeStore
from worldmodels.strict import to_dict

SIZE = 32


def trained(config: RunConfig, task: str) -> Trained:
    """An untrained model and agent of a debug run, whose every weight shows."""
    torch.manual_seed(0)
    env = make_env(task, config.env, 0)
    model = config.world_model.build(env.spaces)
    agent = config.agent.build(model)
    awake(model, agent, seed=1)
    card = Card(
        format=FORMAT,
        world_model=Part(
            name=config.world_model_name, type=config.world_model_type, config=to_dict(config.world_model)
        ),
        agent=Part(name=config.agent_name, type=config.agent_type, config=to_dict(config.agent)),
        spaces=env.spaces,
        task=task,
        env=config.env,
        fingerprint=env.fingerprint,
        versions={},
        training=Training(env_steps=120, updates=3, returns={}),
    )
    return Trained(card, model.eval(), agent.eval())


def record_episodes(folder: Path, config: RunConfig, task: str, count: int = 2) -> None:
    """Episodes of random actions, written as a run writes them."""
    rng = np.random.default_rng(0)
    with EnvPool(task, config.env, [7], "serial", 60.0) as pool:
        env = make_env(task, config.env, 0)
        store = EpisodeStore(folder, env.spaces, 1, task=task, fingerprint=env.fingerprint, seed=0, background=False)
        step, over = pool.reset(), 0
        while over < count:
            action = rng.uniform(-1, 1, (1, env.spaces.action_dim)).astype(np.float32)
            if env.spaces.discrete:
                action = np.eye(env.spaces.action_dim, dtype=np.float32)[action.argmax(-1)]
            store.add(step, action)
            over += int(step.is_last[0])
            step = pool.step(action)
        store.flush()


class Stage:
    """A model, recorded episodes, and how many environments are open."""

    def __init__(self, folder: Path, config: RunConfig, task: str):
        self.folder, self.trained, self.open, self.made = folder, trained(config, task), 0, 0
        record_episodes(folder / "replay", config, task)
        self._make = partial(make_env, task, config.env, 0)

    def make(self) -> Env:
        env = self._make()
        close = env.close
        self.open, self.made = self.open + 1, self.made + 1

        def closed() -> None:
            self.open -= 1
            close()

        env.close = closed
        return env

    def session(self) -> Session:
        found = ReplayStarts(self.folder / "replay", self.trained.model.spaces)
        return Session(self.trained, found, self.make, self.folder / "videos")


def same(a: View, b: View) -> bool:
    return a.facts == b.facts and all(np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True))
