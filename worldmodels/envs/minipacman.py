"""MiniPacman: five tasks that look alike and reward different things.

After Racaniere et al. 2017 (I2A, arXiv 1707.06203): 15x19 cells, food everywhere, 2 power pills, ghosts that chase and,
for 20 steps after a pill, flee at half their speed and can be eaten. Rewards, speeds and what ends a level are those of
the engine that one of the authors published; the maze, symmetric and without dead ends, is our own, as is that ghosts
are moved one after another even where one was just eaten. A cleared level is followed by one with faster, then more,
ghosts. Only death is terminal; 3000 steps.
"""

from collections import deque
from typing import NamedTuple

import numpy as np

from worldmodels.envs.base import EnvConfig
from worldmodels.envs.toy import BACKGROUND, GREEN, Canvas, State, Toy

MAZE = """
###################
#        #        #
# ## ### # ### ## #
# ## ### # ### ## #
#                 #
# ## # ##### # ## #
#    #   #   #    #
#### ### # ### ####
#    #       #    #
# ## # ##### # ## #
#                 #
# ## ## ### ## ## #
# ## ## ### ## ## #
#                 #
###################
""".strip().split("\n")
WALLS = np.array([[cell == "#" for cell in row] for row in MAZE])
WIDTH = WALLS.shape[1]
FLOOR = [int(place) for place in np.flatnonzero(~WALLS)]
STEPS = (0, 1, -WIDTH, -1, WIDTH)  # stay, right, up, left, down as differences of a flat index
REVERSE = (0, 3, 4, 1, 2)
FREE = frozenset(FLOOR)
EXITS = {place: [a for a in range(1, 5) if place + STEPS[a] in FREE] for place in FLOOR}

WALL, FOOD, PILL = (120, 120, 128), (40, 60, 150), (0, 220, 220)
FIERCE, EDIBLE = np.array((230, 30, 40)), np.array((255, 230, 60))

PILLS, POWER, SAFE_DISTANCE = 2, 20, 5
SPEED, SPEED_INCREASE, SPEED_IN_POWER, STRAY = 0.5, 0.1, 0.5, 0.05


class Mode(NamedTuple):
    """What a task rewards, and what clears a level."""

    step: float
    food: float
    pill: float
    ghost: float  # eaten
    death: float
    cleared_by: str


MODES = {
    "regular": Mode(0.0, 1.0, 2.0, 5.0, 0.0, "food"),
    "avoid": Mode(0.1, -0.1, -5.0, -10.0, -20.0, "time"),
    "hunt": Mode(0.0, 0.0, 1.0, 10.0, -20.0, "ghosts"),
    "ambush": Mode(0.0, -0.1, 0.0, 10.0, -20.0, "ghosts"),
    "rush": Mode(0.0, -0.1, 10.0, 0.0, 0.0, "pills"),
}
LEVEL_STEPS = 128  # of a level that time clears


