"""The contract that every agent fulfils: it sees latents through a world model's features, never pixels."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from worldmodels.base import Latent, Losses, Sequence, WorldModel


class NoCarry(NamedTuple):
    """The carry of an agent that remembers nothing between steps."""


Carry = Any  # an agent's own NamedTuple of tensors with a leading batch dimension: nothing, a plan, a tree


class Agent(nn.Module, ABC):
    """What should I do? State is passed: carries and generators are arguments and results."""

    needs: ClassVar[tuple[type, ...]] = ()
    """The capabilities (``worldmodels.base``) that the agent requires of a world model."""

    teaches: ClassVar[frozenset[str]] = frozenset()
    """The terms of ``loss`` whose gradient is meant to reach the world model; no other may."""

    scales: dict[str, float]
    """Weight of every term that ``loss`` returns."""

    def __init__(self, model: WorldModel):
        super().__init__()
        for capability in self.needs:
            if not isinstance(model, capability):
                raise ValueError(
                    f"{type(self).__name__} needs a world model that is {capability.__name__}; "
                    f"{type(model).__name__} is not: choose another --world-model"
                )
        self.spaces = model.spaces

    def initial(self, batch: int, device: torch.device) -> Carry:
        """The carry at the beginning of an episode, for ``batch`` environments."""
        return NoCarry()

    @abstractmethod
    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        """The action to take in each latent: in [-1, 1], or one-hot."""

    def log_prob(self, features: Float[Tensor, "B F"], action: Float[Tensor, "B A"]) -> Float[Tensor, " B"] | None:
        """Log density (discrete: log probability) with which ``act`` explores so; kept in ``Sequence.log_prob``.

        None for agents that do not ask for it when they learn.
        """
        return None

    @abstractmethod
    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        """Loss terms from a posterior ``[B, T]`` that still has its graph; the agent says where it detaches."""

    def collected(
        self, features: Float[Tensor, "B F"], action: Float[Tensor, "B A"], carry: Carry, is_first: Bool[Tensor, " B"]
    ) -> None:
        """Called after each step of acting to collect, random ones left out; ``carry`` is that after ``act``.

        An agent that learns from its own plans keeps here what it needs, in buffers, so that a checkpoint has it.
        """

    def after_update(self, updates: int) -> None:
        """Called after each optimiser step with the count of updates so far; target networks move here."""


class Planning(ABC):
    """Capability of an agent: acts by a sequence of actions that it has in mind."""

    horizon: int
    """Actions in a plan."""

    @abstractmethod
    def plan(
        self, model: WorldModel, latent: Latent, carry: Carry, generator: Generator | None
    ) -> Float[Tensor, "B H A"]:
        """The actions that it would take from each latent if it never planned again."""


class Simulating(ABC):
    """Capability of an agent: decides with a tree of imagined futures."""

    @property
    @abstractmethod
    def simulations(self) -> int:
        """Of one decision when it does not explore; 0 where that has no tree."""


class Evolving(ABC):
    """Capability of an agent: tries N variations of itself, candidates of D numbers each, and learns what they earn.

    No gradients. What it learns is in buffers, so that a checkpoint has it.
    """

    where: Literal["dream", "world"]
    """Whether candidates are to be tried by ``dream`` or in real environments."""
    rollouts: int
    """Episodes of each candidate in a generation; all candidates have the same starts."""

    @property
    @abstractmethod
    def acting(self) -> Float[Tensor, " D"]:
        """The candidate that ``act`` goes by."""

    @abstractmethod
    def ask(self, generator: Generator | None) -> Float[Tensor, "N D"]:
        """The candidates of the next generation."""

    @abstractmethod
    def act_as(self, model: WorldModel, latent: Latent, candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B A"]:
        """What each candidate does in its latent, without exploring."""

    @abstractmethod
    def dream(
        self, model: WorldModel, start: Latent, candidates: Float[Tensor, "N D"], generator: Generator | None
    ) -> Float[Tensor, "N R"]:
        """The undiscounted return of each candidate in a dream from each of R starts."""

    @abstractmethod
    def tell(self, candidates: Float[Tensor, "N D"], returns: Float[Tensor, "N R"]) -> dict[str, float]:
        """Learn from what the candidates that were asked for have earned; metrics to log."""


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Gradients pass through these modules, never into their parameters."""
    with held([p for module in modules for p in module.parameters()]):
        yield


@contextmanager
def held(parameters: Iterable[Tensor]) -> Iterator[None]:
    """No gradient reaches these parameters."""
    held = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@torch.no_grad()
def move_target(target: nn.Module, source: nn.Module, rate: float) -> None:
    """``target <- rate * source + (1 - rate) * target`` for every parameter; a copy when rate is 1."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
