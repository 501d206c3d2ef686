"""The boundary to simulators: NumPy on this side, nothing of any simulator on the other.

``Env`` is one environment, ``Step`` what arrives from it (the timeline is in ``worldmodels.base``).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from worldmodels.base import Spaces

QUALITIES = ("auto", "full", "fast", "lean")
FLOORS = ("classic", "native")
HELD_OUT_SEED = 10_000_000  # environments seeded so or higher are for evaluation: tasks may keep levels for them alone


@dataclass(frozen=True)
class EnvConfig:
    """How a task is shown and paced; the values are in ``configs/tasks``."""

    size: int
    """Height and width of the images, in pixels."""
    action_repeat: int
    """Control steps of the simulator that one action lasts."""
    quality: str
    """DM Control's rendering: full (its own defaults), fast, lean, or auto: full on a GPU, fast in software."""
    camera: int | None
    """DM Control's camera, None for the one that is usual for the domain."""
    time_limit: int | None
    """Cut episodes after so many env steps; None leaves the task's own limit, which holds in any case."""
    floor: str
    """DM Control's chequered floors: classic (as before MuJoCo 3.12, as in published work) or native."""

    def __post_init__(self) -> None:
        for name in ("size", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"env.{name} must be at least 1, not {value}")
        if self.quality not in QUALITIES:
            raise ValueError(f"env.quality must be one of {', '.join(QUALITIES)}, not {self.quality!r}")
        if self.floor not in FLOORS:
            raise ValueError(f"env.floor must be one of {', '.join(FLOORS)}, not {self.floor!r}")


class Step(NamedTuple):
    """What arrives from one environment, or from a pool of B of them with a leading axis."""

    obs: np.ndarray  # uint8 [h, w, c]
    reward: Any  # float32
    is_first: Any  # bool
    is_last: Any  # bool
    is_terminal: Any  # bool
    env_steps: Any  # int: simulator control steps that this step took; 0 on a reset


class Env(ABC):
    """One task, from pixels. Rewards are summed over action repeats, which stop at the episode's end."""

    spaces: Spaces
    action_repeat: int
    fingerprint: dict[str, str]
    """What decides how pixels look and physics behave: simulator version, GL renderer, quality, ..."""

    @abstractmethod
    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode. With a seed, everything that follows is determined by it and the actions."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Step:
        """Act: float32 [A], continuous in [-1, 1] (clipped here) or one-hot.

        Raises ``ValueError`` after is_last (reset first) and for an action that is none.
        """

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """The exact state mid-episode, RNG included: str, numbers, lists and dicts only (it goes into checkpoints).

        Raises ``NotImplementedError`` where the simulator cannot give it.
        """

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> Step:
        """Go to a state from ``get_state``; returns the step as it arrived there."""

    def judge(self, task: str) -> Callable[[], float]:
        """A function to call after a step: what another task gives for the last control step of it.

        Raises ``ValueError`` where that is not known: for a task of another world, and in all but DM Control.
        """
        raise ValueError(f"only DM Control's domains have tasks that share a world, and {task} has none here")

    def close(self) -> None:  # noqa: B027
        """Free what the simulator holds."""


def checked_action(action: np.ndarray, spaces: Spaces) -> np.ndarray:
    """The action as float64 [A]: clipped to [-1, 1] if continuous, found to be one-hot if discrete."""
    action = np.asarray(action, np.float64)
    if action.shape != (spaces.action_dim,):
        raise ValueError(f"an action here has shape ({spaces.action_dim},), not {action.shape}")
    if not np.isfinite(action).all():
        raise ValueError(f"the action is not finite: {action}")
    if not spaces.discrete:
        return action.clip(-1, 1)
    if np.count_nonzero(action) != 1 or action.max() != 1:
        raise ValueError(f"a discrete action is one-hot, not {action}")
    return action


def arrived(step: Step) -> dict[str, Any]:
    """The part of a step that a state must remember: all but the image, as plain numbers."""
    return {
        "reward": float(step.reward),
        "is_first": bool(step.is_first),
        "is_last": bool(step.is_last),
        "is_terminal": bool(step.is_terminal),
        "env_steps": int(step.env_steps),
    }


def check_state(state: dict[str, Any], task: str) -> None:
    """Refuse a state of another task."""
    if state.get("task") != task:
        raise ValueError(f"this is a state of {state.get('task')!r}, and the environment is {task!r}")
