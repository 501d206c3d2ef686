"""Saved world models: a folder with ``config.json``, ``model.safetensors`` and ``README.md``.

``config.json`` is a ``Card``: which world model (the name of a module of this package, never an import path), for
which spaces, learned where and for how long. Nothing in the folder is code, and nothing of it names code. An agent may
lie in the same folder (``agents.pretrained``). Reading is strict: every tensor has the name, shape and dtype that the
config asks for, or nothing is loaded. A world model must be buildable on the device ``meta``, where shapes are compared
before any memory is taken.
"""

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from worldmodels.base import Spaces, WorldModel
from worldmodels.envs.base import EnvConfig
from worldmodels.strict import ConfigError, config_class, from_dict, show, to_dict
from worldmodels.zoo import find

FORMAT = 1
CONFIG, WEIGHTS, AGENT_WEIGHTS, README = "config.json", "model.safetensors", "agent.safetensors", "README.md"
RUN = "run.yaml"  # the config of the run that trained it, where it came from one
SHOWN = 8  # names of missing or unexpected tensors in one error


class SavedModelError(ConfigError):
    """A folder that is no saved model, or one that is damaged or does not fit. The message is one line."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A world model or an agent: what to build before its weights are loaded."""

    name: str  # of the file of configs/ that it began as
    type: str  # a module of worldmodels/ or agents/ that defines Config
    config: dict[str, Any]  # of that Config


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights came about."""

    env_steps: int
    updates: int
    returns: dict[str, float]  # of the last evaluation; empty where there was none


@dataclass(frozen=True, kw_only=True)
class Card:
    """``config.json``."""

    format: int
    world_model: Part
    agent: Part | None
    spaces: Spaces
    task: str  # canonical, suite:name
    env: EnvConfig
    fingerprint: dict[str, str]  # of the environment: simulator, renderer
    versions: dict[str, str]  # of the packages that wrote it
    training: Training


class Saved(NamedTuple):
    """A world model as it lies in a file: what it is, and its tensors on the CPU."""

    source: str  # what errors call it
    card: Card
    tensors: dict[str, Tensor]


def installed_versions() -> dict[str, str]:
    """Of what decides how tensors are computed and written."""
    return {name: version(name) for name in ("torch", "safetensors")} | {"python": platform.python_version()}


def save_pretrained(model: WorldModel, folder: str | Path, card: Card, *, overwrite: bool = False) -> Path:
    """Write a world model whole or not at all; the folder. ``card.agent`` has to be None, see ``agents.pretrained``.

    Raises ``ConfigError`` where the folder is taken or cannot be written, and where ``card`` does not describe the
    model, which then could not be loaded.
    """
    assert card.agent is None, "agents.pretrained.save_agent writes both"
    check_described(model, card)
    return write_saved(folder, card, {WEIGHTS: model}, overwrite)


def from_pretrained(
    folder: str | Path, *, spaces: Spaces | None = None, map_location: str | torch.device = "cpu"
) -> WorldModel:
    """The world model of a saved folder, exactly as it was saved. The global random state is left alone.

    ``folder`` may also be ``zoo:NAME`` or ``hf:OWNER/NAME`` (``worldmodels.zoo``).
    ``spaces`` are those it is wanted for. Raises ``ConfigError`` for a folder that is none, is damaged or does not fit,
    and for other spaces: those need ``worldmodels.transfer.load_weights``.
    """
    saved = read_saved(find(folder))
    if spaces is not None and spaces != saved.card.spaces:
        raise SavedModelError(
            f"{saved.source} is for {saved.card.spaces}, not {spaces}: start from it with train.py --world-model"
        )
    return build(saved).to(map_location)


def read_saved(folder: str | Path) -> Saved:
    """Card and tensors of a saved folder, not yet checked against each other. Raises ``ConfigError``."""
    return Saved(str(folder), read_card(folder), read_tensors(Path(folder) / WEIGHTS))


def read_card(folder: str | Path) -> Card:
    """``config.json`` of a saved folder. Raises ``ConfigError``."""
    file = Path(folder) / CONFIG
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = ": it is a run, export it with scripts/export.py" if (file.parent / "config.yaml").is_file() else ""
        raise SavedModelError(f"{folder} is no saved model, it has no {CONFIG}{hint}") from error
    except OSError as error:
        raise SavedModelError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # neither text nor JSON
        raise SavedModelError(f"{file} is not JSON: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(data, dict) or not {"format", "world_model"} <= data.keys():
        raise SavedModelError(f"{file} was not written by this project: it has no format and world_model")
    if data["format"] != FORMAT:
        raise SavedModelError(f"{file}: format {show(data['format'])}, this program reads {FORMAT}")
    return from_dict(Card, data, str(file))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, bfloat16 widened to float32. Raises ``ConfigError``."""
    try:
        tensors = safetensors.torch.load_file(file)
        return {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in tensors.items()}
    except FileNotFoundError as error:
        raise SavedModelError(f"{file} is missing") from error
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SavedModelError(f"{file} is damaged, or no safetensors file: {reason}") from error


def world_model_config(card: Card, source: str) -> Any:
    """The Config of a card's world model. Raises ``ConfigError``."""
    part, where = card.world_model, f"{source}: world_model"
    return from_dict(config_class("worldmodels", part.type, where), part.config, f"{where}.config")


def build(saved: Saved) -> WorldModel:
    """The world model with its weights, on the CPU. Raises ``ConfigError``."""
    config = world_model_config(saved.card, saved.source)
    with building(saved.source):
        with torch.device("meta"):
            expected = config.build(saved.card.spaces).state_dict()
    check_fits(saved.tensors, expected, f"{saved.source} does not fit its config")
    with building(saved.source):
        model = config.build(saved.card.spaces)
    model.load_state_dict(saved.tensors)
    return model


