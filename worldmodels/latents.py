"""The two kinds of stochastic latent of an RSSM: what a network's statistics mean, how to sample, compare and pack.

Statistics and samples are flat in their last axis, so a model need not know which kind it has.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from worldmodels.distributions import random_normal, sample_one_hot, straight_through, unimix


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """``variables`` one-hot vectors of ``classes`` each, sampled straight through (Dreamer V2 and V3).

    Flat layout: class-major, ``[classes, variables]``, so that softmax runs over an outer axis and vectorises well.
    """

    type: Literal["categorical"]
    variables: int
    classes: int
    unimix: float  # share of the uniform distribution mixed in before sampling and before the KL (V3: 0.01)

    @property
    def size(self) -> int:
        return self.variables * self.classes

    stats_size = size

    def _log_probs(self, stats: Float[Tensor, "*B S"]) -> Tensor:
        return unimix(stats.unflatten(-1, (self.classes, self.variables)), self.unimix, dim=-2)

    def sample(self, stats: Float[Tensor, "*B S"], generator: Generator | None) -> Float[Tensor, "*B Z"]:
        """A sample, float32, with the straight-through gradient."""
        probs = self._log_probs(stats).exp()
        return straight_through(sample_one_hot(probs, -2, generator), probs).flatten(-2)

    def kl(self, posterior: Float[Tensor, "*B S"], prior: Float[Tensor, "*B S"]) -> Float[Tensor, "*B"]:
        """KL(posterior || prior) in nats, summed over the variables."""
        p, q = self._log_probs(posterior), self._log_probs(prior)
        return (p.exp() * (p - q)).sum((-2, -1))

    def entropy(self, stats: Float[Tensor, "*B S"]) -> Float[Tensor, "*B"]:
        """In nats, summed over the variables."""
        p = self._log_probs(stats)
        return -(p.exp() * p).sum((-2, -1))

    @property
    def packed_bytes(self) -> int:
        return self.variables

    def pack(self, sample: Float[Tensor, "*B Z"]) -> UInt8[Tensor, "*B L"]:
        """One byte for each variable; exact."""
        return sample.unflatten(-1, (self.classes, self.variables)).argmax(-2).to(torch.uint8)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> Float[Tensor, "*B Z"]:
        return F.one_hot(packed.long(), self.classes).transpose(-1, -2).flatten(-2).float()


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """``variables`` independent normals, std softplus(.) + ``min_std`` (PlaNet, Dreamer V1)."""

    type: Literal["gaussian"]
    variables: int
    min_std: float

    @property
    def size(self) -> int:
        return self.variables

    @property
    def stats_size(self) -> int:
        return 2 * self.variables

    def _mean_std(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = stats.float().chunk(2, -1)
        return mean, F.softplus(std) + self.min_std

    def sample(self, stats: Float[Tensor, "*B S"], generator: Generator | None) -> Float[Tensor, "*B Z"]:
        """A reparameterised sample, float32."""
        mean, std = self._mean_std(stats)
        return mean + std * random_normal(mean.shape, mean, generator)

    def kl(self, posterior: Float[Tensor, "*B S"], prior: Float[Tensor, "*B S"]) -> Float[Tensor, "*B"]:
        """KL(posterior || prior) in nats, summed over the variables."""
        (m_p, s_p), (m_q, s_q) = self._mean_std(posterior), self._mean_std(prior)
        return (torch.log(s_q / s_p) + (s_p**2 + (m_p - m_q) ** 2) / (2 * s_q**2) - 0.5).sum(-1)

    def entropy(self, stats: Float[Tensor, "*B S"]) -> Float[Tensor, "*B"]:
        """Differential entropy in nats, summed over the variables."""
        _, std = self._mean_std(stats)
        return (torch.log(std) + 1.4189385332).sum(-1)  # 0.5 log(2 pi e)

    @property
    def packed_bytes(self) -> int:
        return 4 * self.variables

    def pack(self, sample: Float[Tensor, "*B Z"]) -> UInt8[Tensor, "*B L"]:
        """Float32; exact."""
        return sample.detach().float().contiguous().view(torch.uint8)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> Float[Tensor, "*B Z"]:
        return packed.clone(memory_format=torch.contiguous_format).view(torch.float32)  # aligned
