"""Take cover: balls come down on where you are; every step that you live is worth 1. In the spirit of VizDoom's task.

A ball begins at the top, near the column that the player is in then, and falls at a speed of its own, so standing still
is death and where the next one comes from is not known before. One image does not show the speed.
"""

import numpy as np

from worldmodels.envs.toy import BLUE, ORANGE, Canvas, State, Toy


class Cover(Toy):
    """See the card at the top of the file. Actions: left, stay, right. The end by a ball is terminal, worth 0."""

    action_dim, discrete, limit = 3, True, 200
    stride = 0.06  # of the player, per step; all lengths are fractions of the image's side
    slowest, fastest = 0.05, 0.09  # fall per step
    aim = 0.08  # how far from the player's column a ball begins, at most
    ground, margin = 0.84, 0.16  # the player's height, and the nearest it comes to a wall
    reach = 0.24  # between the middles of player and ball; drawn, they overlap by then

    def begin(self, rng: np.random.Generator) -> State:
        player = float(rng.uniform(self.margin, 1 - self.margin))
        seed = int(rng.integers(2**31))  # balls come from the state, which is what a step depends on
        return self._launch({"player": player, "seed": seed, "balls": 0})

    def _launch(self, state: State) -> State:
        rng = np.random.default_rng([state["seed"], state["balls"]])
        column = state["player"] + self.aim * float(rng.uniform(-1, 1))
        speed = float(rng.uniform(self.slowest, self.fastest))
        inside = min(max(column, self.margin), 1 - self.margin)
        return {**state, "column": inside, "height": 0.0, "speed": speed, "balls": state["balls"] + 1}

    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        player = state["player"] + self.stride * (float(action.argmax()) - 1)
        player = min(max(player, self.margin), 1 - self.margin)
        state = {**state, "player": player, "height": state["height"] + state["speed"]}
        hit = float(np.hypot(player - state["column"], self.ground - state["height"])) < self.reach
        if not hit and state["height"] > 1 + self.margin:
            state = self._launch(state)
        return state, 0.0 if hit else 1.0, hit

    def draw(self, state: State, canvas: Canvas) -> None:
        canvas.disc((state["player"], self.ground), 0.16, BLUE)
        canvas.disc((state["column"], state["height"]), 0.16, ORANGE)

    def optimal_action(self) -> np.ndarray:
        """To the side that has more room; there is always time for it."""
        return np.eye(3, dtype=np.float32)[2 if self.state["column"] < 0.5 else 0]
