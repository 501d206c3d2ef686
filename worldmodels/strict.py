"""Strict dataclasses from plain mappings, and back: every key known, every key there, every value of its type.

YAML holds values and dataclasses hold the schema. Understood are dataclasses, ``dict[str, X]``, ``tuple[X, ...]``,
``tuple[X, Y]``, ``Literal``, ``X | None``, ``bool int float str``, and a union of dataclasses that each declare
``type: Literal["name"]``, chosen by that key. Files never name code.
"""

import difflib
import importlib
import pkgutil
import re
import types as builtin_types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")
MODULE = re.compile(r"[a-z][a-z0-9_]*")
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")  # YAML 1.1 reads 1e5 as text


class ConfigError(ValueError):
    """What a user wrote does not fit. The message is one line that says where and what to do."""


class _Misfit(Exception):
    def __init__(self, path: str, problem: str):
        super().__init__(path, problem)
        self.path, self.problem = path, problem


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'?`` or, where nothing is near, what is known."""
    known = sorted(known)
    if near := difflib.get_close_matches(name, known, 1, 0.6):
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(known[:24])}{', ...' if len(known) > 24 else ''}." if known else "None are known here."


def at_least(config: Any, least: float, *names: str) -> None:
    """Check fields of a config; the error begins with the field's name, from which ``from_dict`` makes its path."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def above(config: Any, bound: float, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= bound:
            raise ValueError(f"{name} must be more than {bound}, got {getattr(config, name)}")


def from_dict(cls: type[T], data: Any, where: str | Mapping[str, str], types: Mapping[str, Any] | None = None) -> T:
    """A dataclass from a mapping.

    ``where`` says in errors where the values were written: one text, or a text for each dotted path (the longest
    path that contains the wrong one is taken). ``types`` gives the types of fields of ``cls`` that are only known at
    run time. A field with a default may be missing. Raises ``ConfigError``.
    """
    try:
        return _dataclass(cls, data, "", types or {})
    except _Misfit as misfit:
        source = where if isinstance(where, str) else origin(where, misfit.path)
        raise ConfigError(": ".join(filter(None, (source, misfit.path, misfit.problem)))) from None


def to_dict(value: Any) -> Any:
    """What ``from_dict`` reads: mappings, lists and scalars, as YAML and JSON can hold them."""
    if is_dataclass(value) and not isinstance(value, type):
        names = dict.fromkeys([field.name for field in fields(value)])
        tag = ["type"] if "type" not in names and tags(type(value)) else []
        return {name: to_dict(getattr(value, name)) for name in [*tag, *names]}
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    return [to_dict(item) for item in value] if isinstance(value, tuple) else value


def origin(sources: Mapping[str, str], path: str) -> str:
    """Where ``path``, or else the nearest mapping around it, was written."""
    while path and path not in sources:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return sources.get(path, "")


def config_class(package: str, name: str, source: str) -> type:
    """``Config`` of one module of a package of ours. A name of a file there, never an import path.

    ``source`` is what errors call the file that gave the name. Raises ``ConfigError``.
    """
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    modules = [module.name for module in found if not module.ispkg and MODULE.fullmatch(module.name)]
    if name not in modules:
        raise ConfigError(f"{source}: type: no module {name!r} in {package}. {did_you_mean(name, modules)}")
    config = getattr(importlib.import_module(f"{package}.{name}"), "Config", None)
    if not isinstance(config, type):
        raise ConfigError(f"{source}: type: {package}/{name}.py defines no Config")
    return config


def tags(cls: type) -> tuple[str, ...]:
    """The names by which ``type:`` chooses this dataclass; none where it has no such Literal."""
    hint = get_type_hints(cls).get("type")
    if get_origin(hint) is ClassVar:
        (hint,) = get_args(hint)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _convert(hint: Any, value: Any, path: str) -> Any:
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _dataclass(hint, value, path, {})  # type: ignore[arg-type]
    if kind is Literal:
        return _literal(arguments, value, path)
    if kind in (Union, builtin_types.UnionType):
        return _union(arguments, value, path)
    if kind is tuple:
        return _tuple(arguments, value, path)
    if kind is dict:
        _expect(isinstance(value, Mapping), "a mapping", value, path)
        return {key: _convert(arguments[1], item, join(path, key)) for key, item in value.items()}
    return _scalar(hint, value, path)


def _dataclass(cls: Any, data: Any, path: str, types: Mapping[str, Any]) -> Any:
    _expect(isinstance(data, Mapping), "a mapping", data, path)
    known = {field.name: field for field in fields(cls)}
    hints = {**get_type_hints(cls), **types}
    values = {}
    for key, value in data.items():
        if key in known:
            values[key] = _convert(hints[key], value, join(path, key))
        elif key == "type" and tags(cls):
            _literal(tags(cls), value, join(path, key))
        else:
            raise _Misfit(join(path, str(key)), f"unknown key. {did_you_mean(str(key), known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise _Misfit(join(path, name), "missing; every value has to be given")
    try:
        return cls(**values)
    except ValueError as error:  # a range that the dataclass checks; by convention the message begins with the field
        text = str(error).removeprefix(f"{path}.")
        name, _, problem = text.partition(" ")
        raise (_Misfit(join(path, name), problem) if name in known else _Misfit(path, text)) from error


def _union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if builtin_types.NoneType in options:
        if value is None:
            return None
        options = tuple(option for option in options if option is not builtin_types.NoneType)
    if len(options) == 1:
        return _convert(options[0], value, path)
    if not any(is_dataclass(option) for option in options):
        exact = [option for option in options if type(value) is option]
        _expect(bool(exact), " or ".join(option.__name__ for option in options), value, path)
        return value
    _expect(isinstance(value, Mapping), "a mapping", value, path)
    variants = {tag: option for option in options for tag in tags(option)}
    if "type" not in value:
        raise _Misfit(join(path, "type"), f"missing; one of {', '.join(variants)}")
    return _convert(variants[_literal(tuple(variants), value["type"], join(path, "type"))], value, path)


def _literal(options: tuple[Any, ...], value: Any, path: str) -> Any:
    for option in options:
        if type(option) is type(value) and option == value:
            return value
    hint = f" {did_you_mean(value, map(str, options))}" if isinstance(value, str) and len(options) > 1 else ""
    raise _Misfit(path, f"expected {' or '.join(map(str, options))}, got {show(value)}.{hint.partition(' Known')[0]}")


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list | tuple), "a list such as [1, 2]", value, path)
    items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    _expect(len(items) == len(value), f"a list of {len(items)}", value, path)
    return tuple(_convert(item, v, f"{path}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint in (int, float) and isinstance(value, str) and NUMBER.fullmatch(value):
        value = int(value) if value.lstrip("+-").isdigit() else float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint is float and type(value) is int:
        value = float(value)
    if hint not in (bool, int, float, str):
        raise TypeError(f"{path}: a config cannot hold {hint}")
    _expect(type(value) is hint and value == value, hint.__name__, value, path)  # nan is not equal to itself
    return value


def _expect(condition: bool, expected: str, value: Any, path: str) -> None:
    if not condition:
        raise _Misfit(path, f"expected {expected}, got {show(value)}")


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def show(value: Any) -> str:
    """A value as an error names it: short, and with its type where that is not plain."""
    text = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    match value:
        case None:
            return "null"
        case bool():
            return f"{text.lower()} (bool; write it in quotes if it is a text)"
        case Mapping():
            return f"the mapping {text}"
    return f"{text} ({type(value).__name__})"


class Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and a key that YAML 1.1 does not read as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is not a text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Traversable | Path, name: str) -> dict[str, Any]:
    """The mapping in a file, empty for an empty file; ``name`` is what errors call it. Raises ``ConfigError``."""
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not a text file ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from error
    if not isinstance(data, dict | None):
        raise ConfigError(f"{name}: expected a mapping, got {show(data)}")
    return data or {}


def parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{place}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: not YAML ({' '.join(str(error).split())[:120]})") from error


def write_yaml(data: Mapping[str, Any], file: Path) -> None:
    """Whole or not at all: written beside, then moved."""
    partial = file.with_name(f"{file.name}.tmp")
    partial.write_text(dump_yaml(dict(data)), encoding="utf-8")
    partial.replace(file)


def dump_yaml(value: Any, flow: bool = False) -> str:
    """YAML of a value; lists of scalars are in one line, and with ``flow`` everything is."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120, default_flow_style=flow or None)
    return text.removesuffix("...\n")  # PyYAML ends a lone scalar so
