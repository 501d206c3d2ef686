"""Strict configs: what is read is what was written, and what was written wrong is named in one line."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from agents.training import config as run_config
from agents.training.cli import parse
from agents.training.config import Catalog, Layers, RunConfig, compose, load_config, save_config, shipped
from worldmodels.strict import ConfigError, dump_yaml, from_dict, parse_yaml, read_yaml, to_dict


@dataclass(frozen=True)
class Square:
    type: Literal["square"]
    side: float


@dataclass(frozen=True)
class Circle:
    type: ClassVar[Literal["circle"]] = "circle"
    radius: float


@dataclass(frozen=True)
class Everything:
    flag: bool
    count: int
    rate: float
    name: str
    mode: Literal["fast", "slow"]
    maybe: int | None
    either: int | str
    sizes: tuple[int, ...]
    pair: tuple[int, str]
    weights: dict[str, float]
    shape: Square | Circle
    shapes: dict[str, Square | Circle]

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be at least 0, got {self.count}")


GOOD: dict[str, Any] = {
    "flag": True,
    "count": 3,
    "rate": 1.0e-20,
    "name": "x",
    "mode": "fast",
    "maybe": None,
    "either": "auto",
    "sizes": [1, 2, 3],
    "pair": [1, "a"],
    "weights": {"image": 1.0},
    "shape": {"type": "circle", "radius": 2.0},
    "shapes": {"a": {"type": "square", "side": 1.0}},
}


def test_dictionaries_and_dataclasses_convert_both_ways() -> None:
    config = from_dict(Everything, GOOD, "here")
    assert config.sizes == (1, 2, 3) and config.shape == Circle(2.0) and config.shapes["a"] == Square("square", 1.0)
    assert to_dict(config) == GOOD
    assert from_dict(Everything, json.loads(json.dumps(to_dict(config))), "json") == config
    assert from_dict(Everything, parse_yaml(dump_yaml(to_dict(config)), "yaml"), "yaml") == config


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("count", "1e5", 100_000),
        ("count", "1.5e3", 1500),
        ("count", "4.0", 4),
        ("count", "1_000", 1000),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("rate", ".inf", float("inf")),
        ("maybe", "7", 7),
        ("maybe", "1e2", 100),
        ("either", "7", 7),
    ],
)
def test_numbers_are_taken_as_people_write_them(field: str, text: str, value: Any) -> None:
    read = getattr(from_dict(Everything, GOOD | {field: parse_yaml(text, "x")}, "here"), field)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuont": 1}, "a.yaml: cuont: unknown key. Did you mean 'count'?"),
        ({"shape": {"type": "circle", "radios": 1}}, "a.yaml: shape.radios: unknown key. Did you mean 'radius'?"),
        ({"shape": {"type": "circle"}}, "a.yaml: shape.radius: missing; every value has to be given"),
        ({"shape": {"radius": 1.0}}, "a.yaml: shape.type: missing; one of square, circle"),
        (
            {"shape": {"type": "cirle", "radius": 1.0}},
            "a.yaml: shape.type: expected square or circle, got 'cirle' (str). Did you mean 'circle'?",
        ),
        ({"shape": 5}, "a.yaml: shape: expected a mapping, got 5 (int)"),
        ({"shapes": {"b": {"type": "square", "side": "x"}}}, "a.yaml: shapes.b.side: expected float, got 'x' (str)"),
        ({"count": 1.5}, "a.yaml: count: expected int, got 1.5 (float)"),
        ({"count": True}, "a.yaml: count: expected int, got true (bool; write it in quotes if it is a text)"),
        ({"count": None}, "a.yaml: count: expected int, got null"),
        ({"count": -1}, "a.yaml: count: must be at least 0, got -1"),
        ({"rate": float("nan")}, "a.yaml: rate: expected float, got nan (float)"),
        ({"flag": 1}, "a.yaml: flag: expected bool, got 1 (int)"),
        ({"name": 5}, "a.yaml: name: expected str, got 5 (int)"),
        ({"mode": "fats"}, "a.yaml: mode: expected fast or slow, got 'fats' (str). Did you mean 'fast'?"),
        ({"mode": "zzz"}, "a.yaml: mode: expected fast or slow, got 'zzz' (str)."),
        ({"either": 1.5}, "a.yaml: either: expected int or str, got 1.5 (float)"),
        ({"sizes": [1, "x"]}, "a.yaml: sizes[1]: expected int, got 'x' (str)"),
        ({"sizes": "12"}, "a.yaml: sizes: expected a list such as [1, 2], got '12' (str)"),
        ({"pair": [1]}, "a.yaml: pair: expected a list of 2, got [1] (list)"),
        ({"weights": {"image": "much"}}, "a.yaml: weights.image: expected float, got 'much' (str)"),
    ],
)
def test_what_is_wrong_is_said_with_file_path_and_cure(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(Everything, GOOD | change, "a.yaml")
    assert str(error.value) == message


def test_a_missing_key_is_an_error_even_where_all_others_are_right() -> None:
    for name in GOOD:
        with pytest.raises(ConfigError, match=f"^a.yaml: {name}: missing"):
            from_dict(Everything, {key: value for key, value in GOOD.items() if key != name}, "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "x.yaml:2:1: key 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "x.yaml:1:11: key 'b' is given twice"),
        ("on: 1\n", "x.yaml:1:1: key True is not a text"),
        ("a: [1\n", "x.yaml:2:1: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n", "x.yaml: expected a mapping, got [1] (list)"),
        ("a: !!python/name:os.system\n", "x.yaml:1:4: could not determine a constructor"),
    ],
)
def test_yaml_that_says_two_things_or_names_code_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(file, "x.yaml")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_file_that_is_not_text_or_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"^x\.yaml: not a text file"):
        read_yaml(tmp_path / "x.yaml", "x.yaml")
    with pytest.raises(ConfigError, match=r"^y\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "y.yaml", "y.yaml")


def test_layers_merge_mappings_replace_the_rest_and_know_who_wrote_what() -> None:
    layers = Layers()
    layers.add({"a": {"x": 1, "y": [1, 2]}, "cell": {"type": "gru", "size": 3}}, "first")
    layers.add({"a": {"y": [3]}, "cell": {"type": "gru", "size": 4}}, "second")
    assert layers.data == {"a": {"x": 1, "y": [3]}, "cell": {"type": "gru", "size": 4}}
    assert (layers.sources["a.x"], layers.sources["a.y"]) == ("first", "second")
    layers.add({"cell": {"type": "norm"}}, "third")
    assert layers.data["cell"] == {"type": "norm"}, "values of one kind of cell are none of another's"
    assert layers.sources["cell"] == "third" and "cell.size" not in layers.sources


def test_a_mapping_over_a_list_changes_the_items_that_its_keys_number() -> None:
    layers = Layers()
    layers.add({"phases": [{"type": "learn", "updates": 1, "length": 8}, {"type": "online"}], "sizes": [1, 2]}, "first")
    layers.add({"phases": {"0": {"updates": 5}}, "sizes": {"1": 7}}, "second")
    assert layers.data["phases"] == [{"type": "learn", "updates": 5, "length": 8}, {"type": "online"}]
    assert layers.data["sizes"] == [1, 7] and layers.sources["phases[0].updates"] == "second"
    layers.add({"phases": {"1": {"type": "learn", "updates": 2}}}, "third")
    assert layers.data["phases"][1] == {"type": "learn", "updates": 2}
    with pytest.raises(ConfigError, match=r"^fourth: phases: no item 2; it has items 0 to 1$"):
        layers.add({"phases": {"2": {"updates": 5}}}, "fourth")
    layers.add({"phases": [{"type": "learn", "updates": "x"}]}, "fifth")
    assert layers.sources["phases"] == "fifth" and "phases[0].updates" not in layers.sources


def test_layers_leave_what_they_were_given_alone() -> None:
    first = {"a": {"x": 1}}
    layers = Layers()
    layers.add(first, "first")
    layers.add({"a": {"x": 2}}, "second")
    assert first == {"a": {"x": 1}}


TINY = """
from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Config:
    size: int
    rate: float
