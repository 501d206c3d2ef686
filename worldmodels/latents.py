"""The two kinds of stochastic latent of an RSSM: what a network's statistics mean, how to sample, compare and pack.

Statistics and samples are flat in their last axis, so a model need not know which kind it has. What K networks say of
the same latent is compared and averaged by ``Categories`` and ``Normals``, one for each kind.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from worldmodels.distributions import mixed, random_normal, sample_one_hot, straight_through, unimix

NOISE_LIMIT = 5.0  # of inferred noise, in standard deviations: one in 2 million where the prior is right


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

    def _probs(self, stats: Float[Tensor, "*B S"]) -> Tensor:
        return mixed(stats.unflatten(-1, (self.classes, self.variables)), self.unimix, dim=-2)

    def sample(self, stats: Float[Tensor, "*B S"], generator: Generator | None) -> Float[Tensor, "*B Z"]:
        """A sample, float32, with the straight-through gradient."""
        probs = self._probs(stats)
        return straight_through(sample_one_hot(probs, -2, generator), probs).flatten(-2)

    def reenact(self, stats: Float[Tensor, "*B S"], observed: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B Z"]:
        """``observed`` with the straight-through gradient; which noise led to it is not asked."""
        return straight_through(observed, self._probs(stats).flatten(-2))

    def noise(self, stats: Float[Tensor, "*B S"], observed: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B"]:
        """(1 / p(observed) - 1) / (classes - 1), mean over the variables: 1 expected of samples from ``stats``."""
        one_hot = observed.unflatten(-1, (self.classes, self.variables))
        chance = (self._probs(stats) * one_hot).sum(-2)
        return ((1 / chance - 1) / max(1, self.classes - 1)).mean(-1)

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

    def members(self) -> "Categories":
        return Categories(self)

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

    def reenact(self, stats: Float[Tensor, "*B S"], observed: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B Z"]:
        """``observed`` as mean + std * noise with the noise it must have had (SVG, arXiv 1510.09142).

        The noise counts as at most ``NOISE_LIMIT`` in the gradient, so an observation that the prior finds impossible
        does not rule; the value is ``observed`` all the same.
        """
        mean, std = self._mean_std(stats)
        noise = ((observed - mean) / std).detach().clamp(-NOISE_LIMIT, NOISE_LIMIT)
        return straight_through(observed, mean + std * noise)

    def noise(self, stats: Float[Tensor, "*B S"], observed: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B"]:
        """Square of the noise of ``observed``, mean over the variables: 1 expected of samples from ``stats``."""
        mean, std = self._mean_std(stats)
        return ((observed - mean) / std).square().mean(-1)

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

    def members(self) -> "Normals":
        return Normals(self)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> Float[Tensor, "*B Z"]:
        return packed.clone(memory_format=torch.contiguous_format).view(torch.float32)  # aligned


@dataclass(frozen=True)
class Categories:
    """K predictions of a ``Categorical``, statistics ``[K, *B, S]`` as its own: logits, with its ``unimix``."""

    kind: Categorical

    def sample(self, stats: Float[Tensor, "K *B S"], generator: Generator | None) -> Float[Tensor, "K *B Z"]:
        """Of each prediction by itself, with the straight-through gradient."""
        return self.kind.sample(stats, generator)

    def mean(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "*B Z"]:
        """The averaged probabilities, which a network reads as the mean of what it would read of samples.

        Measured on a trained model, eight steps open loop: images as near as the average of 20 sampled futures, with
        two thirds to half the error of the mode.
        """
        return self.kind._probs(stats).mean(0).flatten(-2)

    def kl(self, posterior: Float[Tensor, "*B S"], stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "K *B"]:
        """KL(posterior || prediction) in nats, summed over the variables."""
        p, q = self.kind._log_probs(posterior), self.kind._log_probs(stats)
        return (p.exp() * (p - q)).sum((-2, -1))

    def disagreement(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "*B"]:
        """Jensen-Shannon divergence of the predictions, in [0, variables * log(min(K, classes))] nats.

        It is the information that the outcome has about which prediction it came from, summed over the variables.
        """
        p = self.kind._log_probs(stats)
        mean = p.exp().mean(0)
        entropy = -torch.special.xlogy(mean, mean).sum((-2, -1))
        return (entropy + (p.exp() * p).sum((-2, -1)).mean(0)).clamp_min(0)

    def one_vs_rest(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "K *B"]:
        """KL(prediction k || equal mixture of the others) in nats, exact, summed over the variables."""
        log_p = self.kind._log_probs(stats)
        p = log_p.exp()
        rest = ((p.sum(0) - p) / (len(p) - 1)).clamp_min(1e-8)
        return (p * (log_p - rest.log())).sum((-2, -1))

    def moments(self, stats: Float[Tensor, "K *B S"]) -> tuple[Float[Tensor, "K *B Z"], Float[Tensor, "K *B Z"]]:
        """Mean and standard deviation of each of a sample's zeros and ones: p and sqrt(p (1 - p))."""
        p = self.kind._probs(stats).flatten(-2)
        return p, (p * (1 - p)).clamp_min(0).sqrt()

    def log_prob(self, stats: Float[Tensor, "K *B S"], sample: Float[Tensor, "*B Z"]) -> Float[Tensor, "K *B"]:
        """Logarithm of the probability of a sample by each prediction, nats, summed over the variables."""
        one_hot = sample.unflatten(-1, (self.kind.classes, self.kind.variables))
        return (self.kind._log_probs(stats) * one_hot).sum((-2, -1))

    def redraw(self, samples: Float[Tensor, "P *B Z"], generator: Generator | None) -> Float[Tensor, "P *B Z"]:
        """As many samples from the frequencies of ``samples`` along the first axis, variable by variable."""
        one_hot = samples.unflatten(-1, (self.kind.classes, self.kind.variables))
        return sample_one_hot(one_hot.mean(0).expand(one_hot.shape), -2, generator).flatten(-2)


