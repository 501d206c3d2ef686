"""The models that come with the project load, say how they were trained, and are found by name; hubs are asked last."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.pretrained import load_agent, read_trained
from agents.training import cli
from agents.training.config import load_config
from worldmodels import zoo
from worldmodels.pretrained import RUN, from_pretrained
from worldmodels.strict import ConfigError, to_dict

each_model = pytest.mark.parametrize("name", zoo.names())


def test_the_zoo_is_not_empty_and_not_large():
    assert len(zoo.names()) >= 2
    assert sum(file.stat().st_size for file in zoo.FOLDER.rglob("*") if file.is_file()) < 40e6


@each_model
def test_a_model_of_the_zoo_acts(name: str):
    policy = load_agent(f"zoo:{name}", batch=2)
    height, width, channels = policy.spaces.image
    action = policy(np.zeros((2, height, width, channels), np.uint8), np.ones(2, bool))
    assert action.shape == (2, policy.spaces.action_dim) and np.isfinite(action).all()


@each_model
def test_its_card_says_how_it_was_trained_and_how_well(name: str):
    saved, _ = read_trained(Path(f"zoo:{name}"))
    config = load_config(zoo.FOLDER / name / RUN)
    assert (config.task, to_dict(config.env)) == (saved.card.task, to_dict(saved.card.env))
    assert to_dict(config.world_model) == saved.card.world_model.config
    returns = saved.card.training.returns
    beaten = max(returns["random_return"], returns["zero_return"])
    # a reacher finds its target or it does not: two standard errors, which are less than a deviation
    share = 2 / config.training.eval_episodes**0.5 if name == "reacher" else 1
    assert returns["return_mean"] - share * returns["return_std"] > beaten
    # the pole begins near upright: twice of what doing nothing gets is more than there is
    assert returns["return_mean"] > 2 * (returns["random_return"] if name == "cartpole" else beaten)
    assert "--config run.yaml" in (zoo.FOLDER / name / "README.md").read_text(encoding="utf-8")


@each_model
def test_weights_were_rounded_to_bfloat16_and_are_float32_in_memory(name: str):
    for parameter in from_pretrained(f"zoo:{name}").parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.to(torch.bfloat16).float())


def test_a_run_begins_with_a_model_of_the_zoo():
    command = cli.parse(["--agent", "dreamer", "--world-model", "zoo:toy-reach"])
    assert command.config.task == "toy:reach" and command.config.env.size == 32
    assert command.world_model == zoo.FOLDER / "toy-reach"


@pytest.mark.parametrize("parse", [zoo.find, lambda name: cli.parse(["--agent", "dreamer", "--world-model", name])])
def test_an_unknown_animal_is_answered_with_the_nearest(parse):
    with pytest.raises(ConfigError, match="no 'toy-rech' in the zoo. Did you mean 'toy-reach'?"):
        parse("zoo:toy-rech")


def test_a_path_stays_a_path():
    assert zoo.find("runs/zoo") == Path("runs/zoo") and zoo.find(Path("a:b")) == Path("a:b")


class NotFound(Exception):
    """As the hub's library says that its cache has nothing."""


class Hub:
    """Stands in for ``huggingface_hub``: a cache, a hub, and what was asked of them."""

    def __init__(self, cache: Path | None, hub: Path | None):
        self.cache, self.hub, self.asked = cache, hub, []

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        self.asked.append((repository, local_files_only))
        assert "*.py" not in allow_patterns
        if repository.count("/") != 1:
            raise ValueError(f"Repo id must be namespace/name: {repository}")
        folder = self.cache if local_files_only else self.hub
        if folder is None:
            raise NotFound("nothing cached") if local_files_only else OSError("no route\nto the hub")
        return str(folder)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def installed(hub: Hub) -> Hub:
        module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
        module.__dict__["snapshot_download"] = hub.snapshot_download
        errors.__dict__["LocalEntryNotFoundError"] = NotFound
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
        return hub

    return installed


def test_a_cached_repository_needs_no_network(install):
    hub = install(Hub(cache=zoo.FOLDER / "toy-reach", hub=None))
    assert zoo.find("hf:somebody/reach") == zoo.FOLDER / "toy-reach"
    assert hub.asked == [("somebody/reach", True)]
    assert load_agent("hf:somebody/reach").card.task == "toy:reach"


def test_what_is_not_cached_is_downloaded(install):
    hub = install(Hub(cache=None, hub=zoo.FOLDER / "toy-reach"))
    assert zoo.find("hf:somebody/reach") == zoo.FOLDER / "toy-reach"
    assert hub.asked == [("somebody/reach", True), ("somebody/reach", False)]


def test_without_cache_and_network_it_is_one_line(install):
    install(Hub(cache=None, hub=None))
    with pytest.raises(ConfigError, match="^hf:a/b is not in the cache and cannot be downloaded: no route to the hub$"):
        zoo.find("hf:a/b")


def test_what_is_no_repository_is_said_before_the_network_is_asked(install):
    hub = install(Hub(cache=None, hub=None))
    with pytest.raises(ConfigError, match="hf:a: Repo id must be namespace/name"):
        zoo.find("hf:a")
    assert len(hub.asked) == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hub\]'"):
        zoo.find("hf:a/b")
