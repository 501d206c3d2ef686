"""Built-in tasks: a few lines of NumPy each, no simulator, no GL, thousands of frames a second.

They are worlds to test learning in. ``reach`` asks for control, ``pendulum`` for memory (one image does not show the
velocity), ``catch`` for discrete actions and for an end that is terminal. ``reach-slow`` and the like are reach in a
changed world, to begin with a model of the old one. ``sokoban`` and ``minipacman`` are in files of their own. Mean
returns of random, zero and optimal play are in ``docs/environments.md``.
"""

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from worldmodels.base import Spaces
from worldmodels.envs.base import Env, EnvConfig, Step, arrived, check_state, checked_action

State = dict[str, Any]  # numbers, strings and lists that nobody changes, so that it can be kept as it is

Color = tuple[int, int, int]
BACKGROUND: Color = (24, 26, 36)
BLUE, ORANGE, GREEN, WHITE = (74, 144, 255), (255, 160, 40), (80, 200, 120), (236, 236, 236)
SAND, CRIMSON, TEAL = (228, 221, 206), (168, 32, 58), (22, 122, 110)


class Toy(Env):
    """A task given by three functions of a small state; everything else is here."""

    action_dim: ClassVar[int]
    discrete: ClassVar[bool]
    limit: ClassVar[int]  # env steps
    background: ClassVar[Color] = BACKGROUND

    def __init__(self, config: EnvConfig, seed: int, name: str | None = None) -> None:
        self.action_repeat = config.action_repeat
        self.spaces = Spaces((config.size, config.size, 3), self.action_dim, self.discrete)
        self._task = name or re.sub(r"\B(?=[A-Z])", "-", type(self).__name__).lower()
        self.fingerprint = {"toy": f"{self._task} 1", "size": str(config.size)}
        self._limit = min(self.limit, config.time_limit or self.limit)
        self._rng = np.random.default_rng(seed)
        self._episode_steps = 0
        self._arrived: Step | None = None
        self.state: State = {}

    @abstractmethod
    def begin(self, rng: np.random.Generator) -> State:
        """The state an episode starts in."""

    @abstractmethod
    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        """One control step: the next state, its reward, and whether it is terminal."""

    @abstractmethod
    def draw(self, state: State, canvas: "Canvas") -> None:
        """Draw everything that can be seen of a state."""

    @abstractmethod
    def optimal_action(self) -> np.ndarray:
        """What a player who sees the state does now, float32 [A]; the best there is up to the last steps' rounding."""

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.state = self.begin(self._rng)
        self._episode_steps = 0
        return self._arrive(0.0, is_first=True, is_last=False, is_terminal=False, env_steps=0)

    def step(self, action: np.ndarray) -> Step:
        if self._arrived is None or self._arrived.is_last:
            raise ValueError("no episode is open: reset first")
        action = checked_action(action, self.spaces)
        total, taken, is_last, is_terminal = 0.0, 0, False, False
        while taken < self.action_repeat and not is_last:
            self.state, reward, is_terminal = self.advance(self.state, action)
            total += reward
            taken += 1
            self._episode_steps += 1
            is_last = is_terminal or self._episode_steps >= self._limit
        return self._arrive(total, False, is_last, is_terminal, taken)

    def get_state(self) -> dict[str, Any]:
        if self._arrived is None:
            raise ValueError("no episode was begun: reset first")
        return {
            "task": self._task,
            "state": dict(self.state),
            "random": self._rng.bit_generator.state,
            "episode_steps": self._episode_steps,
            "arrived": arrived(self._arrived),
        }

    def set_state(self, state: dict[str, Any]) -> Step:
        check_state(state, self._task)
        self.state = dict(state["state"])
        self._rng.bit_generator.state = state["random"]
        self._episode_steps = state["episode_steps"]
        return self._arrive(**state["arrived"])

    def _arrive(self, reward: float, is_first: bool, is_last: bool, is_terminal: bool, env_steps: int) -> Step:
        canvas = Canvas(self.spaces.image[0], self.background)
        self.draw(self.state, canvas)
        self._arrived = Step(canvas.image, np.float32(reward), is_first, is_last, is_terminal, env_steps)
        return self._arrived


