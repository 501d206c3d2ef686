"""Trained agents with their world models: from a run's newest checkpoint or a saved folder, to act or to begin with.

::

    from agents import load_agent
    policy = load_agent("runs/dreamer/walker-walk/20260101-120000-seed0")
    action = policy(obs, is_first)  # uint8 [1, h, w, c], bool [1] -> float32 [1, A]

A saved folder is that of ``worldmodels.pretrained`` with ``agent.safetensors`` beside the world model's weights.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.base import Agent, Evolving
from agents.training import checkpoint, cli
from agents.training.config import RunConfig, load_config
from agents.training.policies import AgentPolicy
from worldmodels.base import Spaces, WorldModel
from worldmodels.pretrained import (
    AGENT_WEIGHTS,
    CONFIG,
    FORMAT,
    WEIGHTS,
    Card,
    Part,
    Saved,
    SavedModelError,
    Training,
    build,
    building,
    check_described,
    check_fits,
    installed_versions,
    read_card,
    read_saved,
    read_tensors,
    write_saved,
)
from worldmodels.strict import config_class, from_dict, to_dict
from worldmodels.transfer import Frozen, choose_recipe, lasting, load_weights, part_for
from worldmodels.zoo import find


class Trained(NamedTuple):
    """A world model and an agent with their weights, and what they are."""

    card: Card
    model: WorldModel
    agent: Agent


class TrainedPolicy:
    """Acts in ``batch`` environments at once; remembers what it saw until ``is_first``. Made by ``load_agent``."""

    def __init__(self, trained: Trained, batch: int, *, explore: bool, seed: int):
        self.card, self.model, self.agent = trained
        self.spaces, self.batch = self.card.spaces, batch
        self._policy = AgentPolicy(self.model, self.agent, batch, explore=explore, seed=seed)

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """Images uint8 ``[B, h, w, c]`` and whether they begin an episode, bool ``[B]``, to actions float32 ``[B, A]``.

        Raises ``ValueError`` for anything else.
        """
        obs, is_first = np.asarray(obs), np.asarray(is_first)
        for name, value, dtype, shape in (
            ("obs", obs, np.uint8, (self.batch, *self.spaces.image)),
            ("is_first", is_first, np.bool_, (self.batch,)),
        ):
            if value.dtype != dtype or value.shape != shape:
                raise ValueError(
                    f"{name} must be {dtype.__name__} {list(shape)}, not {value.dtype} {list(value.shape)}; "
                    "load_agent(..., batch=B) is for B environments"
                )
        return self._policy(obs, is_first)


def load_agent(
    source: str | Path,
    batch: int = 1,
    *,
    explore: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> TrainedPolicy:
    """A trained agent ready to act, from a run or a saved folder; all its noise comes from ``seed``.

    Raises ``ValueError`` of one line where there is none, or something is damaged or does not fit.
    """
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, not {batch}")
    return TrainedPolicy(load_trained(source, device), batch, explore=explore, seed=seed)


def load_trained(source: str | Path, device: str | torch.device = "cpu") -> Trained:
    """World model and agent of a run or a saved folder, as they were saved, to be used. Raises ``ValueError``."""
    saved, weights = read_trained(Path(source))
    part, where = saved.card.agent, f"{source}: agent"
    if part is None:
        raise SavedModelError(f"{source} holds a world model alone, without an agent")
    config = from_dict(config_class("agents", part.type, where), part.config, f"{where}.config")
    model = build(saved)
    with building(where):
        agent = config.build(model)
    check_fits(weights, agent.state_dict(), f"the agent of {source} does not fit its config")
    agent.load_state_dict(weights)
    return Trained(saved.card, model.to(device).eval(), agent.to(device).eval())


def load_with_agent(source: str | Path, name: str, settings: list[str], device: str | torch.device = "cpu") -> Trained:
    """The world model of a run or a saved folder with another agent, one that has nothing of its own to learn.

    ``settings`` are words of the command line, such as ``--agent.planner.horizon 8``. Raises ``ValueError``.
    """
    saved, _ = read_trained(Path(source))
    config = cli.parse(["--agent", name, "--world-model", str(source), *settings]).config
    if config.world_model_type != saved.card.world_model.type:
        raise SavedModelError(
            f"{name} acts on {config.world_model_name}, and {source} trained only a part of that: "
            f"python scripts/train.py --agent {name} --world-model {source}"
        )
    model = build(saved)
    agent = config.agent.build(model)
    if any(True for _ in agent.parameters()) or isinstance(agent, Evolving):
        raise SavedModelError(
            f"{name} has networks of its own that {source} did not train: "
            f"python scripts/train.py --agent {name} --world-model {source}"
        )
    part = Part(name=config.agent_name, type=config.agent_type, config=to_dict(config.agent))
    return Trained(replace(saved.card, agent=part), model.to(device).eval(), agent.to(device).eval())


def read_trained(source: Path) -> tuple[Saved, dict[str, Tensor]]:
    """Card and tensors of the world model, and tensors of the agent, of a run or a folder. Raises ``ValueError``.

    The source may also be ``zoo:NAME`` or ``hf:OWNER/NAME`` (``worldmodels.zoo``).
    """
    source = find(source)
    if (source / "config.yaml").is_file():
        return read_run(source)
    if not (source / CONFIG).is_file():
        raise SavedModelError(f"{source} is neither a run (no config.yaml there) nor a saved model (no {CONFIG})")
    agent = {} if read_card(source).agent is None else read_tensors(source / AGENT_WEIGHTS)
    return read_saved(source), agent


def read_run(run: Path) -> tuple[Saved, dict[str, Tensor]]:
    """``read_trained`` of a run's newest checkpoint; the card is without returns. Raises ``ValueError``."""
    config = load_config(run / "config.yaml")
    path, state = checkpoint.load_newest(run)
    card = Card(
        format=FORMAT,
        world_model=Part(
            name=config.world_model_name, type=config.world_model_type, config=to_dict(config.world_model)
        ),
        agent=Part(name=config.agent_name, type=config.agent_type, config=to_dict(config.agent)),
        spaces=from_dict(Spaces, state["spaces"], f"{path}: spaces"),
        task=config.task,
        env=config.env,
        fingerprint=state["fingerprint"],
        versions=installed_versions(),
        training=Training(env_steps=state["env_steps"], updates=state["updates"], returns={}),
    )
    return Saved(str(path), card, state["model"]), state["agent"]


