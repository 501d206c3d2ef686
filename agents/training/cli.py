"""The command line of a run, in two stages: names choose the types, then dotted settings are checked against them.

``--agent dreamer --task walker-walk --agent.imagination-horizon 10 training.precision=bf16``. A wrong name or value is
a ``ConfigError`` of one line; ``run_script`` turns it into exit code 2.
"""

import linecache
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.training import help as texts
from agents.training.config import Catalog, Entry, Layers, RunConfig, Said, compose, from_layers, load_config, shipped
from worldmodels.envs import resolve_task
from worldmodels.pretrained import CONFIG, read_card
from worldmodels.strict import ConfigError, did_you_mean, dump_yaml, from_dict, parse_yaml, read_yaml, to_dict
from worldmodels.transfer import check_numbers, choose_recipe, part_for
from worldmodels.zoo import find

VALUES = tuple("agent task preset seed env-steps run-dir resume world-model transfer data config".split())
SWITCHES = ("list-agents", "list-tasks", "print-config", "help")
ROOMS = ("worldmodels", "agents", "scripts", "__main__")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for."""

    config: RunConfig
    run_dir: Path
    resume: Path | None = None  # the run to go on with; equal to run_dir
    world_model: Path | None = None  # a run or a saved model to take the weights from; its config is in ``config``
    transfer: str | None = None  # a recipe for what to do with those weights
    data: Path | None = None  # recorded experience to learn from


@dataclass(frozen=True)
class Origin:
    """A run or a saved model that a world model comes from, and what it was trained in."""

    weights: Path
    task: str
    env: dict[str, Any]

    def env_for(self, task: str) -> dict[str, Any]:
        """What a run on ``task`` takes over of its environment: all in the same suite, else the image size."""
        same = task.split(":")[0] == self.task.split(":")[0]
        return {"env": self.env if same else {"size": self.env["size"]}}


@dataclass(frozen=True)
class Names:
    """What chooses types and files, under the names it has in a ``RunConfig``."""

    agent_name: str | None = None
    agent_type: str | None = None
    world_model_name: str | None = None
    world_model_type: str | None = None
    task: str | None = None
    preset: tuple[str, ...] = ()


NAMES = tuple(field.name for field in fields(Names))


@dataclass(frozen=True)
class Line:
    """A command line taken apart, nothing looked up yet."""

    values: dict[str, list[str]]  # by flag, all that were given
    switches: set[str]
    settings: dict[str, Any]  # dotted ones, nested

    def last(self, flag: str) -> str | None:
        return self.values[flag][-1] if flag in self.values else None


def parse(argv: list[str], catalog: Catalog | None = None) -> Command:
    """The command of a line. ``--help`` and the lists print and raise ``SystemExit(0)``. Raises ``ConfigError``."""
    catalog, line = catalog or shipped(), split(argv)
    if "list-agents" in line.switches:
        leave(texts.agents(catalog))
    if "list-tasks" in line.switches:
        leave(texts.tasks())
    command = resumed(line, catalog) if "resume" in line.values else started(line, catalog)
    if "help" in line.switches:
        leave(texts.usage(command.config))
    if "print-config" in line.switches:
        leave(dump_yaml(to_dict(command.config)).rstrip())
    return command


def leave(text: str) -> None:
    print(text, flush=True)
    raise SystemExit(0)


def split(argv: list[str]) -> Line:
    """Stage one: ``--flag value``, ``--flag=value``, ``--a.b value`` and bare ``a.b=value``; ``-`` and ``_`` alike."""
    line, rest = Line({}, set(), {}), list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") and not re.match(r"[A-Za-z][\w.-]*=", token) and token != "-h":
            raise ConfigError(f"unexpected argument {token!r}; settings are --name value, lists are written [1,2]")
        name, equals, text = token.removeprefix("--").partition("=")
        flag = "help" if token == "-h" else name.replace("_", "-")
        if flag in SWITCHES:
            if equals:
                raise ConfigError(f"--{flag} takes no value, got {text!r}")
            line.switches.add(flag)
            continue
        if flag not in VALUES and "." not in flag:
            raise ConfigError(f"unknown option --{name}. {did_you_mean(flag, (*VALUES, *SWITCHES))}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value")
            text = rest.pop(0)
        if flag in VALUES:
            line.values.setdefault(flag, []).append(text)
        dotted = {"env-steps": "training.env_steps", "seed": "seed"}.get(flag, name if "." in name else None)
        if dotted:
            put(line.settings, dotted.replace("-", "_").split("."), parse_yaml(text, f"--{name}"), name)
    return line


def put(settings: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for key in path[:-1]:
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--{name}: {key} was given a value already")
    if not all(path):
        raise ConfigError(f"--{name}: an empty name between dots")
    settings[path[-1]] = value


def started(line: Line, catalog: Catalog) -> Command:
    """A new run."""
    files = [(read_yaml(Path(path), path), path) for path in line.values.get("config", [])]
    names, asked = named(line, files), "help" in line.switches
    agent_name = names.agent_name or (default_agent(catalog) if asked else None)
    if not agent_name:
        raise ConfigError("--agent is needed; --list-agents shows what there is")
    agent = catalog.entry("agents", agent_name)
    model, origin = world_model(names.world_model_name or agent.world_model, catalog)
    if origin:
        model = surrounded(model, catalog.entry("worldmodels", agent.world_model), catalog)
    task = names.task or (origin.task if origin else "walker-walk" if asked else None)
    if not task:
        raise ConfigError("--task is needed; --list-tasks shows what there is")
    task = resolve_task(task)
    chosen = presets(names.preset, agent, model, line.settings, catalog)
    config = compose(
        catalog,
        agent=agent,
        world_model=model,
        task=task,
        presets=chosen,
        saved=(origin.env_for(task), f"--world-model {origin.weights}") if origin else None,
        files=[({key: data[key] for key in data if key not in NAMES}, path) for data, path in files],
        overrides=line.settings,
    )
    data = Path(line.last("data") or "") if "data" in line.values else None
    if data and not data.exists():
        raise ConfigError(f"--data {data}: no such folder or file")
    run_dir = Path(line.last("run-dir") or default_run_dir(config))
    if (run_dir / "config.yaml").exists():
        raise ConfigError(f"--run-dir {run_dir}: there is a run already; --resume {run_dir}, or take another folder")
    if chosen[:1] != names.preset[:1]:
        why = {"paper": "there is an accelerator", "cpu": "no accelerator; --preset paper for published sizes"}
        print(f"preset {chosen[0]}: {why[chosen[0]]}", file=sys.stderr)
    numbers = line.settings.get("transfer", {})
    if origin is None and numbers:
        raise ConfigError(f"--transfer.{next(iter(numbers))} needs a --world-model that is a run or a saved folder")
    if origin is not None:
        check_numbers(choose_recipe(line.last("transfer"), origin.task, task), numbers)
    weights = origin.weights if origin else None
    return Command(config=config, run_dir=run_dir, world_model=weights, transfer=line.last("transfer"), data=data)


def resumed(line: Line, catalog: Catalog) -> Command:
    """A run to go on with: its own config, of which only ``training`` may change."""
    run = Path(line.last("resume") or "")
    others = [f"--{flag}" for flag in line.values if flag not in ("resume", "env-steps")]
    others += [f"--{section}.*" for section in line.settings if section not in ("training", "seed")]
    if others:
        raise ConfigError(f"{others[0]} cannot go with --resume: of a run only --env-steps and --training.* may change")
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"--resume {run}: no config.yaml there; a run is the folder that training wrote")
    before, layers = to_dict(load_config(path, catalog)), Layers()
    layers.add(before, str(path))
    layers.add(line.settings, "command line")
    return Command(config=from_layers(layers.data, layers.sources, catalog, *[str(path)] * 2), run_dir=run, resume=run)


def named(line: Line, files: list[tuple[dict[str, Any], str]]) -> Names:
    """The names that choose types and files: flags, else what ``--config`` files say."""
    values: dict[str, Any] = {}
    for data, path in files:
        part = {key: data[key] for key in data if key in NAMES}
        from_dict(Names, part, path)
        values |= part
    for flag, key in (("agent", "agent_name"), ("world-model", "world_model_name")):
        given = line.last(flag)
        if given and values.get(key, given) != given:
            raise ConfigError(f"--{flag} {given}: the --config has the values of {values[key]!r}, which cannot fit")
    flags = {"agent_name": "agent", "world_model_name": "world-model", "task": "task"}
    values |= {key: line.last(flag) for key, flag in flags.items() if flag in line.values}
    if "preset" in line.values:
        values["preset"] = ",".join(line.values["preset"]).split(",")
    return from_dict(Names, values, "command line")


def default_agent(catalog: Catalog) -> str:
    agents = catalog.names("agents")
    return "dreamer" if "dreamer" in agents else agents[0]


def world_model(name: str, catalog: Catalog) -> tuple[Entry, Origin | None]:
    """A world model's config by name, or that of a run or a saved model, and where it comes from."""
    if name in catalog.names("worldmodels"):
        return catalog.entry("worldmodels", name), None
    path = find(name)
    if not path.is_dir():
        near = did_you_mean(name, catalog.names("worldmodels"))
        raise ConfigError(f"unknown world model {name!r}: neither a config nor a folder. {near}")
    if (path / CONFIG).is_file():
        card = read_card(path)
        part, origin = card.world_model, Origin(path, card.task, to_dict(card.env))
        source = str(path / CONFIG)
        return Entry(part.name, part.type, (Said({"config": part.config}, {}, source),), source), origin
    file = path / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"--world-model {path}: no config.yaml there; a run is the folder that training wrote, and a saved model, "
            f"which scripts/export.py writes, has a {CONFIG}"
        )
    before = load_config(file, catalog)
    said = Said({"config": to_dict(before.world_model)}, {}, str(file))
    origin = Origin(path, before.task, to_dict(before.env))
    return Entry(before.world_model_name, before.world_model_type, (said,), str(file)), origin


