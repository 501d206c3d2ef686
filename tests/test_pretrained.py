"""Saved models and agents: loaded they are bit for bit what was saved, or nothing is loaded and one line says why."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from agents import load_agent
from agents.pretrained import Trained, load_trained, load_with_agent, plan_transfer, save_agent
from agents.training.cli import parse
from agents.training.config import RunConfig, shipped
from worldmodels.base import Sequence, Spaces, WorldModel
from worldmodels.pretrained import (
    Card,
    Part,
    Saved,
    Training,
    from_pretrained,
    installed_versions,
    read_card,
    read_saved,
    save_pretrained,
)
from worldmodels.strict import ConfigError, config_class, to_dict
from worldmodels.transfer import OUTCOMES, RECIPES, check_named, choose_recipe, load_weights, part_for

ROOT = Path(__file__).parents[1]
ENVIRON = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
export = runpy.run_path(str(ROOT / "scripts" / "export.py"))["main"]
WORLD_MODELS, AGENTS = shipped().names("worldmodels"), shipped().names("agents")
FOUR = ["README.md", "agent.safetensors", "config.json", "model.safetensors"]
MakeRun, MakeSpaces = Callable[..., RunConfig], Callable[..., Spaces]


def card_of(config: RunConfig, spaces: Spaces, agent: bool = True) -> Card:
    return Card(
        format=1,
        world_model=Part(
            name=config.world_model_name, type=config.world_model_type, config=to_dict(config.world_model)
        ),
        agent=Part(name=config.agent_name, type=config.agent_type, config=to_dict(config.agent)) if agent else None,
        spaces=spaces,
        task=config.task,
        env=config.env,
        fingerprint={"toy": "reach 1"},
        versions=installed_versions(),
        training=Training(env_steps=12, updates=3, returns={"return_mean": 1.5}),
    )


def scrambled(module: Any) -> Any:
    """No tensor as it was initialised: buffers and zero-initialised layers too."""
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) * 0.1)
    return module


def made(config: RunConfig, spaces: Spaces) -> Trained:
    model = scrambled(config.world_model.build(spaces))
    return Trained(card_of(config, spaces), model, scrambled(config.agent.build(model)))


def assert_equal(one: Any, other: Any) -> None:
    mine, yours = one.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    for name in mine:
        assert mine[name].dtype == yours[name].dtype and torch.equal(mine[name], yours[name]), name


@pytest.fixture
def saved(tmp_path: Path, debug_run: MakeRun, make_spaces: MakeSpaces) -> Path:
    """A saved folder of Dreamer and its world model."""
    return save_agent(made(debug_run("dreamer"), make_spaces()), tmp_path / "saved")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the script."""
    folder = tmp_path_factory.mktemp("runs") / "reach"
    train("--task", "reach", "--run-dir", str(folder))
    return folder