"""


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """A catalog with one agent and one world model of two values each."""
    for package in ("tinyagents", "tinymodels"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "tiny.py").write_text(TINY)
        (tmp_path / package / "helper.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    values = tmp_path / "configs"
    write(values, "worldmodels/small", {"type": "tiny", "config": {"size": 1, "rate": 0.1}})
    write(values, "agents/me", {"type": "tiny", "world_model": "small", "config": {"size": 2, "rate": 0.2}})
    write(values, "run", read_yaml(shipped().values / "run.yaml", "run"))
    write(values, "tasks/toy", read_yaml(shipped().values / "tasks" / "toy.yaml", "toy"))
    write(values, "presets/one", {})
    yield Catalog(values, {"agents": "tinyagents", "worldmodels": "tinymodels"})
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tinyagents", "tinymodels")]:
        del sys.modules[name]


def write(values: Path, name: str, data: dict[str, Any]) -> None:
    file = values / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(data))


def composed(catalog: Catalog, **changes: Any) -> RunConfig:
    what = {"task": "toy:reach", "presets": (), "files": (), "overrides": {}} | changes
    agent, model = catalog.entry("agents", "me"), catalog.entry("worldmodels", "small")
    return compose(catalog, agent=agent, world_model=model, **what)


def test_later_layers_win(catalog: Catalog) -> None:
    assert isinstance(catalog.values, Path)
    me = {"type": "tiny", "world_model": "small", "config": {"size": 2, "rate": 0.2}}
    small = {"type": "tiny", "config": {"size": 1, "rate": 0.1}}

    def batch() -> int:
        return composed(catalog, presets=("one",), files=files, overrides=overrides).replay.batch

    files, overrides = [], {}
    assert batch() == 16
    write(catalog.values, "worldmodels/small", small | {"replay": {"batch": 17}})
    assert batch() == 17
    write(catalog.values, "agents/me", me | {"replay": {"batch": 18}})
    assert batch() == 18
    suite = read_yaml(catalog.values / "tasks" / "toy.yaml", "toy")
    write(catalog.values, "tasks/toy", suite | {"replay": {"batch": 19}})
    assert batch() == 19
    write(catalog.values, "tasks/reach", {"replay": {"batch": 20}})
    assert batch() == 20
    write(catalog.values, "presets/one", {"replay": {"batch": 21}})
    assert batch() == 21
    write(catalog.values, "worldmodels/small", small | {"presets": {"one": {"replay": {"batch": 22}}}})
    assert batch() == 22
    write(catalog.values, "agents/me", me | {"presets": {"one": {"replay": {"batch": 23}}}})
    assert batch() == 23
    files = [({"replay": {"batch": 24}}, "mine.yaml"), ({"replay": {"batch": 25}}, "more.yaml")]
    assert batch() == 25
    overrides = {"replay": {"batch": 26}}
    assert batch() == 26


def test_presets_combine_in_the_order_given(catalog: Catalog) -> None:
    assert isinstance(catalog.values, Path)
    presets = {"one": {"config": {"size": 5, "rate": 0.5}}, "big": {"config": {"size": 9}}}
    write(catalog.values, "worldmodels/small", {"type": "tiny", "config": {"size": 1, "rate": 0.1}, "presets": presets})
    assert to_dict(composed(catalog, presets=("one", "big")).world_model) == {"size": 9, "rate": 0.5}
    assert to_dict(composed(catalog, presets=("big", "one")).world_model) == {"size": 5, "rate": 0.5}
    assert to_dict(composed(catalog, presets=("big",)).world_model) == {"size": 9, "rate": 0.1}


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        (
            "agents/me",
            {"type": "tiny", "world_model": "small", "config": {"siez": 2, "rate": 0.2}},
            "configs/agents/me.yaml: agent.siez: unknown key. Did you mean 'size'?",
        ),
        (
            "agents/me",
            {"type": "tiny", "world_model": "small", "config": {"rate": 0.2}},
            "configs/agents/me.yaml: agent.size: missing; every value has to be given",
        ),
        (
            "agents/me",
            {"type": "tiny", "world_model": "small", "confg": {}},
            "configs/agents/me.yaml: confg: unknown key. Did you mean 'config'?",
        ),
        (
            "agents/me",
            {"type": "tinny", "world_model": "small", "config": {}},
            "configs/agents/me.yaml: type: no module 'tinny' in tinyagents. Did you mean 'tiny'?",
        ),
        (
            "agents/me",
            {"type": "os.path", "world_model": "small", "config": {}},
            "configs/agents/me.yaml: type: no module 'os.path' in tinyagents. Known: helper, tiny.",
        ),
        (
            "agents/me",
            {"type": "helper", "world_model": "small", "config": {}},
            "configs/agents/me.yaml: type: tinyagents/helper.py defines no Config",
        ),
        (
            "agents/me",
            {"world_model": "small", "config": {}},
            "configs/agents/me.yaml: type: expected a name, got null",
        ),
        (
            "worldmodels/small",
            {"type": "tiny", "config": {"size": "many", "rate": 0.1}},
            "configs/worldmodels/small.yaml: world_model.size: expected int, got 'many' (str)",
        ),
        (
            "worldmodels/small",
            {"type": "tiny", "config": {"size": 1, "rate": 0.1}, "presets": {"one": {"confg": {}}}},
            "configs/worldmodels/small.yaml: presets.one: confg: unknown key. Did you mean 'config'?",
        ),
        (
            "worldmodels/small",
            {"type": "tiny", "config": {"size": 1, "rate": 0.1}, "presets": {"one": {"config": {"rate": "x"}}}},
            "configs/worldmodels/small.yaml (preset one): world_model.rate: expected float, got 'x' (str)",
        ),
        (
            "presets/one",
            {"agent": {"size": 3}},
            "configs/presets/one.yaml: agent: unknown key. "
            "Known: collect, env, optimizers, replay, training, transfer.",
        ),
        (
            "presets/one",
            {"replay": {"batch": 0}},
            "configs/presets/one.yaml: replay.batch: must be at least 1, got 0",
        ),
        ("tasks/reach", {"env": {"sise": 3}}, "configs/tasks/reach.yaml: env.sise: unknown key. Did you mean 'size'?"),
    ],
)
def test_an_error_names_the_file_that_made_it(catalog: Catalog, file: str, data: dict[str, Any], message: str) -> None:
    assert isinstance(catalog.values, Path)
    write(catalog.values, file, data)
    with pytest.raises(ConfigError) as error:
        composed(catalog, presets=("one",))
    assert str(error.value) == message


def me(catalog: Catalog, presets: tuple[str, ...] = ()) -> Any:
    return to_dict(composed(catalog, presets=presets).agent)


def test_a_file_is_laid_over_its_base_presets_included(catalog: Catalog) -> None:
    assert isinstance(catalog.values, Path)
    presets = {"one": {"config": {"size": 4, "rate": 0.4}}, "big": {"config": {"size": 9}}}
    tiny = {"type": "tiny", "world_model": "small", "replay": {"batch": 17}}
    write(catalog.values, "agents/first", tiny | {"config": {"size": 2, "rate": 0.2}, "presets": presets})
    write(catalog.values, "agents/me", {"base": "first"})
    assert me(catalog) == {"size": 2, "rate": 0.2} and me(catalog, ("one",)) == {"size": 4, "rate": 0.4}
    changes = {"config": {"size": 3}, "presets": {"one": {"config": {"rate": 0.5}}, "less": {"config": {"size": 1}}}}
    write(catalog.values, "agents/me", {"base": "first", "replay": {"length": 5}} | changes)
    entry = catalog.entry("agents", "me")
    assert (entry.name, entry.type, entry.world_model) == ("me", "tiny", "small")
    assert set(entry.presets) == {"one", "big", "less"}
    assert me(catalog) == {"size": 3, "rate": 0.2}
    assert me(catalog, ("one",)) == {"size": 4, "rate": 0.5}, "a base's preset is above the file's own values"
    assert me(catalog, ("big", "one")) == {"size": 4, "rate": 0.5}
    assert me(catalog, ("one", "less")) == {"size": 1, "rate": 0.5}
    assert (composed(catalog).replay.batch, composed(catalog).replay.length) == (17, 5)


def test_a_file_takes_a_loss_of_its_base_away_and_a_command_does_not() -> None:
    words = ["--agent", "plan2explore", "--task", "toy:reach"]
    assert set(parse(words).config.agent.scales) == {"actor", "critic"}
    with pytest.raises(ConfigError, match=r"^command line: agent\.scales\.actor: expected float, got null"):
        parse([*words, "--agent.scales.actor", "null"])


def test_a_loss_term_that_there_is_not_is_no_setting() -> None:
    for words, message in (
        ("--agent.scales.critics 2", "command line: agent.scales.critics: no such loss term. Did you mean 'critic'?"),
        ("--world-model.scales.rewards 2", "world_model.scales.rewards: no such loss term. Did you mean 'reward'?"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            parse(f"--agent dreamer --task toy:reach --preset debug {words}".split())


def test_bases_go_on_and_the_nearest_file_has_the_say(catalog: Catalog, tmp_path: Path) -> None:
    assert isinstance(catalog.values, Path)
    (tmp_path / "tinyagents" / "wide.py").write_text(TINY + "    width: int\n")
    write(catalog.values, "worldmodels/less", {"base": "small", "config": {"rate": 0.3}})
    write(catalog.values, "agents/first", {"type": "tiny", "world_model": "small", "config": {"size": 2, "rate": 0.2}})
    write(catalog.values, "agents/second", {"base": "first", "type": "wide", "config": {"size": 3, "width": 7}})
    write(catalog.values, "agents/me", {"base": "second", "world_model": "less", "config": {"width": 8}})
    entry = catalog.entry("agents", "me")
    assert (entry.type, entry.world_model) == ("wide", "less")
    assert me(catalog) == {"size": 3, "rate": 0.2, "width": 8}
    less = catalog.entry("worldmodels", "less")
    config = compose(catalog, agent=entry, world_model=less, task="toy:reach", presets=(), files=(), overrides={})
    assert to_dict(config.world_model) == {"size": 1, "rate": 0.3} and config.world_model_name == "less"


FIRST: dict[str, Any] = {"type": "tiny", "world_model": "small", "config": {"size": 2, "rate": 0.2}}


@pytest.mark.parametrize(
    ("first", "mine", "message"),
    [
        (FIRST, {"base": "frist"}, "configs/agents/me.yaml: base: unknown agent 'frist'. Did you mean 'first'?"),
        (FIRST, {"base": 3}, "configs/agents/me.yaml: base: expected a name, got 3 (int)"),
        (FIRST, {"bsae": "first"}, "configs/agents/me.yaml: bsae: unknown key. Did you mean 'base'?"),
        (FIRST, {"base": "me"}, "configs/agents/me.yaml: base: goes in a circle: me -> me"),
        (
            FIRST | {"base": "me"},
            {"base": "first"},
            "configs/agents/first.yaml: base: goes in a circle: me -> first -> me",
        ),
        ({"type": "tiny"}, {"base": "first"}, "configs/agents/me.yaml: world_model: expected a name, got null"),
        (
            FIRST | {"type": "tinny"},
            {"base": "first"},
            "configs/agents/first.yaml: type: no module 'tinny' in tinyagents. Did you mean 'tiny'?",
        ),
        (
            FIRST,
            {"base": "first", "type": "tinny"},
            "configs/agents/me.yaml: type: no module 'tinny' in tinyagents. Did you mean 'tiny'?",
        ),
        (
            FIRST | {"confg": {}},
            {"base": "first"},
            "configs/agents/first.yaml: confg: unknown key. Did you mean 'config'?",
        ),
        (
            FIRST | {"config": {"size": 2}},
            {"base": "first"},
            "configs/agents/me.yaml: agent.rate: missing; every value has to be given",
        ),
        (
            FIRST | {"config": {"size": "x", "rate": 0.2}},
            {"base": "first", "config": {"rate": 0.3}},
            "configs/agents/first.yaml, base of me: agent.size: expected int, got 'x' (str)",
        ),
        (
            FIRST,
            {"base": "first", "config": {"size": "x"}},
            "configs/agents/me.yaml: agent.size: expected int, got 'x' (str)",
        ),
        (
            FIRST | {"config": {"size": 2, "rate": 0.2, "width": 1}},
            {"base": "first"},
            "configs/agents/first.yaml, base of me: agent.width: unknown key. Known: rate, size.",
        ),
        (
            FIRST | {"presets": {"one": {"config": {"rate": "x"}}}},
            {"base": "first"},
            "configs/agents/first.yaml, base of me (preset one): agent.rate: expected float, got 'x' (str)",
        ),
        (
            FIRST | {"config": 5},
            {"base": "first"},
            "configs/agents/first.yaml, base of me: agent: expected a mapping, got 5 (int)",
        ),
    ],
)
def test_an_error_tells_a_base_from_what_is_laid_over_it(
    catalog: Catalog, first: dict[str, Any], mine: dict[str, Any], message: str
) -> None:
    assert isinstance(catalog.values, Path)
    write(catalog.values, "agents/first", first)
    write(catalog.values, "agents/me", mine)
    with pytest.raises(ConfigError) as error:
        composed(catalog, presets=("one",))
    assert str(error.value) == message


def leaves(data: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        below = leaves(value) if isinstance(value, dict) else [()]
        yield from ((key, *rest) for rest in below)


def without(data: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    key, *rest = path
    return {k: without(v, tuple(rest)) if k == key else v for k, v in data.items() if k != key or rest}


@pytest.mark.parametrize("kind", ["agents", "worldmodels"])
def test_every_value_of_a_shipped_file_changes_something_of_its_base(kind: str) -> None:
    for name in shipped().names(kind):
        *bases, own = ({"values": said.values, "presets": said.presets} for said in shipped().entry(kind, name).files)

        def over_bases(data: dict[str, Any], bases: list[dict[str, Any]] = bases) -> dict[str, Any]:
            layers = Layers()
            for file in (*bases, data):
                layers.add(file, "")
            return layers.data

        idle = [path for path in leaves(own) if over_bases(without(own, path)) == over_bases(own)]
        assert not idle, f"{name} repeats its base"


def test_a_saved_config_loads_back_equal(catalog: Catalog, tmp_path: Path) -> None:
    config = composed(catalog, presets=("one",), overrides={"training": {"updates_per_env_step": "1e-3"}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", catalog) == config
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_of_something_else_does_not_load_as_a_run(catalog: Catalog, tmp_path: Path) -> None:
    write(tmp_path, "other", {"a": 1})
    with pytest.raises(ConfigError, match="agent_type: expected a name, got null; is this the file of a run?"):
        load_config(tmp_path / "other.yaml", catalog)


@pytest.mark.parametrize("agent", shipped().names("agents"))
@pytest.mark.parametrize("preset", [(), ("paper",), ("cpu",), ("debug",)])
def test_every_shipped_agent_composes_and_round_trips(agent: str, preset: tuple[str, ...]) -> None:
    catalog = shipped()
    entry = catalog.entry("agents", agent)
    model = catalog.entry("worldmodels", entry.world_model)
    config = compose(catalog, agent=entry, world_model=model, task="toy:reach", presets=preset, files=(), overrides={})
    types = {"agent": type(config.agent), "world_model": type(config.world_model)}
    assert from_dict(RunConfig, parse_yaml(dump_yaml(to_dict(config)), "x"), "x", types) == config


@pytest.mark.parametrize("model", shipped().names("worldmodels"))
def test_every_size_of_a_shipped_world_model_composes_on_the_paper_preset(model: str) -> None:
    catalog = shipped()
    entry, agent = catalog.entry("worldmodels", model), catalog.entry("agents", "none")
    for size in set(entry.presets) - set(catalog.names("presets")):
        config = compose(
            catalog, agent=agent, world_model=entry, task="toy:reach", presets=("paper", size), files=(), overrides={}
        )
        assert config.preset == ("paper", size)


def test_the_sections_of_a_run_have_no_defaults_and_every_field_a_comment() -> None:
    from agents.training.help import comments

    for section in (run_config.CollectConfig, run_config.ReplayConfig, run_config.TrainingConfig):
        for field in fields(section):
            assert field.default is field.default_factory, f"{section.__name__}.{field.name} has a default"
            assert comments(section)[field.name], f"{section.__name__}.{field.name} is not explained"
