"""What the command line says about itself: flags, every setting with its value and its comment, agents and tasks."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from agents.training.config import Catalog, Entry, RunConfig
from worldmodels.envs import list_tasks
from worldmodels.strict import dump_yaml, join, tags, to_dict

FLAGS = """\
usage: train.py --agent NAME --task NAME [options] [--a.b VALUE | a.b=VALUE ...]

  --agent NAME            what to do: a file of configs/agents
  --task NAME             where: walker-walk, toy:reach, gym:<Gymnasium id>
  --preset NAME[,NAME]    paper, cpu or debug, and a size of the world model, such as 25m; repeatable, later ones win
  --seed N                of networks, environments, exploration and replay
  --env-steps N           simulator control steps in all; short for --training.env-steps
  --world-model WHAT      a file of configs/worldmodels, or a run or saved model whose config and weights to use
  --transfer RECIPE       what to do with those weights: docs/pretrained.md
  --data DIR              recorded experience to learn from
  --config FILE           values over all presets, below dotted settings; a run's config.yaml repeats it; repeatable
  --run-dir DIR           where to write; runs/<agent>/<task>/<time>-seed<seed> if not given
  --resume RUN            go on with a run; only --env-steps and --training.* may change
  --print-config          the complete config as YAML, and nothing else
  --list-agents, --list-tasks, --help
"""


def usage(config: RunConfig) -> str:
    """The flags, and all dotted settings of a run with their values."""
    about = f"agent {config.agent_name}, world model {config.world_model_name}, task {config.task}"
    about = f"Settings, as they are for {about}, preset {','.join(config.preset)}:"
    lines = []
    for name in ("agent", "world_model", "env", "collect", "replay", "optimizers", "transfer", "training"):
        part = list(rows(getattr(config, name), get_type_hints(RunConfig)[name], name))
        lines += ["", f"{name}:" if part else f"{name}: nothing to set", *part]
    return "\n".join([FLAGS, about, *lines])


def rows(value: Any, hint: Any, path: str, doc: str = "") -> Iterator[str]:
    """One line for each leaf: flag, value, choices and comment."""
    if is_dataclass(value) and not isinstance(value, type):
        hints, docs = get_type_hints(type(value)), comments(type(value))
        for field in fields(value):
            # which kind of thing it is: its own type knows one name, the union that it was chosen from knows all
            wider = hint if field.name == "type" else hints[field.name]
            doc = docs.get(field.name, "")
            yield from rows(getattr(value, field.name), wider, join(path, field.name), doc)
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from rows(item, (get_args(hint) or (None, Any))[1], join(path, key), doc)
    else:
        left = f"  --{path.replace('_', '-')} {dump_yaml(to_dict(value), flow=True).strip()}"
        names = " | ".join(map(str, choices(hint)))
        about = "; ".join(filter(None, (names, doc)))
        yield f"{left:<52} {about}".rstrip()


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a Literal, or a ``type`` key for a union of dataclasses, can have; none without a list."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    variants = [option for option in get_args(hint) if is_dataclass(option)]
    return tuple(tag for option in variants for tag in tags(option)) if len(variants) > 1 else ()  # type: ignore


def comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line, or the string below it."""
    source = textwrap.dedent(inspect.getsource(cls))
    (node,), lines = ast.parse(source).body, source.splitlines()
    assert isinstance(node, ast.ClassDef), cls
    found = {}
    for item, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = lines[(item.end_lineno or 1) - 1].partition("  # ")[2]
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[item.target.id] = " ".join(text.split())
    return found


def agents(catalog: Catalog) -> str:
    """Each agent, its usual world model, and what its YAML says it is."""
    entries = [catalog.entry("agents", name) for name in catalog.names("agents")]
    width, model_width = max(len(e.name) for e in entries), max(len(e.world_model) for e in entries)
    return "\n".join(f"{e.name:<{width}}  {e.world_model:<{model_width}}  {card(catalog, e)}" for e in entries)


def card(catalog: Catalog, agent: Entry) -> str:
    """The comment that an agent's YAML begins with: several may share one type and its card."""
    return catalog.file("agents", agent.name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def tasks() -> str:
    """All tasks by suite, without loading a simulator."""
    suites: dict[str, list[str]] = {}
    for task in list_tasks():
        suites.setdefault(task.partition(":")[0], []).append(task)
    lines = [line for suite, names in suites.items() for line in (suite, *(f"  {name}" for name in names), "")]
    return "\n".join([*lines, "gym", "  gym:<any registered Gymnasium id>, as gym:CarRacing-v3"])
