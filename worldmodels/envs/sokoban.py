"""Sokoban: push every box onto a target; levels without end, each of them solvable.

Rules and rewards are those of Racaniere et al. 2017 (I2A, arXiv 1707.06203) as gym-sokoban gives them: -0.1 a step, 1
for a box pushed onto a target, -1 for one pushed off, 10 when all are on; 120 steps. Solved is the only terminal end.
Boxes can get stuck: most mistakes are for good, which is what asks for a look ahead.

A board is a text in the usual letters, rows parted by newlines: ``#`` wall, ``.`` target, ``$`` box, ``*`` box on a
target, ``@`` player, ``+`` player on a target. ``sokoban-7-2`` has 7x7 cells, the wall around included, and 2 boxes.

Levels are made backwards: boxes begin on the targets and are pulled away. A fifth of all levels, told by a checksum of
the board, is held out: environments seeded with ``HELD_OUT_SEED`` or higher see only those, the others never do.
"""

import zlib
from collections import deque
from typing import Any

import numpy as np

from worldmodels.envs.base import HELD_OUT_SEED, EnvConfig, Step
from worldmodels.envs.toy import BACKGROUND, BLUE, GREEN, ORANGE, Canvas, State, Toy

COLORS = {
    "#": (120, 120, 128),
    " ": BACKGROUND,
    ".": (200, 50, 60),
    "$": ORANGE,
    "*": GREEN,
    "@": BLUE,
    "+": (200, 110, 255),
}
HELD_OUT = 5  # one level in so many


class Sokoban(Toy):
    """See the card at the top of the file. Actions: up, down, left, right."""

    action_dim, discrete, limit = 4, True, 120

    def __init__(self, side: int, boxes: int, config: EnvConfig, seed: int) -> None:
        super().__init__(config, seed, f"sokoban-{side}-{boxes}")
        self.side, self.boxes = side, boxes
        self.held_out = seed >= HELD_OUT_SEED
        self._plan: tuple[str, list[int]] = ("", [])  # a board, and what solves it

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self.held_out = seed >= HELD_OUT_SEED
        return super().reset(seed)

    def set_state(self, state: dict[str, Any]) -> Step:
        step = super().set_state(state)
        self.held_out = self.state["held_out"]
        return step

    def begin(self, rng: np.random.Generator) -> State:
        while True:
            board = make_level(self.side, self.boxes, rng)
            if is_held_out(board) == self.held_out:
                return {"board": board, "held_out": self.held_out}

    def advance(self, state: State, action: np.ndarray) -> tuple[State, float, bool]:
        before = state["board"]
        board = moved(before, int(action.argmax()))
        solved = "$" not in board
        reward = -0.1 + board.count("*") - before.count("*") + (10.0 if solved else 0.0)
        return {**state, "board": board}, reward, solved

    def draw(self, state: State, canvas: Canvas) -> None:
        canvas.cells(np.array([[COLORS[cell] for cell in row] for row in state["board"].split("\n")], np.uint8))

    def optimal_action(self) -> np.ndarray:
        """The first move of a shortest solution; the first action where there is none. Slow for many boxes."""
        board, plan = self._plan
        if board != self.state["board"]:
            plan = solve(self.state["board"]) or []
        action = plan[0] if plan else 0
        self._plan = moved(self.state["board"], action), plan[1:]
        return np.eye(4, dtype=np.float32)[action]


def directions(board_width: int) -> tuple[int, int, int, int]:
    """Up, down, left, right as differences of an index into a board of rows of this width."""
    return -board_width, board_width, -1, 1


def moved(board: str, action: int) -> str:
    """The board after one move; the same where something is in the way."""
    cells = list(board)
    here = next(i for i, cell in enumerate(cells) if cell in "@+")
    step = directions(board.index("\n") + 1)[action]
    there, beyond = here + step, here + 2 * step
    if cells[there] in "$*" and cells[beyond] in " .":
        cells[beyond] = "$" if cells[beyond] == " " else "*"
        cells[there] = " " if cells[there] == "$" else "."
    if cells[there] in " .":
        cells[there] = "@" if cells[there] == " " else "+"
        cells[here] = " " if cells[here] == "@" else "."
    return "".join(cells)


def is_held_out(board: str) -> bool:
    """Whether a level is kept for evaluation."""
    return zlib.crc32(board.encode()) % HELD_OUT == 0


