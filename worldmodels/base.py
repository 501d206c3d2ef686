"""The timeline, and the contract that every world model fulfils.

::

    index        0             1             2
    arrives      o0 r0 first   o1 r1         o2 r2 is_last (is_terminal)
    leaves          a0 ------->   a1 ------->

``reward[t]``, ``is_first[t]``, ``is_last[t]`` and ``is_terminal[t]`` arrive WITH ``obs[t]``; ``action[t]`` is chosen
after it. A time limit is ``is_last`` and never ``is_terminal``; nothing has value beyond ``is_terminal``. The reward
of an imagined step is read at the latent it arrives in. Continue is the probability that the episode goes on, without
the discount. ``env_steps`` counts simulator control steps, action repeats included (the axis of every published
plot); ``updates`` counts learner updates.

Letters in shapes: B sequences or environments, T time, H imagined steps, A action size, F feature size, L bytes of a
packed latent, K ensemble members, h w c image. Images are uint8 and channels-last everywhere outside encoders.
Continuous actions are in [-1, 1], discrete ones are one-hot.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Spaces:
    """What a world shows and what can be done in it; a fact of the task, never of a config file."""

    image: tuple[int, int, int]  # height, width, channels
    action_dim: int  # length of an action vector; number of actions when discrete
    discrete: bool


class Sequence(NamedTuple):
    """Consecutive steps of experience, see the timeline above."""

    obs: UInt8[Tensor, "B T h w c"]
    action: Float[Tensor, "B T A"]
    reward: Float[Tensor, "B T"]
    is_first: Bool[Tensor, "B T"]
    is_last: Bool[Tensor, "B T"]
    is_terminal: Bool[Tensor, "B T"]
    prev_action: Float[Tensor, "B A"]
    """The action that led to ``obs[:, 0]``; ignored where ``is_first[:, 0]``."""
    context: UInt8[Tensor, "B L"] | None = None
    """The packed latent of the step before ``obs[:, 0]`` (``Storing.pack``); ignored where ``is_first[:, 0]``."""
    step: Int64[Tensor, "B T"] | None = None
    """Which steps of the run these are: the same number is the same step, and near numbers are near in time."""
    log_prob: Float[Tensor, "B T"] | None = None
    """Logarithm of the density of ``action`` when it was chosen (discrete: of its chance); NaN where not known."""


def on_device(sequence: Sequence, device: torch.device) -> Sequence:
    """The same sequence on a device."""
    parts: list[Any] = [None if part is None else part.to(device, non_blocking=True) for part in sequence]
    return Sequence(*parts)


def cut(sequence: Sequence, span: slice) -> Sequence:
    """Some steps of every sequence; ``prev_action`` and ``context`` are left, and fit where the span begins at 0."""
    fields = ("obs", "action", "reward", "is_first", "is_last", "is_terminal")
    known = [field for field in ("step", "log_prob") if getattr(sequence, field) is not None]
    steps: dict[str, Any] = {field: getattr(sequence, field)[:, span] for field in (*fields, *known)}
    return sequence._replace(**steps)


class Losses(NamedTuple):
    """Scalar loss terms, unweighted, and scalar metrics; all keyed by short names."""

    terms: dict[str, Float[Tensor, ""]]
    metrics: dict[str, Float[Tensor, ""]]


Latent = Any  # each world model's own NamedTuple of tensors that share their leading dimensions
LatentT = TypeVar("LatentT")


def map_latent(function: Callable[..., Tensor], *latents: LatentT) -> LatentT:
    """Apply ``function`` to corresponding tensors of one or more latents of the same type."""
    first: Any = latents[0]
    return type(first)(*(function(*tensors) for tensors in zip(*latents, strict=True)))  # ty: ignore


def choose(which: Bool[Tensor, " B"], yes: LatentT, no: LatentT) -> LatentT:
    """``yes`` where ``which``, else ``no``: of two latents, or other NamedTuples of tensors, ``[B, ...]``."""
    return map_latent(lambda a, b: torch.where(which.view(-1, *[1] * (b.ndim - 1)), a, b), yes, no)


class WorldModel(nn.Module, ABC):
    """What happens next? A latent world model learned from pixels.

    State is passed, not hidden: latents and generators are arguments and results. ``generator`` is where the noise of
    sampled latents comes from, torch's default one when it is None.
    """

    spaces: Spaces
    feature_dim: int

    @abstractmethod
    def initial(self, batch: int) -> Latent:
        """The latent before anything was seen, leading dimensions ``[batch]``."""

    @abstractmethod
    def observe(
        self,
        latent: Latent,
        prev_action: Float[Tensor, "B A"],
        obs: UInt8[Tensor, "B h w c"],
        is_first: Bool[Tensor, " B"],
        generator: Generator | None = None,
    ) -> Latent:
        """One posterior step; where ``is_first`` the latent and action given are ignored."""

    @abstractmethod
    def imagine(self, latent: Latent, action: Float[Tensor, "B A"], generator: Generator | None = None) -> Latent:
        """One prior step. Differentiable in latent and action; gradients on or off is the caller's choice."""

    @abstractmethod
    def features(self, latent: Latent) -> Float[Tensor, "*B F"]:
        """The only view of a latent that an agent needs."""

    @abstractmethod
    def loss(self, batch: Sequence) -> tuple[Latent, Losses]:
        """The posterior ``[B, T]`` with its graph, and named, unweighted loss terms."""

    @abstractmethod
    def filter(self, batch: Sequence, generator: Generator | None = None) -> Latent:
        """The posterior of every step, ``[B, T]``."""

    def rollout(self, latent: Latent, actions: Float[Tensor, "B H A"], generator: Generator | None = None) -> Latent:
        """The latents ``[B, H]`` that given actions lead to, from ``latent`` ``[B]``, which is not among them."""
        steps = [latent := self.imagine(latent, action, generator) for action in actions.unbind(1)]
        return map_latent(lambda *parts: torch.stack(parts, 1), *steps)


