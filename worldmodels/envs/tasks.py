"""Names of tasks, and the environments they stand for.

A canonical name is ``suite:task``: ``dmc:walker-walk``, ``toy:reach``, ``gym:CarRacing-v3``. ``walker-walk``, ``reach``
and Dreamer's ``dmc_walker_walk`` are understood too; hyphens and underscores are the same in them.
"""

import difflib
from collections.abc import Callable
from functools import partial

from worldmodels.envs.base import Env, EnvConfig
from worldmodels.envs.cover import Cover
from worldmodels.envs.minipacman import MODES, MiniPacman
from worldmodels.envs.sokoban import Sokoban
from worldmodels.envs.toy import TOYS

SUITES = ("dmc", "gym", "toy")

# A copy of dm_control.suite.ALL_TASKS (a test compares): importing that binds the process to a GL library.
DMC_TASKS = {
    "acrobot": "swingup swingup_sparse",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse two_poles three_poles",
    "cheetah": "run",
    "dog": "stand walk trot run fetch",
    "finger": "spin turn_easy turn_hard",
    "fish": "upright swim",
    "hopper": "stand hop",
    "humanoid": "stand walk run run_pure_state",
    "humanoid_CMU": "stand walk run",
    "lqr": "lqr_2_1 lqr_6_2",
    "manipulator": "bring_ball bring_peg insert_ball insert_peg",
    "pendulum": "swingup",
    "point_mass": "easy hard",
    "quadruped": "walk run escape fetch",
    "reacher": "easy hard",
    "stacker": "stack_2 stack_4",
    "swimmer": "swimmer6 swimmer15",
    "walker": "stand walk run",
}
BOARDS = [(side, boxes) for side in range(5, 11) for boxes in range(1, 5 if side > 5 else 3)]
GAMES: dict[str, Callable[[EnvConfig, int], Env]] = {
    **dict(sorted((TOYS | {"cover": Cover}).items())),
    **{f"sokoban-{side}-{boxes}": partial(Sokoban, side, boxes) for side, boxes in BOARDS},
    **{f"minipacman-{mode}": partial(MiniPacman, mode) for mode in MODES},
}


def list_tasks() -> list[str]:
    """Canonical names of the tasks that come with the framework; ``gym:`` takes any registered Gymnasium id besides."""
    dmc = [f"dmc:{domain}-{task}" for domain, tasks in DMC_TASKS.items() for task in tasks.split()]
    return dmc + [f"toy:{task}" for task in GAMES]


def resolve_task(name: str) -> str:
    """The canonical name of a task. Raises ``ValueError`` with the nearest known one."""
    if name.startswith("gym:"):
        if not name.removeprefix("gym:") or ":" in name.removeprefix("gym:"):
            # Gymnasium imports the module that a second colon names: a task's name must not choose code to run.
            raise ValueError(f"unknown task {name!r}: after 'gym:' comes a registered Gymnasium id, as CarRacing-v3")
        return name
    known = {_spelling(task): task for task in list_tasks()}
    short = {spelling.partition("_")[2]: task for spelling, task in known.items()}
    task = known.get(_spelling(name)) or short.get(_spelling(name))
    if task is None:
        near = difflib.get_close_matches(_spelling(name), [*known, *short], n=1, cutoff=0)[0]
        nearest = (known.get(near) or short[near]).removeprefix("dmc:")
        raise ValueError(f"unknown task {name!r}. Did you mean {nearest!r}? See --list-tasks; gym:<Gymnasium id>")
    return task


def suite_of(task: str) -> str:
    """The suite that a task belongs to: ``dmc``, ``gym`` or ``toy``."""
    return resolve_task(task).partition(":")[0]


def make_env(task: str, config: EnvConfig, seed: int) -> Env:
    """Build a task's environment, seeded: its episodes are determined by the seed and the actions.

    Raises ``ValueError`` for an unknown task, a setting that it cannot have, and where nothing can render it.
    """
    suite, _, name = resolve_task(task).partition(":")
    if suite != "dmc" and config.camera is not None:
        raise ValueError(f"env.camera chooses a camera of DM Control; {task!r} has none: leave it null")
    if suite == "dmc":
        from worldmodels.envs.dm_control import DMControl

        domain, _, goal = name.partition("-")
        return DMControl(domain, goal, config, seed)
    if suite == "gym":
        from worldmodels.envs.gymnasium_env import GymnasiumEnv

        return GymnasiumEnv(name, config, seed)
    return GAMES[name](config, seed)


def _spelling(name: str) -> str:
    return name.lower().replace("-", "_").replace(":", "_")
