"""What the tests share: run-time checks of every annotated shape, and small worlds, batches and runs by name.

Annotations of ``worldmodels`` and ``agents`` are checked by jaxtyping and beartype in every test;
``JAXTYPING_DISABLE=1`` turns that off.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
# Before anything of ours is imported. Not envs: NumPy without axes there, and beartype refuses ``Self`` in methods.
worlds = [path.stem for path in (Path(__file__).parents[1] / "worldmodels").iterdir() if path.stem != "envs"]
jaxtyping.install_import_hook(["agents", *(f"worldmodels.{name}" for name in worlds)], f"{__name__}.checked")

import torch  # noqa: E402

import worldmodels.distributions  # noqa: E402
from agents.training.cli import parse  # noqa: E402
from agents.training.config import RunConfig  # noqa: E402
from worldmodels.base import Sequence, Spaces  # noqa: E402

ACTIONS = 3


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@functools.cache
def _run(*argv: str) -> RunConfig:
    return parse([*argv, "--task", "toy:reach", "--preset", "debug"]).config


@pytest.fixture
def debug_run() -> Callable[..., RunConfig]:
    """The run that ``--agent A --world-model M --preset debug`` and further words make."""

    def run(agent: str, world_model: str | None = None, *more: str) -> RunConfig:
        return _run("--agent", agent, *(("--world-model", world_model) if world_model else ()), *more)

    return run


@pytest.fixture
def make_spaces() -> Callable[..., Spaces]:
    return lambda discrete=False: Spaces(image=(64, 64, 3), action_dim=ACTIONS, discrete=discrete)


@pytest.fixture
def make_batch() -> Callable[..., Sequence]:
    """Random experience of two or more streams: an episode ends by time in the middle of the first, by death in the
    second; windows begin mid-episode."""

    def make(discrete: bool = False, size: int = 3, length: int = 8, seed: int = 0) -> Sequence:
        g = torch.Generator().manual_seed(seed)
        action = torch.rand(size, length + 1, ACTIONS, generator=g) * 2 - 1
        if discrete:
            action = torch.nn.functional.one_hot(action.argmax(-1), ACTIONS).float()
        is_first, is_last, is_terminal = (torch.zeros(size, length, dtype=torch.bool) for _ in range(3))
        is_last[0, 3] = is_last[1, 2] = is_terminal[1, 2] = is_first[0, 4] = is_first[1, 3] = True
        return Sequence(
            obs=torch.randint(256, (size, length, 64, 64, 3), generator=g, dtype=torch.uint8),
            action=action[:, 1:],
            reward=torch.randn(size, length, generator=g),
            is_first=is_first,
            is_last=is_last,
            is_terminal=is_terminal,
            prev_action=action[:, 0],
            step=torch.arange(size * length).view(size, length),
        )

    return make


@pytest.fixture
def constant_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw of noise is the same number, so results cannot depend on the order and shape of draws."""

    def patch(name: str, value: float) -> None:
        original = getattr(worldmodels.distributions, name)

        def constant(shape: torch.Size | tuple[int, ...], like: torch.Tensor, generator: object) -> torch.Tensor:
            return torch.full(tuple(shape), value, device=like.device)

        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith(("worldmodels", "agents")):
                for attribute, found in list(vars(module).items()):
                    if found is original:
                        monkeypatch.setattr(module, attribute, constant)

    patch("random_uniform", 0.37)
    patch("random_normal", 0.6)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Float64 throughout: what the code raises to float32 is raised to float64, so finite differences are sharp."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
