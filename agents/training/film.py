"""Films of what a model imagines, and a policy dreams or plans, from sequences that really happened."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from agents.base import Agent, Planning
from agents.training.imagined import headline, imagine_open_loop, open_loop_metrics, policy_dream
from agents.training.video import draw_dream, draw_rollouts, write_json, write_video
from worldmodels.base import Decoding, Latent, Rewarded, Sequence, WorldModel, cut, map_latent, on_device

CONTEXT, HORIZON = 5, 45  # steps seen and imagined (Dreamer V1)
COLUMNS = 6  # sequences side by side


class Film(NamedTuple):
    """A video, where it lies, and numbers about it for the log."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    path: Path
    metrics: dict[str, float]


def can_film(model: WorldModel) -> bool:
    """Whether a model draws images and predicts rewards."""
    return isinstance(model, Decoding) and isinstance(model, Rewarded)


def check_film_path(path: Path) -> None:
    """Raises ``ValueError`` for what will be no video, before anything is played for it."""
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"cannot write {path}: a video ends in .mp4 or .gif")


def film_imagination(
    model: WorldModel, sequence: Sequence, context: int, path: Path, *, task: str, env_steps: int, seed: int = 0
) -> Film:
    """Truth, reconstruction, imagination, error: a video at ``path`` (.mp4) and a JSON of the same name beside it."""
    device = next(model.parameters()).device
    context = min(context, sequence.obs.shape[1] - 1)
    imagined = imagine_open_loop(model, on_device(sequence, device), context, Generator(device).manual_seed(seed))
    frames = draw_rollouts(imagined, task=task, env_steps=env_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(open_loop_metrics(imagined, env_steps), path.with_suffix(".json"))
    return Film(frames, write_video(frames, path), headline(imagined))


def film_policy(
    model: WorldModel, agent: Agent, sequence: Sequence, context: int, horizon: int, path: Path, **labels: Any
) -> Film:
    """What an agent has in mind after the context: the plan of one that plans, else a dream of ``horizon`` steps."""
    if isinstance(agent, Planning):
        return film_plan(model, agent, sequence, context, path, **labels)
    return film_dream(model, agent, sequence, context, horizon, path, **labels)


def film_dream(
    model: WorldModel,
    agent: Agent,
    sequence: Sequence,
    context: int,
    horizon: int,
    path: Path,
    *,
    task: str,
    env_steps: int,
    seed: int = 0,
) -> Film:
    """The policy's own dream from the end of the context on: a video at ``path`` (.mp4)."""
    device = next(model.parameters()).device
    generator = Generator(device).manual_seed(seed)
    context = min(context, sequence.obs.shape[1])
    seen = cut(on_device(sequence, device), slice(context))
    with torch.no_grad():
        latent = map_latent(lambda part: part[:, -1], model.filter(seen, generator))
    carry = agent.initial(len(seen.reward), device)

    def act(latent: Latent) -> Tensor:
        nonlocal carry
        action, carry = agent.act(model, latent, carry, explore=False, generator=generator)
        return action

    dream = policy_dream(model, act, latent, horizon, generator)
    frames = draw_dream(dream, task=task, env_steps=env_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"dream/reward": float(dream.reward.mean()), "dream/continues": float(dream.continues.mean())}
    return Film(frames, write_video(frames, path), metrics)


def film_plan(
    model: WorldModel,
    agent: Planning,
    sequence: Sequence,
    context: int,
    path: Path,
    *,
    task: str,
    env_steps: int,
    seed: int = 0,
) -> Film:
    """What a planner has in mind after the context, beside what then happened: a video at ``path`` (.mp4).

    It planned again at every step, so the two may part without the model being wrong.
    """
    assert isinstance(agent, Agent)
    device = next(model.parameters()).device
    generator = Generator(device).manual_seed(seed)
    context = min(context, sequence.obs.shape[1] - 1)
    ahead = min(agent.horizon, sequence.obs.shape[1] - context)

    def choose(latent: Latent) -> Tensor:
        return agent.plan(model, latent, agent.initial(len(sequence.reward), device), generator)[:, :ahead]

    span = cut(on_device(sequence, device), slice(context + ahead))
    imagined = imagine_open_loop(model, span, context, generator, choose)
    frames = draw_rollouts(imagined, task=f"{task}, as planned", env_steps=env_steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"plan/reward": float(imagined.reward_imagination[:, context:].mean())}
    return Film(frames, write_video(frames, path), metrics)