class Reaching(Toy, ABC):
    """Move one disc onto another: the reward of a step is exp(-2 distance), the field is [-1, 1]^2."""

    action_dim, discrete, limit = 2, False, 50
    speed = 0.2  # per step and axis, at full action
    hand, target = BLUE, ORANGE

    def push(self, action: np.ndarray) -> np.ndarray:
        """The direction that an action moves in, [2]."""
        return action

    def begin(self, rng: np.random.Generator) -> State:
        return dict(zip(("x", "y", "target_x", "target_y"), rng.uniform(-1, 1, 4).tolist(), strict=True))

    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        push = self.push(action)
        x, y = (min(max(state[axis] + self.speed * float(a), -1), 1) for axis, a in zip("xy", push, strict=True))
        distance = float(np.hypot(x - state["target_x"], y - state["target_y"]))
        return {**state, "x": x, "y": y}, float(np.exp(-2 * distance)), False

    def draw(self, state: State, canvas: "Canvas") -> None:
        def place(x: float, y: float) -> tuple[float, float]:
            return 0.5 + 0.32 * x, 0.5 + 0.32 * y

        canvas.disc(place(state["target_x"], state["target_y"]), 0.22, self.target)
        canvas.disc(place(state["x"], state["y"]), 0.16, self.hand)

    def optimal_action(self) -> np.ndarray:
        gap = np.array([self.state["target_x"] - self.state["x"], self.state["target_y"] - self.state["y"]])
        return (gap / self.speed).clip(-1, 1).astype(np.float32)


class Reach(Reaching):
    """A blue disc and an orange one."""


class ReachSlow(Reaching):
    """Other physics: half the speed."""

    speed = 0.1


class ReachTurned(Reaching):
    """Other physics: every action moves a quarter turn to the left of where it points. As hard as reach."""

    def push(self, action: np.ndarray) -> np.ndarray:
        return np.array([action[1], -action[0]])  # y points down

    def optimal_action(self) -> np.ndarray:
        x, y = super().optimal_action()
        return np.array([-y, x], np.float32)


class ReachSwapped(Reaching):
    """Other looks: the colours of the two discs are exchanged."""

    hand, target = ORANGE, BLUE


class ReachLight(Reaching):
    """Other looks: dark discs on a light ground."""

    background, hand, target = SAND, TEAL, CRIMSON


class Pendulum(Toy):
    """Swing up a rod whose motor is too weak to lift it at once; reward (1 + cos angle) / 2, 1 when upright.

    Gymnasium's Pendulum-v1 (g 10, mass 1, length 1, torque in [-2, 2], 0.05 s), started near the bottom.
    """

    action_dim, discrete, limit = 1, False, 200
    gravity, max_torque, max_speed, interval = 10.0, 2.0, 8.0, 0.05

    def begin(self, rng: np.random.Generator) -> State:
        return {"angle": float(np.pi + rng.uniform(-0.3, 0.3)), "speed": float(rng.uniform(-0.3, 0.3))}

    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        acceleration = 1.5 * self.gravity * np.sin(state["angle"]) + 3 * self.max_torque * float(action[0])
        speed = float(np.clip(state["speed"] + self.interval * acceleration, -self.max_speed, self.max_speed))
        angle = state["angle"] + self.interval * speed
        return {"angle": angle, "speed": speed}, 0.5 + 0.5 * float(np.cos(angle)), False

    def draw(self, state: State, canvas: "Canvas") -> None:
        tip = 0.5 + 0.36 * np.sin(state["angle"]), 0.5 - 0.36 * np.cos(state["angle"])
        canvas.stroke((0.5, 0.5), tip, 0.05, GREEN)
        canvas.disc((0.5, 0.5), 0.03, WHITE)

    def optimal_action(self) -> np.ndarray:
        """Pump energy up to that of the upright rod, then hold it there; near the optimum."""
        angle = (self.state["angle"] + np.pi) % (2 * np.pi) - np.pi
        speed = self.state["speed"]
        if np.cos(angle) > 0.9 and abs(speed) < 2:
            torque = -10 * angle - 2.5 * speed
        else:
            energy = speed**2 / 6 + self.gravity / 2 * (np.cos(angle) - 1)  # 0 at rest upright
            torque = -np.sign(speed) * np.sign(energy) * self.max_torque
        return np.array([torque / self.max_torque], np.float32).clip(-1, 1)