class MiniPacman(Toy):
    """See the card at the top of the file. Actions: stay, right, up, left, down."""

    action_dim, discrete, limit = 5, True, 3000

    def __init__(self, mode: str, config: EnvConfig, seed: int) -> None:
        super().__init__(config, seed, f"minipacman-{mode}")
        self.mode = MODES[mode]

    def begin(self, rng: np.random.Generator) -> State:
        return new_level(1, rng)

    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        mode, rng, reward = self.mode, self._rng, self.mode.step
        player = step_from(state["player"], int(action.argmax()))
        power, food, pills = max(0, state["power"] - 1), state["food"], state["pills"]
        if player in food:
            food, reward = [place for place in food if place != player], reward + mode.food
        if player in pills:
            pills, reward, power = [place for place in pills if place != player], reward + mode.pill, POWER
        ghosts, dead = [], False
        for place, heading in state["ghosts"]:
            moves = place != player and rng.random() < state["speed"] * (SPEED_IN_POWER if power else 1.0)
            if moves:
                heading = ghost_heading(place, heading, player, power > 0, rng)
                place = step_from(place, heading)
            if place != player:
                ghosts.append([place, heading])
            elif power:
                reward += mode.ghost
            else:
                dead, reward = True, reward + mode.death
                ghosts.append([place, heading])
        after = {**state, "player": player, "power": power, "food": food, "pills": pills, "ghosts": ghosts}
        after["time"] = state["time"] + 1
        left = {"food": food, "pills": pills, "ghosts": ghosts, "time": after["time"] < LEVEL_STEPS}
        if not left[mode.cleared_by] and not dead:
            after = new_level(state["level"] + 1, rng)
        return after, reward, dead

    def draw(self, state: State, canvas: Canvas) -> None:
        colors = np.empty((*WALLS.shape, 3), np.uint8)
        colors[:] = BACKGROUND
        colors[WALLS] = WALL
        flat = colors.reshape(-1, 3)
        flat[state["food"]] = FOOD
        flat[state["pills"]] = PILL
        flat[state["player"]] = GREEN
        for place, _ in state["ghosts"]:
            flat[place] = FIERCE + (EDIBLE - FIERCE) * state["power"] // POWER
        canvas.cells(colors)

    def optimal_action(self) -> np.ndarray:
        """A player by rules, no optimum: to the nearest thing worth having, around a ghost that is near."""
        state, mode = self.state, self.mode
        ghosts = {place for place, _ in state["ghosts"]}
        fierce = set() if state["power"] > 1 else ghosts
        wanted: set[int] = set()
        if mode.food > 0:
            wanted |= set(state["food"])
        if mode.pill > 0 or (mode.ghost > 0 and not state["power"]):
            wanted |= set(state["pills"])
        if mode.ghost > 0 and not fierce:
            wanted |= ghosts
        return np.eye(5, dtype=np.float32)[first_step(state["player"], wanted, near(fierce | (ghosts - wanted)))]


def new_level(level: int, rng: np.random.Generator) -> State:
    """A full maze with everybody in a random place, ghosts not beside the player."""
    player = FLOOR[rng.integers(len(FLOOR))]
    row, column = divmod(player, WIDTH)
    far = [p for p in FLOOR if max(abs(p // WIDTH - row), abs(p % WIDTH - column)) > SAFE_DISTANCE]
    count = 1 + (level - 1) // 2
    return {
        "level": level,
        "time": 0,
        "power": 0,
        "speed": SPEED + SPEED_INCREASE * (level - 1),
        "player": player,
        "food": FLOOR,
        "pills": [FLOOR[i] for i in rng.choice(len(FLOOR), PILLS, replace=False)],
        "ghosts": [[far[rng.integers(len(far))], int(rng.integers(1, 5))] for _ in range(count)],
    }


def step_from(place: int, action: int) -> int:
    return place + STEPS[action] if place + STEPS[action] in FREE else place


def ghost_heading(place: int, heading: int, player: int, flees: bool, rng: np.random.Generator) -> int:
    """Where a ghost goes: along its corridor; at a crossing to the player, or away, or now and then anywhere."""
    exits = EXITS[place]
    if len(exits) > 1:
        exits = [action for action in exits if action != REVERSE[heading]]
    if len(exits) == 1 or (len(exits) == 2 and len(EXITS[place]) == 2):
        return heading if heading in exits else exits[0]
    if not flees and rng.random() < STRAY:
        return exits[rng.integers(len(exits))]
    aim = np.array([player // WIDTH - place // WIDTH, player % WIDTH - place % WIDTH])
    vectors = np.array([(0, 1), (-1, 0), (0, -1), (1, 0)])[[action - 1 for action in exits]]
    nearer = vectors @ aim
    return exits[int(nearer.argmin() if flees else nearer.argmax())]


def near(ghosts: set[int]) -> set[int]:
    """The cells that a ghost is on or can be on after two steps."""
    cells = set(ghosts)
    for _ in range(2):
        cells |= {step_from(place, action) for place in cells for action in range(1, 5)}
    return cells


def first_step(start: int, goals: set[int], closed: set[int]) -> int:
    """The first action of a shortest way to a goal around closed cells, or to whatever is farthest from them."""
    first, todo = {start: 0}, deque([start])
    last = start
    while todo:
        last = place = todo.popleft()
        if place in goals and place != start:
            return first[place]
        for action in EXITS[place]:
            there = place + STEPS[action]
            if there not in first and there not in closed:
                first[there] = first[place] or action
                todo.append(there)
    return first[last] or int(max(range(5), key=lambda action: step_from(start, action) not in closed))
