"""Any Gymnasium environment that shows images, or can render them, as an ``Env``."""

import difflib
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image

from worldmodels.base import Spaces
from worldmodels.envs.base import Env, EnvConfig, Step, checked_action


class GymnasiumEnv(Env):
    """A registered id. Its observation, or the ``screen`` of it, is shown if it is an image, uint8 [h, w, 1 or 3], and
    ``rgb_array`` if not.

    ``ValueError`` for an unknown id, one whose package is missing, and spaces other than Box and Discrete.
    """

    def __init__(self, name: str, config: EnvConfig, seed: int) -> None:
        self._env, self._shows_images = _make(name)
        self._name = name
        self._limit = config.time_limit
        self.action_repeat = config.action_repeat
        space: Any = self._env.action_space
        discrete = type(space).__name__ == "Discrete"
        if not discrete and type(space).__name__ != "Box":
            raise ValueError(f"gym:{name} has a {type(space).__name__} action space; only Box and Discrete are known")
        self._space = space
        if not discrete:
            limited = np.isfinite(space.low) & np.isfinite(space.high)
            self._low = np.where(limited, space.low, -1).astype(np.float64).ravel()
            self._high = np.where(limited, space.high, 1).astype(np.float64).ravel()
        shape: Any = self._env.observation_space.shape
        channels = shape[2] if self._shows_images else 3
        actions = int(space.n) if discrete else self._low.size
        self.spaces = Spaces((config.size, config.size, channels), actions, discrete)
        self.fingerprint = {"gymnasium": version("gymnasium"), "id": name, "size": str(config.size)}
        self._seed: int | None = seed  # what the next reset is given
        self._episode_steps = 0
        self._is_open = False

    def reset(self, seed: int | None = None) -> Step:
        obs, _ = self._env.reset(seed=self._seed if seed is None else seed)
        self._seed = None
        self._episode_steps = 0
        self._is_open = True
        return Step(self._image(obs), np.float32(0), True, False, False, 0)

    def step(self, action: np.ndarray) -> Step:
        if not self._is_open:
            raise ValueError("no episode is open: reset first")
        native = self._native(checked_action(action, self.spaces))
        total, taken, is_last, terminated, obs = 0.0, 0, False, False, None
        while taken < self.action_repeat and not is_last:
            obs, reward, terminated, truncated, _ = self._env.step(native)
            total += float(reward)
            taken += 1
            self._episode_steps += 1
            is_last = terminated or truncated or self._episode_steps == self._limit
        self._is_open = not is_last
        return Step(self._image(obs), np.float32(total), False, bool(is_last), bool(terminated), taken)

    def get_state(self) -> dict[str, Any]:
        raise NotImplementedError(f"gym:{self._name}: Gymnasium has no way to read the state of an environment")

    def set_state(self, state: dict[str, Any]) -> Step:
        raise NotImplementedError(f"gym:{self._name}: Gymnasium has no way to set the state of an environment")

    def close(self) -> None:
        self._env.close()

    def _native(self, action: np.ndarray) -> Any:
        if self.spaces.discrete:
            return int(action.argmax()) + int(self._space.start)
        control = self._low + (action + 1) / 2 * (self._high - self._low)
        return control.reshape(self._space.shape).astype(self._space.dtype)

    def _image(self, obs: Any) -> np.ndarray:
        return resized(np.asarray(obs if self._shows_images else self._env.render()), self.spaces.image[0])


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image [h, w, 1 or 3] as [size, size, same], each pixel the mean of the area that it covers."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"an image here is uint8 [h, w, 1 or 3], not {image.dtype} {list(image.shape)}")
    if image.shape[:2] == (size, size):
        return image.copy()
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    return np.array(picture.resize((size, size), Image.Resampling.BOX)).reshape(size, size, image.shape[2])


def _make(name: str) -> tuple[Any, bool]:
    """The environment, and whether its observations are images."""
    import gymnasium

    try:
        if name.startswith("ALE/"):
            import ale_py  # pyright: ignore[reportMissingImports]  # an extra; its games are registered by this

            gymnasium.register_envs(ale_py)
        if name.startswith("Vizdoom"):
            from vizdoom import gymnasium_wrapper  # pyright: ignore[reportMissingImports]  # an extra, as above

            gymnasium.register_envs(gymnasium_wrapper)
        env = _screen_of(gymnasium.make(name))
        if _is_image(env.observation_space):
            return env, True
        modes = env.metadata.get("render_modes", [])
        env.close()
        if "rgb_array" not in modes:
            raise ValueError(f"gym:{name} has no image observations and cannot render rgb_array (only {modes})")
        env = gymnasium.make(name, render_mode="rgb_array")
        env.reset()
        env.render()  # packages that only rendering needs are missed here, and not in the first episode
        return env, False
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ValueError(f"gym:{name} needs a package that is not installed: {error}") from error
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, list(gymnasium.registry), n=1, cutoff=0)
        raise ValueError(f"cannot make 'gym:{name}' ({error}). Did you mean 'gym:{near[0]}'?") from error


def _screen_of(env: Any) -> Any:
    """The environment with the image alone where it shows a ``screen`` among other things, as VizDoom does."""
    from gymnasium import spaces, wrappers

    space = env.observation_space
    if not isinstance(space, spaces.Dict) or "screen" not in space.spaces:
        return env
    return wrappers.TransformObservation(env, lambda obs: obs["screen"], space["screen"])


def _is_image(space: Any) -> bool:
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3)
