"""What a run is made of, and how files, presets and overrides become one ``RunConfig``.

Values lie in ``configs/``, one YAML for each name a user can write; types lie beside the code they configure, as
``Config`` in ``agents/<type>.py`` and ``worldmodels/<type>.py``. There is no registry: a file is the registration. A
YAML with ``base: NAME`` is laid over that one of the same folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from agents.training.optim import OptimizerConfig
from agents.training.sections import CollectConfig, LearnPhase, ReplayConfig, TrainingConfig
from worldmodels.envs import EnvConfig
from worldmodels.strict import (
    ConfigError,
    at_least,
    config_class,
    did_you_mean,
    from_dict,
    join,
    read_yaml,
    show,
    to_dict,
    write_yaml,
)
from worldmodels.transfer import TransferConfig

SECTIONS = ("env", "collect", "replay", "optimizers", "transfer", "training")
# what runs did that say nothing of it
UNTIL_PHASES = {"phases": [{"type": "offline"}, {"type": "online"}], "rounds": 1}
UNTIL_TRANSFER = {"omega": 0.0, "frozen_updates": 0}
KINDS = {"agents": "agent", "worldmodels": "world model"}  # by folder of ``configs``, what errors call its files
HEADS = {"agents": ("type", "world_model"), "worldmodels": ("type",)}  # the names that such a file has to give


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, resolved. ``config.yaml`` of a run holds exactly this."""

    agent_name: str
    agent_type: str
    world_model_name: str
    world_model_type: str
    task: str
    preset: tuple[str, ...]
    seed: int  # of networks, environments, exploration and replay
    agent: Any  # Config of agents/<agent_type>.py
    world_model: Any  # Config of worldmodels/<world_model_type>.py
    env: EnvConfig
    collect: CollectConfig
    replay: ReplayConfig
    optimizers: dict[str, OptimizerConfig]
    transfer: TransferConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")
        for i, phase in enumerate(self.training.phases):
            unknown = sorted(set(phase.optimizers) - set(self.optimizers)) if isinstance(phase, LearnPhase) else []
            if unknown:
                known = ", ".join(self.optimizers)
                where = f"training.phases[{i}].optimizers"
                raise ValueError(f"{where}: learn moves {', '.join(unknown)}, and the optimizers are {known}")


class Said(NamedTuple):
    """What the YAML of one agent or world model says by itself."""

    values: dict[str, Any]  # config, and sections of the run that it sets
    presets: dict[str, Any]  # by preset, mappings like ``values``
    source: str  # what errors call it


class Entry(NamedTuple):
    """One agent or world model by name."""

    name: str
    type: str
    files: tuple[Said, ...]  # its own last, after those that it is based on; a later one is laid over the others
    source: str  # the file that gave the type
    world_model: str = ""  # an agent's default one

    @property
    def presets(self) -> tuple[str, ...]:
        """The names that any of its files has a section for."""
        return tuple(dict.fromkeys(preset for said in self.files for preset in said.presets))