def surrounded(saved: Entry, usual: Entry, catalog: Catalog) -> Entry:
    """A saved world model; where the one that the agent usually has contains one of its type, that one around it.

    An agent that needs an ensemble so gets one around a saved RSSM.
    """
    inner, outer = (catalog.config_class("worldmodels", entry.type, entry.source) for entry in (saved, usual))
    if not (part := part_for(inner, outer)):
        return saved

    def rest(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "config": {key: value for key, value in values.get("config", {}).items() if key != part}}

    within = [said._replace(values={"config": {part: said.values["config"]}}) for said in saved.files]
    around = [
        said._replace(values=rest(said.values), presets={name: rest(said.presets[name]) for name in said.presets})
        for said in usual.files
    ]
    return usual._replace(files=(*within, *around))


def presets(
    given: tuple[str, ...], agent: Entry, model: Entry, settings: Mapping[str, Any], catalog: Catalog
) -> tuple[str, ...]:
    """The presets asked for, after the one for this machine where none of them is a file of ``configs/presets``."""
    machines = catalog.names("presets")
    known = {*machines, *agent.presets, *model.presets}
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown preset {name!r} for {agent.name} on {model.name}. {did_you_mean(name, known)}")
    if not set(given) & set(machines):
        accelerated = settings.get("training", {}).get("device") != "cpu" and accelerator()
        given = ("paper" if accelerated else "cpu", *given)
    return tuple(dict.fromkeys(given))