@dataclass(frozen=True)
class Normals:
    """K predictions of a ``Gaussian``, statistics ``[K, *B, S]``: mean and log variance, with no ``min_std``."""

    kind: Gaussian

    def sample(self, stats: Float[Tensor, "K *B S"], generator: Generator | None) -> Float[Tensor, "K *B Z"]:
        """A reparameterised sample of each prediction, float32."""
        mean, log_variance = stats.float().chunk(2, -1)
        return mean + (0.5 * log_variance).exp() * random_normal(mean.shape, mean, generator)

    def mean(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "*B Z"]:
        """The mean of the means."""
        return stats.float().chunk(2, -1)[0].mean(0)

    def kl(self, posterior: Float[Tensor, "*B S"], stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "K *B"]:
        """KL(posterior || prediction) in nats, summed over the variables."""
        mean, std = self.kind._mean_std(posterior)
        return gaussian_kl(mean, std**2, *_mean_variance(stats))

    def disagreement(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "*B"]:
        """Variance of the K means (divided by K), mean over the variables: squared units of the latent."""
        return stats.float().chunk(2, -1)[0].var(0, correction=0).mean(-1)

    def one_vs_rest(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "K *B"]:
        """KL(prediction k || normal with the moments of the others' mixture), nats, summed (M2AC, 2010.04893)."""
        mean, variance = _mean_variance(stats)
        others = len(mean) - 1
        mean = mean - mean.mean(0)  # the differences below are then of small numbers; the KL is the same
        rest = -mean / others
        second = variance + mean**2
        spread = ((second.sum(0) - second) / others - rest**2).clamp_min(1e-8)
        return gaussian_kl(mean, variance, rest, spread)

    def moments(self, stats: Float[Tensor, "K *B S"]) -> tuple[Float[Tensor, "K *B Z"], Float[Tensor, "K *B Z"]]:
        """Mean and standard deviation of each number."""
        mean, variance = _mean_variance(stats)
        return mean, variance.sqrt()

    def log_prob(self, stats: Float[Tensor, "K *B S"], sample: Float[Tensor, "*B Z"]) -> Float[Tensor, "K *B"]:
        """Logarithm of the density of a sample by each prediction, nats, summed over the variables."""
        mean, log_variance = stats.float().chunk(2, -1)
        surprise = (sample - mean).square() * (-log_variance).exp()
        return -0.5 * (surprise + log_variance + math.log(2 * math.pi)).sum(-1)

    def redraw(self, samples: Float[Tensor, "P *B Z"], generator: Generator | None) -> Float[Tensor, "P *B Z"]:
        """As many samples from the normal with the mean and variance of ``samples`` along the first axis."""
        return redraw_normal(samples, generator)


def _mean_variance(stats: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = stats.float().chunk(2, -1)
    return mean, log_variance.exp()


def gaussian_kl(mean_p: Tensor, variance_p: Tensor, mean_q: Tensor, variance_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal normals in nats, summed over the last axis."""
    ratio = variance_p / variance_q
    return 0.5 * (ratio - ratio.log() + (mean_p - mean_q) ** 2 / variance_q - 1).sum(-1)


def redraw_normal(samples: Float[Tensor, "P *B Z"], generator: Generator | None) -> Float[Tensor, "P *B Z"]:
    """As many samples from independent normals of maximum likelihood along the first axis (PETS's code: DS, MM)."""
    mean, std = samples.mean(0), samples.std(0, correction=0)
    return mean + std * random_normal(samples.shape, samples, generator)


def bounded_log_variance(raw: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``raw`` held softly between two learned bounds; at most ``low + softplus(high - low)`` (PETS, appendix A.1)."""
    raw = high - F.softplus(high - raw)
    return low + F.softplus(raw - low)
