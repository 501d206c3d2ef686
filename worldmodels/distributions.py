"""Distributions over rewards, values, ends and actions, and the transformations that they need.

Each is built from a network's raw output (float32 inside, whatever precision the network ran in) and has the few
methods that its users call: ``mean``, ``mode``, ``sample``, ``log_prob``, ``entropy``, ``loss`` (the negative log
likelihood up to a constant). Samples come from uniform or normal noise of an explicit generator.
"""

import math
from collections.abc import Callable
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|) (DreamerV3, Eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), the inverse of ``symlog``."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def mixed(logits: Float[Tensor, "*B K"], share: float, dim: int = -1) -> Float[Tensor, "*B K"]:
    """Probabilities of a mixture of softmax(logits) with ``share`` of the uniform distribution (DreamerV3)."""
    probs = F.softmax(logits.float(), dim)
    return probs if share == 0 else (1 - share) * probs + share / logits.shape[dim]


def unimix(logits: Float[Tensor, "*B K"], share: float, dim: int = -1) -> Float[Tensor, "*B K"]:
    """Log probabilities of ``mixed``."""
    return F.log_softmax(logits.float(), dim) if share == 0 else torch.log(mixed(logits, share, dim))


class CommonNoise(Generator):
    """A generator of common random numbers, seeded from another one: what is compared has the same luck.

    The rows of noise, along its first axis, are ``copies`` groups one after the other, all with the same numbers. Where
    the rows do not divide into so many groups, each has its own.
    """

    def __new__(cls, generator: Generator, copies: int) -> "CommonNoise":
        return super().__new__(cls, device=generator.device)  # pyright: ignore[reportCallIssue]

    def __init__(self, generator: Generator, copies: int):
        self.copies = copies
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        self.manual_seed(int(seed))