def save_agent(
    trained: Trained, folder: str | Path, *, overwrite: bool = False, half: bool = False, run: str | None = None
) -> Path:
    """Write world model and agent whole or not at all; the folder. Raises ``ValueError`` where that cannot be.

    ``half``: float32 tensors are rounded to bfloat16 in the file. ``run``: the config of the run that trained them.
    """
    card, model, agent = trained
    if card.agent is None:
        raise SavedModelError("the card names no agent: use worldmodels.pretrained.save_pretrained")
    check_described(model, card)
    return write_saved(folder, card, {WEIGHTS: model, AGENT_WEIGHTS: agent}, overwrite, half=half, run=run)


def export(run: str | Path, folder: str | Path, *, overwrite: bool = False, half: bool = False) -> Path:
    """``save_agent`` of a run's newest checkpoint, with the returns of its last evaluation until then; the folder."""
    if not (Path(run) / "config.yaml").is_file():
        raise SavedModelError(f"{run}: no config.yaml there; a run is the folder that training wrote")
    card, model, agent = load_trained(run)
    returns = evaluated(Path(run), card.training.env_steps)
    card = replace(card, training=replace(card.training, returns=returns))
    config = (Path(run) / "config.yaml").read_text(encoding="utf-8")
    return save_agent(Trained(card, model, agent), folder, overwrite=overwrite, half=half, run=config)


def evaluated(run: Path, env_steps: int) -> dict[str, float]:
    """Returns of the last evaluation of a run up to some age, with those of random and of no actions; maybe none."""
    from agents.training.logging import read_metrics  # here, because plotting libraries come with it

    metrics = run / "metrics.jsonl"
    history = read_metrics(metrics) if metrics.is_file() else []
    found = [entry for entry in history if "eval/return_mean" in entry and entry["env_steps"] <= env_steps]
    last = {key.removeprefix("eval/"): value for key, value in (found or [{}])[-1].items() if key.startswith("eval/")}
    return {key: value for key, value in last.items() if "return" in key and math.isfinite(value)}


@dataclass(frozen=True)
class Transfer:
    """A saved world model that a run begins with, and the recipe that says what it keeps of it."""

    saved: Saved
    part: str  # of the run's world model that the saved one fills; empty: all of it
    recipe: str
    config: RunConfig

    def into(self, model: WorldModel, fingerprint: dict[str, str]) -> tuple[str, Frozen]:
        """Load into a newly built model; the report, every tensor in a line, and what is frozen.

        Raises ``ConfigError``.
        """
        report = load_weights(model, self.saved, self.recipe, self.config.transfer, self.part)
        there, here = self.saved.card, self.config
        before = there.fingerprint | {f"env.{key}": str(value) for key, value in to_dict(there.env).items()}
        now = fingerprint | {f"env.{key}": str(value) for key, value in to_dict(here.env).items()}
        other = [f"{key} {before[key]} -> {now[key]}" for key in before if now.get(key, before[key]) != before[key]]
        heading, *lines = report.lines()
        about = [
            heading,
            f"task: {there.task} -> {here.task}" if there.task != here.task else f"task: {here.task}, the same",
            f"environment: {', '.join(other)}" if other else "environment: the same",
            f"agent: {here.agent_name}, fresh with all its networks; optimisers and replay are fresh too",
        ]
        if report.frozen.tensors:
            about.append(f"frozen{lasting(report.frozen)}: {len(report.frozen.tensors)} tensors")
        return "\n".join([*about, *lines]), report.frozen


def plan_transfer(source: Path | None, recipe: str | None, config: RunConfig) -> Transfer | None:
    """What ``--world-model SOURCE --transfer RECIPE`` asks for, read before anything is built; None without a source.

    Raises ``ConfigError``.
    """
    if source is None:
        if recipe is not None:
            raise SavedModelError(f"--transfer {recipe} needs a --world-model that is a run or a saved folder")
        return None
    saved, _ = read_trained(source)
    part = part_for(config_class("worldmodels", saved.card.world_model.type, str(source)), type(config.world_model))
    assert part is not None, "the command line has put the saved one in"
    return Transfer(saved, part, choose_recipe(recipe, saved.card.task, config.task), config)
