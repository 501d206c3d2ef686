"""Noise for planners: normal (white, cut at two standard deviations, or coloured along time), Gumbel, Dirichlet."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from worldmodels.distributions import random_normal, random_uniform


def white_noise(plan: Float[Tensor, "B H A"], count: int, generator: Generator | None) -> Float[Tensor, "B N H A"]:
    """``count`` independent draws for each row of a plan."""
    return random_normal((len(plan), count, *plan.shape[1:]), plan, generator)


def cut(noise: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Standard normal noise to a normal truncated to [-2, 2], through the distribution functions; std 0.880."""
    tail = 0.5 * math.erfc(math.sqrt(2))  # Phi(-2)
    uniform = tail + (1 - 2 * tail) * torch.special.ndtr(noise)
    return torch.special.ndtri(uniform).clamp(-2, 2)


def _amplitudes(horizon: int, beta: float) -> tuple[Tensor, float]:
    """f^(-beta/2) at the frequencies of ``rfft``, f_0 := 1/H, and the std that iCEM's code divides by.

    That std forgets the constant component and halves the amplitude of the Nyquist frequency.
    """
    frequency = torch.fft.rfftfreq(horizon).clamp_min(1 / horizon)
    amplitude = frequency ** (-beta / 2)
    counted = amplitude[1:].clone()
    if horizon % 2 == 0:
        counted[-1] /= 2
    return amplitude, 2 * counted.square().sum().sqrt().item() / horizon


def coloured_noise(
    plan: Float[Tensor, "B H A"], count: int, beta: float, generator: Generator | None
) -> Float[Tensor, "B N H A"]:
    """Normal noise with power f^(-beta) along H, independent across everything else (iCEM, Pinneri et al. 2020).

    A Gaussian spectrum with real ends (Timmer and Koenig, 1995), scaled as in iCEM's code: the std is
    ``marginal_std``, a little above 1. A single step has no colour: white.
    """
    horizon, size = plan.shape[1:]
    if horizon == 1:
        return white_noise(plan, count, generator)
    amplitude, scale = _amplitudes(horizon, beta)
    normal = random_normal((len(plan), count, len(amplitude), size, 2), plan, generator)
    weight = (amplitude / scale).to(normal)[:, None, None]
    # irfft ignores the imaginary parts of the constant component and of the Nyquist frequency
    return torch.fft.irfft(torch.view_as_complex(normal * weight), horizon, dim=2)


def marginal_std(horizon: int, beta: float) -> float:
    """The std of every entry of ``coloured_noise``; at H = 30, 1.009, 1.076 and 1.105 for beta 0, 2 and 3.5."""
    if horizon == 1:
        return 1.0
    amplitude, scale = _amplitudes(horizon, beta)
    power = amplitude.square()
    power[1 : (horizon + 1) // 2] *= 4  # a complex pair: twice the real part of a + ib
    return power.sum().sqrt().item() / horizon / scale


def gumbel_noise(like: Float[Tensor, "*S"], generator: Generator | None) -> Float[Tensor, "*S"]:
    """Standard Gumbel noise, -log(-log u)."""
    uniform = random_uniform(like.shape, like, generator).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


PROPOSALS = 8  # each is accepted with a chance of 95 % or more


def dirichlet_noise(
    valid: Bool[Tensor, "B A"], concentration: float, like: Float[Tensor, "B A"], generator: Generator | None
) -> Float[Tensor, "B A"]:
    """Rows from a symmetric Dirichlet distribution over their valid entries; 0 elsewhere.

    Normalised gamma variables, in logarithms, as small concentrations underflow: Marsaglia and Tsang 2000 at
    concentration + 1, the first of a fixed number of proposals that is accepted, times u^(1 / concentration).
    """
    shape = (len(valid), PROPOSALS, valid.shape[1])
    d = concentration + 1 - 1 / 3
    normal = random_normal(shape, like, generator)
    volume = (1 + normal / math.sqrt(9 * d)).clamp_min(1e-6) ** 3
    dice = random_uniform(shape, like, generator).clamp_min(1e-20)
    # where it is clamped the true volume may be negative, which is not accepted: its logarithm is -41
    accepted = torch.log(dice) < 0.5 * normal.square() + d * (1 - volume + torch.log(volume))
    first = accepted.to(torch.uint8).argmax(1, keepdim=True)
    boost = random_uniform(tuple(valid.shape), like, generator).clamp_min(1e-20)
    log_gamma = torch.log(volume.gather(1, first).squeeze(1)) + torch.log(boost) / concentration
    return log_gamma.masked_fill(~valid, -torch.inf).softmax(-1)