def make_level(side: int, boxes: int, rng: np.random.Generator) -> str:
    """A level with no box on a target yet: from the solved board by as many pulls as ``rng`` says, or a few more."""
    while True:
        floor = carve(side, rng)
        if len(floor) < 2 * boxes + 1:
            continue
        order = [floor[i] for i in rng.permutation(len(floor))]
        targets, player = set(order[:boxes]), order[boxes]
        standing, wanted = set(targets), rng.integers(boxes, 2 * side * boxes + 1)
        for pull in range(3 * side * boxes):
            if pull >= wanted and not standing & targets:
                break
            free = set(floor) - standing
            reach = reachable(player, free, side)
            pulls = [(box, step) for box in sorted(standing) for step in directions(side + 1)
                     if box + step in reach and box + 2 * step in free]  # fmt: skip
            if not pulls:
                break
            box, step = pulls[rng.integers(len(pulls))]
            standing = standing - {box} | {box + step}
            player = box + 2 * step
        if standing & targets:
            continue
        near = sorted(reachable(player, set(floor) - standing, side))
        return write_board(side, floor, targets, standing, near[rng.integers(len(near))])


def write_board(side: int, floor: list[int], targets: set[int], boxes: set[int], player: int) -> str:
    cells = ["#"] * (side * (side + 1) - 1)
    cells[side :: side + 1] = ["\n"] * (side - 1)
    for place in floor:
        cells[place] = "." if place in targets else " "
    for place in boxes:
        cells[place] = "$"
    cells[player] = "+" if player in targets else "@"
    return "".join(cells)


def reachable(start: int, free: set[int], side: int) -> set[int]:
    """Where the player can walk to without a push."""
    seen, todo = {start}, [start]
    while todo:
        place = todo.pop()
        for step in directions(side + 1):
            if place + step in free and place + step not in seen:
                seen.add(place + step)
                todo.append(place + step)
    return seen


# Cells around the walker that become floor with it, one of these at each step (gym-sokoban): rows and columns to it.
STAMPS = (
    ((0, -1), (0, 1)),
    ((-1, 0), (1, 0)),
    ((0, -1), (1, 0)),
    ((0, -1), (1, -1), (1, 0)),
    ((0, 1), (1, 0)),
)


def carve(side: int, rng: np.random.Generator) -> list[int]:
    """The floor of a room, in order: where a random walk of 1.7 (width + height) steps came by (gym-sokoban)."""
    row, column = rng.integers(1, side - 1, 2)
    heading, floor = rng.integers(4), set()
    for _ in range(int(3.4 * side)):
        if rng.random() < 0.35:
            heading = rng.integers(4)
        down, right = ((-1, 0), (1, 0), (0, -1), (0, 1))[heading]
        row, column = (int(np.clip(x + d, 1, side - 2)) for x, d in ((row, down), (column, right)))
        for y, x in ((0, 0), *STAMPS[rng.integers(len(STAMPS))]):
            if 1 <= row + y <= side - 2 and 1 <= column + x <= side - 2:
                floor.add((row + y) * (side + 1) + column + x)
    return sorted(floor)


def solve(board: str) -> list[int] | None:
    """A shortest solution by breadth-first search over moves; None where there is none."""
    steps = directions(board.index("\n") + 1)
    places = {letter: {i for i, cell in enumerate(board) if cell in letter} for letter in ("#\n", ".*+", "$*", "@+")}
    walls, targets, (player,) = places["#\n"], places[".*+"], places["@+"]
    useful = pushable(walls, targets, steps)
    start = player, frozenset(places["$*"])
    came: dict[Any, Any] = {start: None}
    todo = deque([start])
    while todo:
        state = here, boxes = todo.popleft()
        if boxes <= targets:
            moves = []
            while came[state] is not None:
                state, action = came[state]
                moves.append(action)
            return moves[::-1]
        for action, step in enumerate(steps):
            there, after = here + step, boxes
            if there in boxes:
                if there + step not in useful or there + step in boxes:
                    continue
                after = boxes - {there} | {there + step}
            if there not in walls and (there, after) not in came:
                came[there, after] = state, action
                todo.append((there, after))
    return None


def pushable(walls: set[int], targets: set[int], steps: tuple[int, ...]) -> set[int]:
    """Where a box is not lost: from there it could be pushed to a target if it were alone."""
    found, todo = set(targets), list(targets)
    while todo:
        place = todo.pop()
        for step in steps:
            before = place - step
            if not {before, before - step} & walls and before not in found:
                found.add(before)
                todo.append(before)
    return found