def random_uniform(shape: torch.Size | tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    """Uniform noise in [0, 1), float32, on the device of ``like``."""
    return _random(torch.rand, tuple(shape), like, generator)


def random_normal(shape: torch.Size | tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal noise, float32, on the device of ``like``."""
    return _random(torch.randn, tuple(shape), like, generator)


def _random(draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    copies = generator.copies if isinstance(generator, CommonNoise) and shape else 1
    if copies == 1 or shape[0] % copies:
        return draw(shape, generator=generator, device=like.device)
    group = draw((shape[0] // copies, *shape[1:]), generator=generator, device=like.device)
    return group.repeat(copies, *[1] * (len(shape) - 1))


def sample_one_hot(probs: Tensor, dim: int, generator: Generator | None) -> Tensor:
    """One-hot samples by inverting the cumulative distribution: one uniform number for each variable, not K.

    The last class takes what rounding leaves, so a sample always has exactly one 1.
    """
    cdf = probs.detach().cumsum(dim)
    shape = list(probs.shape)
    shape[dim] = 1
    reached = (random_uniform(tuple(shape), probs, generator) < cdf).to(probs.dtype)
    reached.narrow(dim, -1, 1).fill_(1.0)
    return reached.diff(dim=dim, prepend=reached.new_zeros(shape))  # 0 0 1 1 to 0 0 1 0


def straight_through(sample: Tensor, probs: Tensor) -> Tensor:
    """``sample`` going forward, the gradient of ``probs`` going back (DreamerV2, Algorithm 1)."""
    return sample + (probs - probs.detach()) if probs.requires_grad else sample


@cache
def _two_hot_bins(device: torch.device) -> Tensor:
    half = symexp(torch.linspace(-20, 0, 128, dtype=torch.float32))
    half[-1] = 0.0
    return torch.cat([half, -half[:-1].flip(0)]).to(device)


class TwoHot:
    """A categorical over 255 bins at symexp(-20) ... symexp(20), for rewards and values (DreamerV3, Eq. 10).

    Float32 throughout: the outer edges, 4.85e8, do not fit in 16 bits.
    """

    size = 255

    def __init__(self, logits: Float[Tensor, "*B 255"]):
        self.logits = logits.float()

    @property
    def mean(self) -> Float[Tensor, "*B"]:
        """Expected value; a sum over pairs of opposite bins, so equal logits give exactly 0."""
        weighted = F.softmax(self.logits, -1) * _two_hot_bins(self.logits.device)
        return (weighted[..., :127].flip(-1) + weighted[..., 128:]).sum(-1)

    def loss(self, target: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Cross-entropy with the target spread over the two nearest bins; targets beyond the ends are clamped."""
        low, weight = two_hot(target)
        at_low, at_high = self._log_probs.gather(-1, torch.stack([low, low + 1], -1)).unbind(-1)
        return -(at_low * (1 - weight) + at_high * weight)

    @cached_property
    def _log_probs(self) -> Float[Tensor, "*B 255"]:
        """Once for all targets, and with a gradient whoever asks first."""
        with torch.set_grad_enabled(self.logits.requires_grad):
            return F.log_softmax(self.logits, -1)


def two_hot(target: Float[Tensor, "*B"]) -> tuple[Tensor, Float[Tensor, "*B"]]:
    """Index of the bin below ``target`` (0 to 253) and the weight, in [0, 1], of the bin above."""
    bins = _two_hot_bins(target.device)
    target = target.float().clamp(bins[0], bins[-1])
    low = (torch.bucketize(target, bins, right=True) - 1).clamp(0, TwoHot.size - 2)
    return low, (target - bins[low]) / (bins[low + 1] - bins[low])


class UnitNormal:
    """A normal of unit variance, for rewards and values of Dreamer V1 and V2; its loss omits the constant."""

    size = 1

    def __init__(self, raw: Float[Tensor, "*B 1"]):
        self.mean = raw.float().squeeze(-1)

    def loss(self, target: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return 0.5 * (self.mean - target) ** 2


class Bernoulli:
    """A coin for whether the episode goes on; ``mean`` is the probability that it does."""

    size = 1

    def __init__(self, raw: Float[Tensor, "*B 1"]):
        self.logit = raw.float().squeeze(-1)

    @property
    def mean(self) -> Float[Tensor, "*B"]:
        return torch.sigmoid(self.logit)

    def loss(self, target: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return F.binary_cross_entropy_with_logits(self.logit, target, reduction="none")


class OneHot:
    """A policy over discrete actions, with ``mix`` of the uniform distribution; samples are one-hot.

    ``sample`` carries the straight-through gradient, as does ``reenact`` of a one-hot action; ``log_prob`` of one.
    """

    def __init__(self, logits: Float[Tensor, "*B A"], mix: float):
        self.log_probs = unimix(logits, mix)

    @property
    def mode(self) -> Float[Tensor, "*B A"]:
        return F.one_hot(self.log_probs.argmax(-1), self.log_probs.shape[-1]).float()

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "*B A"]:
        probs = self.log_probs.exp()
        return straight_through(sample_one_hot(probs, -1, generator), probs)

    def reenact(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        return straight_through(action, self.log_probs.exp())

    def log_prob(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Float[Tensor, "*B"]:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class BoundedNormal:
    """The continuous policy of DreamerV3: mean tanh(m), std in [0.1, 1]; samples are not squashed.

    What acts clips the sample; log_prob is that of the unclipped one.
    """

    def __init__(self, raw: Float[Tensor, "*B A2"]):
        mean, std = raw.float().chunk(2, -1)
        self.mode = torch.tanh(mean)
        self.std = 0.9 * torch.sigmoid(std + 2.0) + 0.1

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "*B A"]:
        return self.mode + self.std * random_normal(self.mode.shape, self.mode, generator)

    def log_prob(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        z = (action - self.mode) / self.std
        return (-0.5 * z**2 - torch.log(self.std) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "*B"]:
        return (torch.log(self.std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class TanhNormal:
    """The policy of Dreamer V1: tanh of a normal with mean 5 tanh(m / 5) and std softplus(s + softplus^-1(5)) + 1e-4.

    ``mode`` is tanh of the mean, which is near the best of 100 samples that the paper's code takes.
    """

    def __init__(self, raw: Float[Tensor, "*B A2"]):
        mean, std = raw.float().chunk(2, -1)
        self.mean = 5 * torch.tanh(mean / 5)
        self.std = F.softplus(std + math.log(math.expm1(5.0))) + 1e-4

    @property
    def mode(self) -> Float[Tensor, "*B A"]:
        return torch.tanh(self.mean)

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "*B A"]:
        return torch.tanh(self.mean + self.std * random_normal(self.mean.shape, self.mean, generator))


class SquashedNormal:
    """The policy of soft actor-critic (Haarnoja et al., arXiv 1812.05905, C): tanh of a normal, log std in [-5, 2]."""

    def __init__(self, raw: Float[Tensor, "*B A2"]):
        mean, log_std = raw.float().chunk(2, -1)
        self.mean, self.log_std = mean, log_std.clamp(-5, 2)

    @property
    def mode(self) -> Float[Tensor, "*B A"]:
        return torch.tanh(self.mean)

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "*B A"]:
        return self.sample_with_log_prob(generator)[0]

    def sample_with_log_prob(
        self, generator: Generator | None = None
    ) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B"]]:
        """A reparameterised action and the logarithm of its density, both differentiable."""
        noise = random_normal(self.mean.shape, self.mean, generator)
        raw = self.mean + self.log_std.exp() * noise
        return torch.tanh(raw), self._log_density(raw, noise)

    def log_prob(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        """Of actions in [-1, 1], the ends as if they were just inside."""
        raw = unsquash(action)
        return self._log_density(raw, (raw - self.mean) / self.log_std.exp())

    def reenact(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """``action`` as tanh(mean + std * noise) with the noise it must have had (SVG, arXiv 1510.09142)."""
        std = self.log_std.exp()
        noise = ((unsquash(action) - self.mean) / std).detach()
        return straight_through(action, torch.tanh(self.mean + std * noise))

    def _log_density(self, raw: Tensor, noise: Tensor) -> Tensor:
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))  # log (1 - tanh^2), stable far out
        return (normal - squash).sum(-1)


def unsquash(action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
    """The number whose tanh is ``action``, in [-1, 1]; for the ends themselves, which tanh rounds to, +-7.25."""
    return torch.atanh(action.clamp(-1 + 1e-6, 1 - 1e-6))


class TruncatedNormal:
    """The continuous policy of Dreamer V2: a normal cut to [-1, 1], mean tanh(m), std 2 sigmoid(s / 2) + 0.1.

    Sampled by inverting its distribution function, so the pathwise gradient passes.
    """

    def __init__(self, raw: Float[Tensor, "*B A2"]):
        mean, std = raw.float().chunk(2, -1)
        self.mode = torch.tanh(mean)
        self.std = 2 * torch.sigmoid(std / 2) + 0.1
        self.low, self.high = (-1 - self.mode) / self.std, (1 - self.mode) / self.std
        self.cdf_low, self.cdf_high = torch.special.ndtr(self.low), torch.special.ndtr(self.high)
        self.mass = (self.cdf_high - self.cdf_low).clamp_min(1e-6)

    def sample(self, generator: Generator | None = None) -> Float[Tensor, "*B A"]:
        u = self.cdf_low + random_uniform(self.mode.shape, self.mode, generator) * self.mass
        z = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        return (self.mode + self.std * z).clamp(-1 + 1e-6, 1 - 1e-6)

    def log_prob(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        z = (action - self.mode) / self.std
        return (-0.5 * z**2 - torch.log(self.std * self.mass) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "*B"]:
        phi_low, phi_high = (torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi) for x in (self.low, self.high))
        slope = (self.low * phi_low - self.high * phi_high) / (2 * self.mass)
        return (torch.log(self.std * self.mass) + 0.5 * math.log(2 * math.pi * math.e) + slope).sum(-1)


class NormalMixture:
    """Numbers that are independent of one another, each a mixture of K normals with weights of its own.

    The output layer of a mixture density network (Bishop 1994) as "World Models" factors it (arXiv 1803.10122, and its
    code). ``raw`` has for each number K logits, K means and K log standard deviations, the latter held in [-10, 5].
    """

    def __init__(self, raw: Float[Tensor, "*B R"], components: int):
        logits, self.means, log_stds = raw.float().unflatten(-1, (-1, 3, components)).unbind(-2)
        self.log_weights, self.log_stds = F.log_softmax(logits, -1), log_stds.clamp(-10, 5)

    def log_prob(self, value: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B Z"]:
        """Of every number by itself, nats."""
        z = (value.unsqueeze(-1) - self.means) / self.log_stds.exp()
        return torch.logsumexp(self.log_weights - 0.5 * z**2 - self.log_stds - 0.5 * math.log(2 * math.pi), -1)

    def sample(self, temperature: float, generator: Generator | None = None) -> Float[Tensor, "*B Z"]:
        """A component from logits divided by the temperature, then a value with its variance times the temperature.

        Reparameterised given the component: the gradient reaches its mean and its deviation, and no logits.
        """
        chosen = sample_one_hot(F.softmax(self.log_weights / temperature, -1), -1, generator)
        mean, std = ((chosen * part).sum(-1) for part in (self.means, self.log_stds.exp()))
        return mean + std * math.sqrt(temperature) * random_normal(mean.shape, mean, generator)
