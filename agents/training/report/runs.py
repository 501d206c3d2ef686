"""What runs left in their folders, and which of them are the same but for the seed."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.training.config import load_config, read_saved
from agents.training.logging import RESERVED, read_metrics
from worldmodels.strict import ConfigError, dump_yaml, join, to_dict

# How a run is watched, where it is and how long it goes on is not what it is: nothing learns by the length
UNIMPORTANT = {"seed"} | {
    f"training.{key}"
    for key in ("env_steps", "device", "threads", "video_every", "log_every_s", "checkpoint_every_s", "wandb")
}
TOO_MUCH = 1e39
KINDS = ("imagined", "policy")  # of films


class Alarm(NamedTuple):
    """What is wrong, or may be, in one line; ``grave`` where numbers are doubtful or missing."""

    grave: bool
    who: str
    what: str

    @property
    def line(self) -> str:
        return f"{self.who}: {self.what}"


class Film(NamedTuple):
    """A video of one checkpoint, and the numbers beside it if there are any."""

    kind: str
    env_steps: int
    updates: int
    path: Path
    numbers: dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """One run as its folder tells it."""

    folder: Path
    name: str  # of all runs on a page no two have the same
    config: dict[str, Any]  # by dotted names
    history: list[dict[str, float]]
    baselines: dict[str, float]  # mean returns of random play and of no action
    fingerprint: dict[str, dict[str, str]]  # env and versions
    films: list[Film]
    understood: bool  # whether this version of the project takes the config, so that the checkpoint can be loaded

    @property
    def agent(self) -> str:
        return str(self.config["agent_name"])

    @property
    def task(self) -> str:
        return str(self.config["task"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def axis(self) -> str:
        """What the run's time is counted in: ``updates`` where env steps stand still."""
        return "env_steps" if len({entry["env_steps"] for entry in self.history}) > 1 else "updates"

    @cached_property
    def evaluations(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts on ``axis`` and mean returns of the evaluations that have one."""
        return self.metric("eval/return_mean")

    @property
    def last_return(self) -> float:
        """Of the last evaluation, NaN without any."""
        returns = self.evaluations[1]
        return float(returns[-1]) if len(returns) else math.nan

    def metric(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Counts on ``axis`` and the finite values of a metric there; what no float32 can hold is not one."""
        found = [(e[self.axis], e[name]) for e in self.history if abs(e.get(name, math.inf)) < TOO_MUCH]
        x, y = zip(*found, strict=True) if found else ((), ())
        return np.array(x, float), np.array(y, float)

    def total(self, name: str) -> float:
        """The greatest value of one of the log's own counts, 0 without any."""
        return max((e[name] for e in self.history if name in e and math.isfinite(e[name])), default=0)


class Group(NamedTuple):
    """Runs that differ by their seeds alone."""

    label: str
    colour: int  # the same label has the same one on every task
    runs: list[RunData]

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def evaluated(self) -> list[RunData]:
        return [run for run in self.runs if len(run.evaluations[1])]


def read_runs(folders: Sequence[Path]) -> tuple[list[RunData], list[Alarm]]:
    """The runs among these folders, and what is no run or damaged."""
    runs: list[RunData] = []
    problems: list[Alarm] = []
    unique = list(dict.fromkeys(folder.resolve() for folder in folders))
    for folder, name in zip(unique, short_names(unique), strict=True):
        wrong: list[str] = []
        try:
            runs.append(read_run(folder, name, wrong))
        except (ValueError, OSError) as error:
            wrong.append(f"left out: {error}")
        # the same of several runs is said once where no folder is in it
        problems += [Alarm(True, name, " ".join(line.replace(f"{folder}/", "").split())) for line in wrong]
    return runs, problems


def read_run(folder: Path, name: str, problems: list[str]) -> RunData:
    """One run; what it can do without becomes a line of ``problems``. Raises ``ValueError`` where it is none."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is no run, no config.yaml there; a run is the folder that training wrote")
    config, understood = read_config(folder / "config.yaml", problems)
    path = folder / "metrics.jsonl"
    lines: list[dict[str, Any]] = []
    try:
        lines = read_metrics(path, damaged=problems.append) if path.is_file() else []
    except UnicodeDecodeError as error:
        problems.append(f"metrics.jsonl: not a text file ({error.reason} at byte {error.start})")
    history = [{k: float(v) for k, v in line.items() if isinstance(v, int | float)} for line in lines]
    if not history:
        problems.append("no metrics there, nothing was logged")
    elif not any("eval/return_mean" in entry for entry in history):
        problems.append("no evaluations, so it has no learning curve and is not compared")
    baselines = read_json(folder / "baselines.json", problems)
    means = {who: played.get("return_mean") for who, played in baselines.items() if isinstance(played, dict)}
    parts = read_json(folder / "fingerprint.json", problems).items()
    fingerprint = {part: {k: str(v) for k, v in said.items()} for part, said in parts if isinstance(said, dict)}
    films = read_films(folder / "videos", problems)
    numbers = {who: float(mean) for who, mean in means.items() if isinstance(mean, int | float)}
    return RunData(folder, name, with_beginnings(config, folder), history, numbers, fingerprint, films, understood)


def with_beginnings(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config with the data that the run was given, and the recipe by which it began with a saved world model.

    Without such a beginning, without the numbers of recipes too. Two models by one recipe are not told apart.
    """
    said = {name: first_line(folder / f"{name}.txt") for name in ("data", "transfer")}
    recipe = said["transfer"]
    if recipe is None:
        config = {key: value for key, value in config.items() if not key.startswith("transfer.")}
        return {**said, **config}
    return {**said, "transfer": recipe.removeprefix("transfer ").partition(":")[0], **config}


def first_line(file: Path) -> str | None:
    """The first line of a text, if it is there."""
    return file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if file.is_file() else None


def read_config(path: Path, problems: list[str]) -> tuple[dict[str, Any], bool]:
    """The values by dotted names, and whether this version takes them; else they are as they are written."""
    try:
        return flatten(to_dict(load_config(path))), True
    except ConfigError as error:
        config = read_saved(path)
        missing = [key for key in ("agent_name", "task", "seed") if not isinstance(config.get(key), str | int)]
        if missing or not isinstance(config["seed"], int):
            raise ValueError(f"{path}: {', '.join(missing or ['seed'])}: missing or wrong; is this a run?") from error
        problems.append(f"of another version, its world model cannot be looked at: {error}")
        return flatten(config), False


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """The mapping in a file, empty without one; damage is a line of ``problems``."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problems.append(f"{path}: not JSON ({' '.join(str(error).split())})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path}: expected a mapping, got {type(value).__name__}")
        return {}
    return value


def read_films(folder: Path, problems: list[str]) -> list[Film]:
    """The films of a run's evaluations, oldest first: ``ENVSTEPS-UPDATES-KIND.mp4`` or ``.gif``."""
    films = []
    for path in sorted(folder.glob("*-*-*.*")) if folder.is_dir() else []:
        steps, updates, kind = path.stem.split("-", 2)
        if path.suffix in (".mp4", ".gif") and kind in KINDS and steps.isdecimal() and updates.isdecimal():
            numbers = read_json(path.with_suffix(".json"), problems)
            films.append(Film(kind, int(steps), int(updates), path, numbers))
    return films


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of paths, as many parts as tell them apart."""
    for depth in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings by dotted names; lists become a line of YAML."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, item in value.items() for key, leaf in flatten(item, join(path, str(name))).items()}
    return {path: dump_yaml(value, flow=True).strip() if isinstance(value, list | dict) else value}


def group_runs(runs: Iterable[RunData]) -> list[Group]:
    """Runs with the same agent, task and config except seed, sorted by task and, in it, in the order they came."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if key not in UNIMPORTANT}
        found.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(run)
    tasks = list(dict.fromkeys(run.task for same in found.values() for run in same))
    ordered = sorted(found.values(), key=lambda same: tasks.index(same[0].task))
    names: list[str] = [""] * len(ordered)
    for kind in {(same[0].task, same[0].agent) for same in ordered}:
        rivals = [i for i, same in enumerate(ordered) if (same[0].task, same[0].agent) == kind]
        for i, name in zip(rivals, told_apart(kind[1], [ordered[i][0].config for i in rivals]), strict=True):
            names[i] = name
    colours = list(dict.fromkeys(names))
    return [
        Group(name, colours.index(name), sorted(same, key=lambda run: run.seed))
        for name, same in zip(names, ordered, strict=True)
    ]


def told_apart(agent: str, configs: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each config of an agent: with its world model, and then other values, as far as they differ."""
    names = [agent] * len(configs)
    rows = differences(configs)
    models = rows.pop("world_model_name", None)
    if models:
        names = [f"{agent} on {show(model)}" for model in models]
        rows = {key: row for key, row in rows.items() if not key.startswith("world_model")} or rows
    for key, row in list(rows.items())[:3]:
        if len(set(names)) < len(names):
            names = [f"{name}, {key.split('.')[-1]} {show(value)}" for name, value in zip(names, row, strict=True)]
    return [f"{name} #{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def differences(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all configs, seed and unimportant ones aside; None where missing."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in UNIMPORTANT)
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in rows.items() if len({(type(value), str(value)) for value in row}) > 1}


def show(value: Any) -> str:
    """A value of a config, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def metric_names(runs: Iterable[RunData]) -> list[str]:
    """All that any of the runs has logged, counts aside."""
    return sorted({name for run in runs for entry in run.history for name in entry} - RESERVED)