class Rewarded(ABC):
    """Capability: predicts rewards and the ends of episodes."""

    @abstractmethod
    def reward(self, latent: Latent) -> Float[Tensor, "*B"]:
        """Expected reward received on arrival in this latent, in the task's own units."""

    @abstractmethod
    def continues(self, latent: Latent) -> Float[Tensor, "*B"]:
        """Probability that the episode goes on after this latent, without the discount."""


class Decoding(ABC):
    """Capability: draws what a latent looks like."""

    @abstractmethod
    def decode(self, latent: Latent) -> UInt8[Tensor, "*B h w c"]:
        """The expected image. No gradient passes."""


class Storing(ABC):
    """Capability: latents can be kept in the replay and start a training sequence (DreamerV3's replay context)."""

    packed_bytes: int

    @abstractmethod
    def pack(self, latent: Latent) -> UInt8[Tensor, "*B L"]:
        """An opaque, compact form of a latent."""

    @abstractmethod
    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> Latent:
        """Undo ``pack``, up to the precision it keeps."""


class Reparameterised(ABC):
    """Capability: takes an observed step once more, with a gradient."""

    @abstractmethod
    def reenact(self, latent: Latent, action: Float[Tensor, "B A"], observed: Latent) -> Latent:
        """``observed`` in value; its derivative is that of the prior step from ``latent`` with the noise it then had.

        No gradient reaches ``observed``, nor the noise, which is inferred (SVG, arXiv 1510.09142).
        """


class Teachable(ABC):
    """Capability: what it predicts can be taught at any latent, imagined ones too (value equivalence, MuZero)."""

    @abstractmethod
    def prediction_losses(
        self, latent: Latent, reward: Float[Tensor, "*B"], continues: Float[Tensor, "*B"]
    ) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
        """Losses of ``Rewarded.reward`` and ``continues`` of these latents, given what came of them; with the graph."""


class Ensembled(ABC):
    """Capability: K dynamics members over one representation, so a latent of one is a latent of all.

    Members are evaluated together, as one batched computation. ``K`` is ``num_members`` wherever it is an axis; what
    the statistics of a prediction are is the model's own, and its docstring gives the unit of ``disagreement``.
    """

    num_members: int
    num_rewards: int
    """Members that predict rewards, R: an ensemble of its own; 1 where the world model's ``reward`` is all there is."""

    @abstractmethod
    def reward_members(self, latent: Latent) -> Float[Tensor, "R *B"]:
        """``Rewarded.reward`` of latents ``[*B]`` by each of the R members."""

    @abstractmethod
    def imagine_members(
        self, latent: Latent, action: Float[Tensor, "K *B A"], generator: Generator | None = None
    ) -> Latent:
        """One prior step of latents ``[K, *B]``, group k moved by member k alone. Differentiable like ``imagine``."""

    @abstractmethod
    def imagine_mean(self, latent: Latent, action: Float[Tensor, "*B A"], generator: Generator | None = None) -> Latent:
        """One prior step ``[*B]`` to the mean of the members' means, nothing sampled (PETS, arXiv 1805.12114: E)."""

    @abstractmethod
    def match_moments(self, latent: Latent, generator: Generator | None = None) -> Latent:
        """P particles ``[P, *B]`` redrawn from independent distributions fitted to them along the first axis.

        PETS's DS calls it with the particles of one member, MM with those of all. No gradient passes.
        """

    @abstractmethod
    def member_stats(self, latent: Latent, action: Float[Tensor, "*B A"]) -> Float[Tensor, "K *B S"]:
        """What each member says of the next stochastic latent of ``[*B]``: statistics in the model's own layout."""

    @abstractmethod
    def member_moments(self, stats: Float[Tensor, "K *B S"]) -> tuple[Float[Tensor, "K *B Z"], Float[Tensor, "K *B Z"]]:
        """Mean and std of each of the Z numbers of the next stochastic latent, from ``member_stats``."""

    @abstractmethod
    def member_log_prob(self, stats: Float[Tensor, "K *B S"], latent: Latent) -> Float[Tensor, "K *B"]:
        """Log density (discrete: log probability) of the stochastic part of latents ``[*B]`` by each member, nats."""

    @abstractmethod
    def one_vs_rest(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "K *B"]:
        """KL(member k || the other members as one distribution), nats, from ``member_stats`` (M2AC, 2010.04893)."""

    @abstractmethod
    def disagreement(self, latent: Latent, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        """How far the members' predictions of the step from ``[*B]`` are apart; not negative."""