def accelerator() -> bool:
    import torch  # a second to import, and only asked here

    return torch.cuda.is_available()


def default_run_dir(config: RunConfig) -> Path:
    task = re.sub(r"[:/]", "-", config.task.removeprefix("dmc:"))
    return Path("runs", config.agent_name, task, f"{datetime.now():%Y%m%d-%H%M%S}-seed{config.seed}")


def run_script(main: Callable[[list[str]], Any]) -> None:
    """Run a script's ``main(argv)`` and exit: 2 and one line on stderr where the user can mend it.

    That is a file that cannot be opened and a ``ValueError`` that this project raised on purpose. Everything else is
    a bug and keeps its traceback, as does all with ``WORLDMODELS_DEBUG=1``.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for one, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        code = 130
    except (ValueError, OSError) as error:
        if os.environ.get("WORLDMODELS_DEBUG") == "1" or not is_the_users(error):
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        code = 2
    raise SystemExit(code)


def is_the_users(error: Exception) -> bool:
    """Whether it was a missing or closed file, or a ``raise`` of our own rather than of a library on its way."""
    if isinstance(error, OSError):
        return error.filename is not None
    *_, (frame, lineno) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals["__name__"].partition(".")[0] in ROOMS
    return ours and linecache.getline(frame.f_code.co_filename, lineno).lstrip().startswith("raise ")