@dataclass(frozen=True)
class Catalog:
    """Where names are looked up: values in a folder of ``configs``, types in the package of the same kind."""

    values: Traversable
    packages: Mapping[str, str]

    def names(self, kind: str) -> tuple[str, ...]:
        found = self.values.joinpath(kind).iterdir()
        return tuple(sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml")))

    def check(self, kind: str, what: str, name: str) -> None:
        """Raises ``ConfigError`` where no file has this name."""
        if name not in self.names(kind):
            raise ConfigError(f"unknown {what} {name!r}. {did_you_mean(name, self.names(kind))}")

    def read(self, *path: str) -> tuple[dict[str, Any], str]:
        """The values of one file of ``configs``, and what errors call it."""
        name = "/".join(("configs", *path)) + ".yaml"
        return read_yaml(self.file(*path), name), name

    def file(self, *path: str) -> Traversable:
        file = self.values
        for part in (*path[:-1], f"{path[-1]}.yaml"):  # one by one: a namespace package joins no more at once
            file = file.joinpath(part)
        return file

    def entry(self, kind: str, name: str) -> Entry:
        """An agent or world model, and the files that it is based on. Raises ``ConfigError``."""
        self.check(kind, KINDS[kind], name)
        files: list[Said] = []
        heads: dict[str, tuple[str, str]] = {}  # of type and world_model: the nearest file's value, and that file
        chain: list[str] = []
        base: str | None = name
        while base is not None:
            chain.append(base)
            head, said = self.said(kind, base)
            heads = {key: (value, said.source) for key, value in head.items()} | heads
            base = head.get("base")
            if base in chain:
                raise ConfigError(f"{said.source}: base: goes in a circle: {' -> '.join((*chain, base))}")
            if base is not None and base not in self.names(kind):
                near = did_you_mean(base, self.names(kind))
                raise ConfigError(f"{said.source}: base: unknown {KINDS[kind]} {base!r}. {near}")
            files.insert(0, said._replace(source=f"{said.source}, base of {name}") if files else said)
        for key in HEADS[kind]:
            if key not in heads:
                raise ConfigError(f"{files[-1].source}: {key}: expected a name, got null")
        type_, source = heads["type"]
        return Entry(name, type_, tuple(files), source, heads.get("world_model", ("", ""))[0])

    def said(self, kind: str, name: str) -> tuple[dict[str, str], Said]:
        """What one file says: the names in it (base, type and, in an agent's, world model), and everything else."""
        data, source = self.read(kind, name)
        heads = ("base", *HEADS[kind])
        allow(data, (*heads, "config", "presets", *SECTIONS), source)
        for key in heads:
            if key in data and not isinstance(data[key], str):
                raise ConfigError(f"{source}: {key}: expected a name, got {show(data[key])}")
        presets = data.pop("presets", {})
        for values in (presets, *(presets.values() if isinstance(presets, dict) else ())):
            if not isinstance(values, dict):
                raise ConfigError(f"{source}: presets: expected a mapping of mappings, got {show(values)}")
        for preset, values in presets.items():
            allow(values, ("config", *SECTIONS), f"{source}: presets.{preset}")
        values = {key: value for key, value in data.items() if key not in heads}
        return {key: data[key] for key in heads if key in data}, Said(values, presets, source)

    def config_class(self, kind: str, name: str, source: str) -> type:
        """``Config`` of one module of the package of this kind. Raises ``ConfigError``."""
        return config_class(self.packages[kind], name, source)


def shipped() -> Catalog:
    """The configs and packages of this project."""
    return Catalog(files("configs"), {"agents": "agents", "worldmodels": "worldmodels"})


def allow(data: Mapping[str, Any], known: Iterable[str], source: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(f"{source}: {key}: unknown key. {did_you_mean(key, known)}")


class Layers:
    """Mappings laid one over the other, which remember where each value was written.

    Mappings merge, everything else replaces. A mapping with another ``type`` replaces too: the values of one kind of
    thing are none of another's. A mapping over a list changes the items that its keys number.
    """

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def add(self, data: Mapping[str, Any], source: str) -> None:
        self.sources.setdefault("", source)
        self.data = self._merged(self.data, data, source, "")

    def _merged(self, old: Any, new: Mapping[str, Any], source: str, path: str) -> dict[str, Any]:
        if not isinstance(old, dict) or ("type" in new and new["type"] != old.get("type")):
            old = {}
            below = [known for known in self.sources if known.startswith(f"{path}.")]
            for known in below:
                del self.sources[known]
            self.sources[path] = source
        merged = dict(old)
        for key, value in new.items():
            here = join(path, key)
            if isinstance(value, Mapping) and isinstance(merged.get(key), list):
                merged[key] = self._items(merged[key], value, source, here)
            elif isinstance(value, Mapping):
                merged[key] = self._merged(merged.get(key), value, source, here)
            else:
                self.sources = {at: old for at, old in self.sources.items() if not at.startswith(f"{here}[")}
                merged[key], self.sources[here] = value, source
        return merged

    def _items(self, old: list[Any], new: Mapping[str, Any], source: str, path: str) -> list[Any]:
        """A list in which those items are changed that ``new`` names by their number, from 0."""
        items = list(old)
        for number, value in new.items():
            if number not in map(str, range(len(items))):
                known = f"it has items 0 to {len(items) - 1}" if items else "it is empty"
                raise ConfigError(f"{source}: {path}: no item {number}; {known}")
            i, here = int(number), f"{path}[{number}]"
            if isinstance(value, Mapping):
                items[i] = self._merged(items[i], value, source, here)
            else:
                items[i], self.sources[here] = value, source
        return items


def compose(
    catalog: Catalog,
    *,
    agent: Entry,
    world_model: Entry,
    task: str,
    presets: tuple[str, ...],
    saved: tuple[Mapping[str, Any], str] | None = None,
    files: Iterable[tuple[Mapping[str, Any], str]],
    overrides: Mapping[str, Any],
) -> RunConfig:
    """Everything that has a say, in order; the later one wins. Raises ``ConfigError``.

    ``task`` is a canonical name, ``suite:name``. ``saved``, what a saved world model knows of its environment, and
    ``files`` are mappings with what errors call them.
    """
    layers = Layers()
    layers.add(*catalog.read("run"))
    parts = {"world_model": world_model, "agent": agent}
    for part, entry in parts.items():
        for said in entry.files:
            layers.add(in_run(part, said.values), said.source)
        if isinstance(layers.data.get(part), dict):
            layers.sources[part] = entry.files[-1].source  # who has to give what is missing
    for name in task.replace("/", "-").split(":", 1):
        if name in catalog.names("tasks"):
            data, source = catalog.read("tasks", name)
            allow(data, SECTIONS, source)
            layers.add(data, source)
    for preset in presets:
        if preset in catalog.names("presets"):
            data, source = catalog.read("presets", preset)
            allow(data, SECTIONS, source)
            layers.add(data, source)
        for part, entry in parts.items():
            for said in entry.files:
                layers.add(in_run(part, said.presets.get(preset, {})), f"{said.source} (preset {preset})")
    for part in parts:
        drop_nulls(layers.data.get(part), "scales")  # so can a file do without a loss of its base; nobody after it can
    for data, source in [*([saved] if saved else []), *files]:
        layers.add(data, source)
    known = layers.data["optimizers"] or {}
    if "optimizers" in overrides:
        overrides = {**overrides, "optimizers": undotted(overrides["optimizers"], known)}
    for name in overrides.get("optimizers", {}):
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(f"command line: optimizers.{name}: {agent.name} has no such optimizer. {near}")
    for part in parts:
        check_scales(overrides.get(part), layers.data.get(part), part)
    layers.add(overrides, "command line")
    drop_nulls(layers.data, "optimizers")  # so can one for everything be replaced by one for each part
    names = {"agent_name": agent.name, "agent_type": agent.type, "task": task, "preset": list(presets)}
    layers.add({**names, "world_model_name": world_model.name, "world_model_type": world_model.type}, "command line")
    return from_layers(layers.data, layers.sources, catalog, agent.source, world_model.source)


def check_scales(given: Any, known: Any, path: str) -> None:
    """Raises ``ConfigError`` where a loss term is weighed that there is not: it would be found out at an update."""
    for key, value in given.items() if isinstance(given, Mapping) and isinstance(known, Mapping) else ():
        if key == "scales" and isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
            for name in value.keys() - known[key].keys():
                near = did_you_mean(name, known[key])
                raise ConfigError(f"command line: {path}.scales.{name}: no such loss term. {near}")
        else:
            check_scales(value, known.get(key), f"{path}.{key}")


def undotted(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Settings of optimisers whose names have dots: ``--optimizers.model.vae.lr`` came as ``{model: {vae: {lr}}}``."""
    flat: dict[str, Any] = {}
    for name, value in given.items():
        parts = value if isinstance(value, Mapping) and name not in known else {}
        dotted = {f"{name}.{part}": inner for part, inner in parts.items()}
        flat |= dotted if dotted.keys() & set(known) else {name: value}
    return flat


def drop_nulls(data: Any, key: str) -> None:
    """Take out of ``data[key]`` what is null; what is no mapping is left for ``from_dict`` to refuse."""
    if isinstance(data, dict) and isinstance(data.get(key), dict):
        data[key] = {name: value for name, value in data[key].items() if value is not None}


def in_run(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an agent's or world model's file, under the names that they have in a run."""
    return {part if key == "config" else key: value for key, value in values.items()}


def from_layers(
    data: Mapping[str, Any], where: str | Mapping[str, str], catalog: Catalog, agent_source: str, model_source: str
) -> RunConfig:
    types = {
        "agent": catalog.config_class("agents", data["agent_type"], agent_source),
        "world_model": catalog.config_class("worldmodels", data["world_model_type"], model_source),
    }
    return from_dict(RunConfig, data, where, types)


def load_config(path: Path, catalog: Catalog | None = None) -> RunConfig:
    """The config of a run from its ``config.yaml``. Raises ``ConfigError``."""
    data = read_saved(path)
    for key in ("agent_type", "world_model_type"):
        if not isinstance(data.get(key), str):
            raise ConfigError(f"{path}: {key}: expected a name, got {show(data.get(key))}; is this the file of a run?")
    return from_layers(data, str(path), catalog or shipped(), str(path), str(path))


def read_saved(path: Path) -> dict[str, Any]:
    """What a run's ``config.yaml`` says, and what it meant before it could say so. Raises ``ConfigError``."""
    data = read_yaml(path, str(path))
    if isinstance(data.get("training"), dict):
        data["training"] = UNTIL_PHASES | data["training"]
    return {"transfer": UNTIL_TRANSFER} | data


def save_config(config: RunConfig, path: Path) -> None:
    """Complete and resolved, so that ``load_config`` gives an equal one."""
    write_yaml(to_dict(config), path)