class Catch(Toy):
    """Be under the ball when it lands: left, stay, right; one drop an episode, reward 1 or -1 at its terminal end.

    After bsuite's catch (Osband et al. 2020, arXiv:1908.03568): 5 columns, 10 rows.
    """

    action_dim, discrete, limit = 3, True, 9
    columns, rows = 5, 10

    def begin(self, rng: np.random.Generator) -> State:
        ball, middle = float(rng.integers(self.columns)), float(self.columns // 2)
        return {"ball": ball, "height": self.rows - 1.0, "paddle": middle}

    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        paddle = min(max(state["paddle"] + float(action.argmax()) - 1, 0), self.columns - 1)
        height = state["height"] - 1
        landed = height == 0
        reward = (1.0 if paddle == state["ball"] else -1.0) if landed else 0.0
        return {"ball": state["ball"], "height": height, "paddle": paddle}, reward, landed

    def draw(self, state: State, canvas: "Canvas") -> None:
        def place(column: float, height: float) -> tuple[float, float]:
            return (column + 0.5) / self.columns, 1 - (height + 0.5) / self.rows

        x, y = place(state["paddle"], 0)
        canvas.stroke((x - 0.05, y), (x + 0.05, y), 0.05, BLUE)
        canvas.disc(place(state["ball"], state["height"]), 0.10, ORANGE)

    def optimal_action(self) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[int(np.sign(self.state["ball"] - self.state["paddle"])) + 1]


TOYS: dict[str, type[Toy]] = {
    "catch": Catch,
    "pendulum": Pendulum,
    "reach": Reach,
    "reach-light": ReachLight,
    "reach-slow": ReachSlow,
    "reach-swapped": ReachSwapped,
    "reach-turned": ReachTurned,
}


class Canvas:
    """A square image, two anti-aliased shapes and boards of cells.

    Coordinates and radii are fractions of its side, y points down.
    """

    def __init__(self, size: int, background: Color) -> None:
        self.size, self.background = size, background
        self.image = np.empty((size, size, 3), np.uint8)
        self.image[:] = background

    def disc(self, center: tuple[float, float], radius: float, color: Color) -> None:
        """A filled circle."""
        self.stroke(center, center, radius, color)

    def stroke(self, start: tuple[float, float], end: tuple[float, float], radius: float, color: Color) -> None:
        """A straight line of width 2 radius with round ends."""
        (x0, y0), (x1, y1), radius = self._pixels(start), self._pixels(end), radius * self.size
        left, right = self._span(x0, x1, radius)
        top, bottom = self._span(y0, y1, radius)
        x = np.arange(left, right, dtype=np.float32) - np.float32(x0)
        y = (np.arange(top, bottom, dtype=np.float32) - np.float32(y0))[:, None]
        dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
        along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, np.float32(1e-9)), 0, 1)
        distance = np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2)
        cover = np.clip(np.float32(radius + 0.5) - distance, 0, 1)[..., None]
        patch = self.image[top:bottom, left:right]
        patch[...] = np.rint(patch + cover * (np.asarray(color, np.float32) - patch))

    def cells(self, colors: np.ndarray) -> None:
        """A board, uint8 [rows, columns, 3], in the middle; each cell is whole pixels, all alike where they fit."""
        side = max(colors.shape[:2])
        board = np.empty((side, side, 3), np.uint8)
        board[:] = self.background
        top, left = ((side - length) // 2 for length in colors.shape[:2])
        board[top : top + colors.shape[0], left : left + colors.shape[1]] = colors
        cell = np.arange(self.size) * side // self.size
        self.image[:] = board[cell[:, None], cell]

    def _pixels(self, point: tuple[float, float]) -> tuple[float, float]:
        return point[0] * self.size - 0.5, point[1] * self.size - 0.5  # pixel centres are whole numbers

    def _span(self, a: float, b: float, radius: float) -> tuple[int, int]:
        return max(int(min(a, b) - radius - 1), 0), min(int(max(a, b) + radius + 2), self.size)
