"""The boundary to simulators: NumPy on this side, nothing of any simulator on the other.

``Env`` is one environment, ``Step`` what arrives from it (the timeline is in ``worldmodels.base``).
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from worldmodels.base import Spaces


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
        """Act: float32 [A], continuous in [-1, 1] (clipped here) or one-hot. An error after is_last: reset first."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """The exact state mid-episode, RNG included: str, numbers, lists and dicts only (it goes into checkpoints).

        Raises ``NotImplementedError`` where the simulator cannot give it.
        """

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> Step:
        """Go to a state from ``get_state``; returns the step as it arrived there."""

    def close(self) -> None:
        """Free what the simulator holds."""
