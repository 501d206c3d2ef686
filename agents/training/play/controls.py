"""Which keys stand for which actions.

A key sets one number of an action: continuous ones add up and are clipped, of discrete ones the last pressed counts.
Keys are named as ``KeyboardEvent.code`` names them, after their place on the keyboard and not their letter.
"""

from typing import Any, NamedTuple

from worldmodels.base import Spaces

# Names of discrete actions, in order. Of other tasks two are left and right, more have numbers for names.
NAMES = {
    "toy:catch": ("left", "stay", "right"),
    "toy:cover": ("left", "stay", "right"),
    "toy:sokoban": ("up", "down", "left", "right"),
    "toy:minipacman": ("stay", "right", "up", "left", "down"),
    "gym:MountainCar-v0": ("left", "stay", "right"),
    "gym:FrozenLake-v1": ("left", "down", "right", "up"),
}
DIRECTIONS = {
    "left": ("ArrowLeft", "KeyA"),
    "right": ("ArrowRight", "KeyD"),
    "up": ("ArrowUp", "KeyW"),
    "down": ("ArrowDown", "KeyS"),
}
AXES = (("left", "right"), ("down", "up"))  # of the first two continuous numbers: less, more
PAIRS = ("JL", "KI", "UO", "QE", "ZC", "FH", "GT", "NM")  # of those after them; the rest has sliders only


class Key(NamedTuple):
    """While one of the keys ``codes`` is held, number ``index`` of the action is ``value``."""

    codes: tuple[str, ...]
    index: int
    value: float


def keys_for(task: str, spaces: Spaces) -> list[Key]:
    """The keys of a task, at most one pair for each continuous number, or one key for each of ten discrete actions."""
    if spaces.discrete:
        codes = [(*DIRECTIONS.get(name, ()), *_digit(i)) for i, name in enumerate(names_for(task, spaces))]
        return [Key(held, i, 1.0) for i, held in enumerate(codes) if held]
    pairs = [(DIRECTIONS[less], DIRECTIONS[more]) for less, more in AXES]
    pairs += [((f"Key{less}",), (f"Key{more}",)) for less, more in PAIRS]
    axes = list(enumerate(pairs[: spaces.action_dim]))
    return [Key(codes, i, value) for i, pair in axes for codes, value in zip(pair, (-1.0, 1.0), strict=True)]


def names_for(task: str, spaces: Spaces) -> tuple[str, ...]:
    """What the numbers of a continuous action, or the discrete actions, are called."""
    if not spaces.discrete:
        return tuple(f"{i + 1}" for i in range(spaces.action_dim))
    named = next((names for known, names in NAMES.items() if task == known or task.startswith(f"{known}-")), ())
    if len(named) == spaces.action_dim:
        return named
    return ("left", "right") if spaces.action_dim == 2 else tuple(f"{i + 1}" for i in range(spaces.action_dim))


def controls_for(task: str, spaces: Spaces) -> dict[str, Any]:
    """Names, keys and what happens without a key, for the page: ``idle`` None means that time waits for one."""
    names = names_for(task, spaces)
    idle = (names.index("stay") if "stay" in names else None) if spaces.discrete else 0
    return {
        "discrete": spaces.discrete,
        "names": names,
        "idle": idle,
        "keys": [k._asdict() for k in keys_for(task, spaces)],
    }


def _digit(index: int) -> tuple[str, ...]:
    """Keys 1 to 9 and then 0."""
    return (f"Digit{(index + 1) % 10}",) if index < 10 else ()