def train(*argv: str) -> str:
    """What scripts/train.py wrote on stderr."""
    short = ["--agent", "dreamer", "--preset", "debug", "--env-steps", "130", "--training.video-every", "0"]
    return python(str(ROOT / "scripts" / "train.py"), *short, *argv).stderr


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *argv], env=ENVIRON, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", WORLD_MODELS)
def test_a_world_model_is_loaded_bit_for_bit_and_sees_the_same(
    name: str,
    discrete: bool,
    tmp_path: Path,
    debug_run: MakeRun,
    make_spaces: MakeSpaces,
    make_batch: Callable[..., Sequence],
) -> None:
    config, spaces = debug_run("none", name), make_spaces(discrete)
    model = scrambled(config.world_model.build(spaces))
    card = card_of(config, spaces, agent=False)
    folder = save_pretrained(model, tmp_path / "saved", card)
    before = torch.get_rng_state()
    loaded = from_pretrained(folder, spaces=spaces)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(model) and read_card(folder) == card
    assert_equal(loaded, model)
    batch = make_batch(discrete)
    seen = [m.features(m.filter(batch, torch.Generator().manual_seed(1))) for m in (model, loaded)]
    assert torch.equal(*seen)
    assert sorted(file.name for file in folder.iterdir()) == [name for name in FOUR if not name.startswith("agent")]


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_is_loaded_bit_for_bit_and_acts_the_same(
    name: str, tmp_path: Path, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    trained = made(debug_run(name), make_spaces())
    folder = save_agent(trained, tmp_path / "saved")
    loaded = load_trained(folder)
    assert_equal(loaded.model, trained.model)
    assert_equal(loaded.agent, trained.agent)
    assert sorted(file.name for file in folder.iterdir()) == FOUR
    policies = [load_agent(folder, 2, explore=True, seed=5) for _ in range(2)]
    policies[1].model.load_state_dict(trained.model.state_dict())
    policies[1].agent.load_state_dict(trained.agent.state_dict())
    obs = np.random.default_rng(0).integers(0, 256, (4, 2, 64, 64, 3), np.uint8)
    for t in range(4):
        actions = [policy(obs[t], np.array([t == 0, t == 2])) for policy in policies]
        assert actions[0].shape == (2, 3) and actions[0].dtype == np.float32
        assert np.array_equal(*actions)


def test_a_policy_depends_on_its_seed_and_on_what_it_saw(saved: Path) -> None:
    obs = np.full((1, 64, 64, 3), 200, np.uint8)

    def second_action(seed: int, first: bool, before: int = 0) -> np.ndarray:
        policy = load_agent(saved, seed=seed, explore=True)
        policy(obs // (before + 1), np.array([True]))
        return policy(obs, np.array([first]))

    assert np.array_equal(second_action(1, False), second_action(1, False))
    assert not np.array_equal(second_action(1, False), second_action(2, False))
    assert not np.array_equal(second_action(1, False), second_action(1, True))


@pytest.mark.parametrize(
    ("obs", "is_first", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), [True], r"obs must be uint8 \[1, 64, 64, 3\], not uint8 \[64, 64, 3\]"),
        (np.zeros((1, 64, 64, 3)), [True], r"obs must be uint8 .*, not float64"),
        (np.zeros((1, 64, 64, 3), np.uint8), True, r"is_first must be bool\S* \[1\], not bool \[\]"),
        (np.zeros((1, 64, 64, 3), np.uint8), [1], r"is_first must be bool\S* \[1\], not int64"),
    ],
)
def test_a_policy_refuses_what_is_no_observation(saved: Path, obs: np.ndarray, is_first: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_agent(saved)(obs, np.asarray(is_first))


def test_three_lines_load_an_agent_in_a_new_process(saved: Path) -> None:
    lines = """
import sys
import numpy as np
from agents import load_agent
assert "torch" not in vars(sys.modules["agents"])
policy = load_agent(sys.argv[1])
action = policy(np.full((1, 64, 64, 3), 7, np.uint8), np.array([True]))
assert "lightning" not in sys.modules
print(action.tolist())
"""
    printed = json.loads(python("-c", lines, str(saved)).stdout)
    action = load_agent(saved)(np.full((1, 64, 64, 3), 7, np.uint8), np.array([True]))
    assert np.array_equal(np.array(printed, np.float32), action)


def tamper(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the value at a path, the last two being key and value."""

    def change(data: dict[str, Any]) -> None:
        for key in path[:-2]:
            data = data[key]
        data[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("world_model", "type", "rsm"), "world_model: type: no module 'rsm' in worldmodels. Did you mean 'rssm'?"),
        (put("world_model", "type", "os.path"), "world_model: type: no module 'os.path' in worldmodels"),
        (put("world_model", "type", "layers"), "world_model: type: worldmodels/layers.py defines no Config"),
        (put("agent", "type", "dreemer"), "agent: type: no module 'dreemer' in agents. Did you mean 'dreamer'?"),
        (put("agent", "config", "lamb", 1), "agent.config: lamb: unknown key. Did you mean 'lam'?"),
        (put("world_model", "config", "unit", 8), "world_model.config: unit: unknown key. Did you mean 'units'?"),
        (put("world_model", "config", "units", "many"), "world_model.config: units: expected int, got 'many' (str)"),
        (put("world_model", "config", "units", 9), "prior.layers.0.weight is [8, 32] and should be [9, 32]"),
        (put("world_model", "config", "units", 10**11), "prior.layers.0.bias is [8] and should be [100000000000]"),
        (put("world_model", "config", "prior_layers", 2), "missing: prior.layers.1.bias, prior.layers.1.weight"),
        (put("world_model", "config", "units", -1), "no network can be made of its config"),
        (put("agent", "config", "actor", "units", 9), "actor.mlp.layers.0.bias is [8] and should be [9]"),
        (put("spaces", "action_dim", 4), "cell.action_layer.weight is [8, 3] and should be [8, 4]"),
        (put("spaces", "image", [64, 64]), "spaces.image: expected a list of 3, got [64, 64] (list)"),
        (put("surprise", 1), "surprise: unknown key"),
        (put("format", 2), "format 2 (int), this program reads 1"),
        (lambda data: data.pop("task"), "task: missing; every value has to be given"),
        (lambda data: data.pop("world_model"), "was not written by this project"),
    ],
)
def test_a_tampered_config_is_one_line(saved: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    tamper(saved, change)
    with pytest.raises(ConfigError) as error:
        load_agent(saved)
    assert message in str(error.value) and "\n" not in str(error.value) and str(saved) in str(error.value)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def pickled(file: Path) -> None:
    torch.save({"x": torch.zeros(3)}, file)


def halved(file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: tensor.half() for name, tensor in tensors.items()}, file)


def renamed(file: Path) -> None:
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({f"x.{name}": tensor for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize("name", ["model.safetensors", "agent.safetensors"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "is damaged, or no safetensors file"),
        (pickled, "is damaged, or no safetensors file"),
        (lambda file: file.write_bytes(b""), "is damaged, or no safetensors file"),
        (lambda file: file.unlink(), "is missing"),
        (halved, r"float16 and should be \["),
        (renamed, "missing: .* and .* more; unexpected: x.* and .* more"),
    ],
)
def test_damaged_weights_are_one_line(saved: Path, name: str, harm: Callable[[Path], Any], message: str) -> None:
    harm(saved / name)
    with pytest.raises(ConfigError, match=message) as error:
        load_agent(saved)
    assert "\n" not in str(error.value) and str(saved) in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"model_type": "bert"}'])
def test_a_foreign_config_is_one_line(saved: Path, text: bytes) -> None:
    (saved / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config.json (is not JSON|was not written by this project)"):
        from_pretrained(saved)


def test_a_folder_that_is_something_else_is_said_to_be(saved: Path, tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="is no saved model, it has no config.json$"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="it is a run, export it with scripts/export.py"):
        from_pretrained(run)
    with pytest.raises(ConfigError, match="neither a run .* nor a saved model"):
        load_agent(tmp_path)
    with pytest.raises(ConfigError, match=r"is for Spaces.*action_dim=3.*train.py --world-model"):
        from_pretrained(saved, spaces=Spaces((64, 64, 3), 4, False))


def test_a_world_model_alone_has_no_agent_to_load(tmp_path: Path, debug_run: MakeRun, make_spaces: MakeSpaces) -> None:
    config, spaces = debug_run("dreamer"), make_spaces()
    folder = save_pretrained(config.world_model.build(spaces), tmp_path / "x", card_of(config, spaces, agent=False))
    with pytest.raises(ConfigError, match="holds a world model alone"):
        load_agent(folder)


def test_saving_never_deletes_what_is_no_saved_model(
    saved: Path, tmp_path: Path, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    trained = made(debug_run("dreamer"), make_spaces())
    with pytest.raises(ConfigError, match="holds a saved model: --force"):
        save_agent(trained, saved)
    save_agent(trained, saved, overwrite=True)
    assert_equal(load_trained(saved).agent, trained.agent)
    (saved / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (saved, tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="choose another folder"):
            save_agent(trained, place, overwrite=True)
    assert (saved / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_agent(trained, tmp_path / "empty")
    assert {file.name for file in tmp_path.iterdir()} == {"saved", "file", "empty"}, "nothing staged is left"


def test_a_failed_write_leaves_what_was_there(
    saved: Path, debug_run: MakeRun, make_spaces: MakeSpaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ConfigError, match="cannot write .* No space left"):
        save_agent(made(debug_run("dreamer"), make_spaces()), saved, overwrite=True)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_card_that_does_not_describe_the_model_is_not_written(
    tmp_path: Path, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    trained = made(debug_run("dreamer"), make_spaces())
    wrong = replace(trained.card, spaces=Spaces((64, 64, 3), 5, False))
    with pytest.raises(ConfigError, match=r"not what its card says: cell.action_layer.weight is \[8, 3\]"):
        save_agent(Trained(wrong, trained.model, trained.agent), tmp_path / "x")
    assert not list(tmp_path.iterdir())


FRESH = {
    "same-task": (),
    "same-domain": ("reward_head.", "continue_head."),
    "new-dynamics": (),
    "new-visuals": ("encoder.", "decoder.", "objective."),
    "video": ("cell.action_layer.weight", "reward_head.", "continue_head."),
    "fractional": (),
    "frozen": ("reward_head.", "continue_head."),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", [name for name in WORLD_MODELS if name.startswith("rssm")])
def test_a_recipe_loads_everything_but_its_own_parts(
    name: str, recipe: str, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    config, spaces = debug_run("none", name), make_spaces()
    source = scrambled(config.world_model.build(spaces))
    model = config.world_model.build(spaces)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = load_weights(model, saved_form(source, config, spaces), recipe, config.transfer)
    after = model.state_dict()
    assert [row.tensor for row in report.rows] == list(after)
    assert report.names("re-initialised") == [key for key in after if key.startswith(FRESH[recipe] or "-")]
    for key in report.names("loaded"):
        assert torch.equal(after[key], source.state_dict()[key])
    for key in report.names("re-initialised"):
        assert torch.equal(after[key], before[key]) and not torch.equal(after[key], source.state_dict()[key])


@pytest.mark.parametrize("name", WORLD_MODELS)
def test_every_world_model_names_the_parts_that_recipes_re_initialise(
    name: str, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    config, spaces = debug_run("none", name), make_spaces()
    model = scrambled(config.world_model.build(spaces))
    for recipe in RECIPES:
        report = load_weights(
            config.world_model.build(spaces), saved_form(model, config, spaces), recipe, config.transfer
        )
        if recipe in ("same-domain", "video", "frozen"):
            assert not any("reward" in tensor for tensor in report.names("loaded")), "rewards are another task's"
    with pytest.raises(ConfigError, match="has no module named encoder"):
        check_named(model, ["eyes.weight"], RECIPES["new-visuals"])


def test_a_world_model_inside_another_is_the_module_of_that_field(debug_run: MakeRun, make_spaces: MakeSpaces) -> None:
    configs = {name: debug_run("none", name).world_model for name in WORLD_MODELS}
    types = {debug_run("none", name).world_model_type for name in WORLD_MODELS}
    inside = {}
    for name, config in configs.items():
        for kind in types:
            if part := part_for(config_class("worldmodels", kind, ""), type(config)):
                module = config.build(make_spaces()).get_submodule(part)
                assert isinstance(module, WorldModel)
                alone = getattr(config, part).build(make_spaces())
                assert alone.state_dict().keys() == module.state_dict().keys()
                inside[name, kind] = part
        assert part_for(type(config), type(config)) == ""
    assert inside == {("ensemble-v1", "rssm"): "rssm", ("ensemble-v3", "rssm"): "rssm"}
    assert part_for(type(configs["ensemble-v1"]), type(configs["rssm-v3"])) is None


def saved_form(model: WorldModel, config: RunConfig, spaces: Spaces) -> Saved:
    return Saved("source", card_of(config, spaces, agent=False), model.state_dict())


@pytest.mark.parametrize("name", WORLD_MODELS)
def test_other_actions_need_fresh_action_inputs_and_nothing_else(
    name: str, debug_run: MakeRun, make_batch: Callable[..., Sequence]
) -> None:
    config, there = debug_run("none", name), Spaces((64, 64, 3), 6, False)
    source = scrambled(config.world_model.build(there))
    for here, why in (
        (Spaces((64, 64, 3), 3, False), "the action size is 3 here and was 6"),
        (Spaces((64, 64, 3), 6, True), "actions are discrete here and were not there"),
    ):
        model = config.world_model.build(here)
        report = load_weights(model, saved_form(source, config, there), "same-task", config.transfer)
        fresh = report.names("re-initialised")
        assert fresh and all("action" in name for name in fresh) and len(report.names("loaded")) > 5 * len(fresh)
        assert {row.why for row in report.rows if row.tensor in fresh} == {why}
        if not here.discrete:
            torch.stack(list(model.loss(make_batch())[1].terms.values())).sum().backward()


def test_anything_else_that_misfits_is_named_and_nothing_is_loaded(debug_run: MakeRun, make_spaces: MakeSpaces) -> None:
    config, spaces = debug_run("dreamer"), make_spaces()
    source = saved_form(scrambled(config.world_model.build(spaces)), config, spaces)
    other = replace(config.world_model, units=16, decoder=replace(config.world_model.decoder, depth=8))
    model = other.build(spaces)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError) as error:
        load_weights(model, source, "same-task", config.transfer)
    shapes = {key: tensor.shape for key, tensor in source.tensors.items()}
    different = [key for key, tensor in before.items() if shapes[key] != tensor.shape]
    assert len(different) > 10 and all(f" {key} is [" in str(error.value) for key in different)
    assert "--world-model.*" in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    model = replace(config.world_model, decoder=replace(config.world_model.decoder, mults=(1,), patch=16)).build(spaces)
    report = load_weights(model, source, "new-visuals", config.transfer)
    assert report.names("skipped") == sorted(source.tensors.keys() - model.state_dict())
    assert all(key.startswith("decoder.") for key in report.names("skipped")) and report.names("skipped")


def test_the_recipe_follows_from_the_tasks_and_a_wrong_one_has_a_nearest(run: Path) -> None:
    assert choose_recipe(None, "toy:reach", "toy:reach") == "same-task"
    assert choose_recipe(None, "toy:reach", "toy:catch") == "same-domain"
    with pytest.raises(ConfigError, match="unknown transfer recipe 'new-visual'. Did you mean 'new-visuals'?"):
        choose_recipe("new-visual", "toy:reach", "toy:catch")
    config = command("--task", "catch", "--world-model", str(run)).config
    with pytest.raises(ConfigError, match="--transfer video needs a --world-model that is a run or a saved folder"):
        plan_transfer(None, "video", config)
    assert plan_transfer(None, None, config) is None


def test_an_agent_that_needs_an_ensemble_gets_one_around_a_saved_rssm(saved: Path, tmp_path: Path) -> None:
    own = read_card(saved).world_model.config
    for agent, ensemble in (("pets", "ensemble-v1"), ("steve", "ensemble-v3")):
        usual = parse(["--agent", agent, "--preset", "debug", "--task", "reach"]).config
        for preset in ("debug", "cpu"):
            line = ["--agent", agent, "--preset", preset, "--world-model", str(saved), "--run-dir", str(tmp_path / "x")]
            config = parse(line).config
            assert (config.world_model_name, config.world_model_type) == (ensemble, "ensemble")
            assert to_dict(config.world_model.rssm) == own, "whatever the preset"
            assert (config.world_model.members == usual.world_model.members) == (preset == "debug")
        changed = parse([*line, "--world-model.members.num", "3"]).config
        assert changed.world_model.members.num == 3
    assert parse(["--agent", "dreamer", *line[2:]]).config.world_model_type == "rssm"
    with pytest.raises(ConfigError, match="config.json: world_model.rssm.units: expected int, got 'many'"):
        tamper(saved, put("world_model", "config", "units", "many"))
        parse(line)


def test_an_ensemble_is_trained_around_a_run_and_not_played_before(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pets acts on ensemble-v1, and .* only a part") as error:
        load_with_agent(run, "pets", ["--preset", "debug"])
    assert str(error.value).endswith(f": python scripts/train.py --agent pets --world-model {run}")
    folder = tmp_path / "pets"
    train("--agent", "pets", "--world-model", str(run), "--run-dir", str(folder))
    outcomes = {line.split()[1]: line.split()[0] for line in (folder / "transfer.txt").read_text().splitlines()}
    now = load_trained(folder)
    for name in now.model.state_dict():
        assert outcomes[name] == ("loaded" if name.startswith("rssm.") else "re-initialised")
    assert now.card.world_model.name == "ensemble-v1" and now.card.training.updates > 0
    assert load_with_agent(folder, "pets", ["--preset", "debug"]).card.agent == now.card.agent


def command(*argv: str) -> Any:
    return parse(["--agent", "dreamer", "--preset", "debug", *argv])


def test_a_run_is_exported_with_its_newest_weights_and_last_returns(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models" / "reach"
    assert export([str(run), str(folder)]) == 0
    written = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {Path(line[-1]).name: int(line[0]) for line in written} == {
        file.name: file.stat().st_size for file in folder.iterdir()
    }
    ours, theirs = load_trained(folder), load_trained(run)
    assert_equal(ours.model, theirs.model)
    assert_equal(ours.agent, theirs.agent)
    card = ours.card
    assert replace(card, training=replace(card.training, returns={})) == theirs.card
    assert (card.task, card.training.env_steps, card.fingerprint["toy"]) == ("toy:reach", 130, "reach 1")
    baselines = json.loads((run / "baselines.json").read_text())
    assert card.training.returns["random_return"] == pytest.approx(baselines["random"]["return_mean"])
    assert card.training.returns["return_mean"] > 0
    assert (
        f"| return mean | {card.training.returns['return_mean']:.3f}".rstrip("0") in (folder / "README.md").read_text()
    )
    with pytest.raises(ConfigError, match="--force"):
        export([str(run), str(folder)])
    export([str(run), str(folder), "--force"])
    with pytest.raises(ConfigError, match="a run is the folder that training wrote"):
        export([str(folder), str(tmp_path / "again")])


BEGIN = """
import sys
import safetensors.torch
from agents.training.cli import parse
from agents.training.run import Run
for place in sys.argv[1:]:
    line = f"--agent dreamer --preset debug --task catch --world-model {place} --run-dir {place}-run"
    run = Run(parse(line.split()))
    run.close()
    safetensors.torch.save_model(run.model, place + ".begun")
    print(run.transferred)
"""


def test_training_begins_with_the_weights_of_a_run_or_of_its_export(run: Path, tmp_path: Path) -> None:
    places = [tmp_path / "run", tmp_path / "exported"]
    shutil.copytree(run, places[0])
    export([str(run), str(places[1])])
    config = command("--task", "catch", "--world-model", str(places[1])).config
    assert config == command("--task", "catch", "--world-model", str(run)).config
    assert config.world_model_name == "rssm-v3"
    lines = python("-c", BEGIN, *map(str, places)).stdout.splitlines()
    texts = [lines[: len(lines) // 2], lines[len(lines) // 2 :]]
    assert texts[0][1:] == texts[1][1:]
    assert texts[0][1:3] == ["task: toy:reach -> toy:catch", "environment: toy reach 1 -> catch 1"]
    source = read_saved(places[1]).tensors
    for place in places:
        model = safetensors.torch.load_file(f"{place}.begun")
        fresh = [key for key in model if key.startswith(("reward_head.", "continue_head.", "cell.action_layer.weight"))]
        assert len(fresh) == 11
        assert all(torch.equal(model[key], source[key]) for key in model if key not in fresh)
        assert not any(torch.equal(model[key], source[key]) for key in fresh)


def test_the_script_says_what_became_of_every_tensor_and_trains_on(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = train("--task", "catch", "--world-model", str(run), "--run-dir", str(folder))
    text = (folder / "transfer.txt").read_text()
    assert text in said
    outcomes = {line.split()[1]: line.split()[0] for line in text.splitlines() if line.startswith(OUTCOMES)}
    now = load_trained(folder)
    assert outcomes.keys() == now.model.state_dict().keys()
    assert outcomes["cell.action_layer.weight"] == outcomes["reward_head.mlp.output.weight"] == "re-initialised"
    assert outcomes["encoder.convs.0.weight"] == "loaded"
    assert now.card.spaces.discrete and now.card.training.updates > 0
    assert load_agent(folder)(np.zeros((1, 64, 64, 3), np.uint8), np.array([True])).sum() == 1
    shutil.rmtree(folder)
    wrong = [str(ROOT / "scripts" / "train.py"), "--agent", "dreamer", "--preset", "debug", "--task", "reach"]
    wrong += ["--world-model", str(run), "--run-dir", str(folder), "--world-model.units", "16"]
    done = subprocess.run([sys.executable, *wrong], env=ENVIRON, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "does not fit this world model" in done.stderr
    assert not (folder / "config.yaml").exists()