@contextmanager
def building(source: str) -> Iterator[None]:
    """Around the making of networks from a file's values: the random state stays, impossible sizes are one line."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except (RuntimeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise SavedModelError(f"{source}: no network can be made of its config: {reason}") from error


def check_fits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], complaint: str, cure: str = "") -> None:
    """Raises ``SavedModelError`` with all that does not fit, unless names, shapes and dtypes are equal."""
    problems = []
    for what, names in (("missing", expected.keys() - found), ("unexpected", found.keys() - expected)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            problems.append(f"{what}: {', '.join(sorted(names)[:SHOWN])}{more}")
    for name in sorted(expected.keys() & found):
        if described(found[name]) != described(expected[name]):
            problems.append(f"{name} is {described(found[name])} and should be {described(expected[name])}")
    if problems:
        raise SavedModelError(f"{complaint}: {'; '.join(problems)}{cure}")


def described(tensor: Tensor) -> str:
    """Shape, and dtype where it is not the usual one."""
    dtype = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{dtype}"


def check_described(model: WorldModel, card: Card) -> None:
    """Raises ``ConfigError`` where what ``card`` says would not load the weights of this model."""
    config = world_model_config(card, CONFIG)
    with building(CONFIG), torch.device("meta"):
        expected = config.build(card.spaces).state_dict()
    check_fits(model.state_dict(), expected, f"the {type(model).__name__} to be saved is not what its card says")


def write_saved(
    folder: str | Path,
    card: Card,
    weights: Mapping[str, nn.Module],
    overwrite: bool,
    *,
    half: bool = False,
    run: str | None = None,
) -> Path:
    """Write a folder of these safetensors files beside its place, then move it there; the folder.

    ``run`` is the config of the run that trained it. ``half`` rounds float32 to bfloat16, in half the space. With
    ``overwrite`` it may replace a saved model, and never a folder with anything else in it.
    """
    folder = Path(folder).resolve()
    check_place(folder, overwrite)
    staged, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{suffix}") for suffix in ("tmp", "old"))
    try:
        staged.mkdir(parents=True)
        for name, module in weights.items():
            # contiguous copies: convolutions lie channels-last in memory, and tied weights may not share it in a file
            copies = {
                key: rounded(tensor, half).detach().cpu().clone(memory_format=torch.contiguous_format)
                for key, tensor in module.state_dict().items()
            }
            safetensors.torch.save_file(copies, staged / name, {"format": "pt"})
        text = json.dumps(to_dict(card), indent=1, ensure_ascii=False, allow_nan=False)
        (staged / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        (staged / README).write_text(readme(card, run is not None), encoding="utf-8")
        if run is not None:
            (staged / RUN).write_text(run, encoding="utf-8")
        for file in staged.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rename(old)
        staged.rename(folder)
    except (OSError, SafetensorError) as error:
        raise SavedModelError(f"cannot write {folder}: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def rounded(tensor: Tensor, half: bool) -> Tensor:
    return tensor.to(torch.bfloat16) if half and tensor.dtype == torch.float32 else tensor


def check_place(folder: Path, overwrite: bool) -> None:
    """Raises ``ConfigError`` where a saved model may not be written to ``folder``."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise SavedModelError(f"{folder} is a file: choose another folder")
    found = {file.name for file in folder.iterdir()}
    if found - {CONFIG, WEIGHTS, AGENT_WEIGHTS, README, RUN}:
        raise SavedModelError(f"{folder} holds something else than a saved model: choose another folder")
    if found and not overwrite:
        raise SavedModelError(
            f"{folder} holds a saved model: --force (overwrite=True) replaces it, or choose another folder"
        )


def readme(card: Card, run: bool) -> str:
    """The model card: front matter as model hubs read it, and how to use what lies beside it."""
    agent, spaces = card.agent, card.spaces
    names = [part.name for part in (card.world_model, agent) if part is not None]
    shape = ", ".join(map(str, spaces.image))
    use = 'from worldmodels.pretrained import from_pretrained\nmodel = from_pretrained("THIS/FOLDER")'
    if agent:
        use = 'from agents import load_agent\npolicy = load_agent("THIS/FOLDER")\naction = policy(obs, is_first)'
        use += f"  # uint8 [1, {shape}], bool [1] -> float32 [1, {spaces.action_dim}]"
    facts = {
        "task": card.task,
        "env steps": card.training.env_steps,
        "updates": card.training.updates,
        "images": " x ".join(map(str, spaces.image)),
        "actions": f"{spaces.action_dim}, {'one-hot' if spaces.discrete else 'continuous in [-1, 1]'}",
        "action repeat": card.env.action_repeat,
        **{name.replace("_", " "): round(value, 3) for name, value in card.training.returns.items()},
        **{f"environment: {key}": value for key, value in card.fingerprint.items()},
        **{f"version: {key}": value for key, value in card.versions.items()},
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    trained = f"\nTrained by `python scripts/train.py --config {RUN}`, with the file beside this one.\n" if run else ""
    return f"""\
---
library_name: worldmodels
pipeline_tag: reinforcement-learning
tags: [{", ".join(["world-model", "model-based-reinforcement-learning", *names])}]
---
# {" with ".join(reversed(names))} on {card.task}

A latent world model learned from pixels{f", and the agent {agent.name} that acts with it" if agent else ""}.

| | |
|---|---|
{rows}

```python
{use}
```
{trained}"""
