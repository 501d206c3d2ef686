"""Optimisers as the papers use them, with their gradient clipping."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Norms(NamedTuple):
    """The global norm of all gradients of one optimiser, on their device."""

    before: Float[Tensor, ""]
    after: Float[Tensor, ""]  # clipping


@dataclass(frozen=True, kw_only=True)
class LaPropConfig:
    """DreamerV3: adaptive gradient clipping, then LaProp, with a linear warm-up and no decay."""

    type: Literal["laprop"]
    lr: float
    warmup: int  # updates until the full learning rate
    beta1: float
    beta2: float
    eps: float
    clip: float  # adaptive: largest norm of a tensor's gradient as a share of the tensor's own norm

    def build(self, parameters: ParamsT) -> "LaProp":
        return LaProp(parameters, self.lr, (self.beta1, self.beta2), self.eps)

    def clip_gradients(self, parameters: list[Tensor]) -> Norms:
        return clip_adaptively(parameters, self.clip)


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Dreamer V1 and V2, PlaNet: Adam behind a clip of the global norm."""

    type: Literal["adam"]
    lr: float
    warmup: int
    eps: float
    weight_decay: float  # share of every weight that an update takes away, whatever the learning rate
    clip: float  # largest global norm of the gradients

    def build(self, parameters: ParamsT) -> torch.optim.AdamW:
        # AdamW multiplies its decay by the learning rate; the papers' code does not
        decay = self.weight_decay / self.lr if self.lr else 0.0
        return torch.optim.AdamW(parameters, self.lr, eps=self.eps, weight_decay=decay)

    def clip_gradients(self, parameters: list[Tensor]) -> Norms:
        return clip_globally(parameters, self.clip)


@dataclass(frozen=True, kw_only=True)
class RMSpropConfig:
    """A3C and its kin (arXiv 1602.01783), I2A: RMSprop behind a clip of the global norm, without momentum.

    nu <- alpha nu + (1 - alpha) g^2;  p <- p - lr g / (sqrt(nu) + eps)
    """

    type: Literal["rmsprop"]
    lr: float
    warmup: int
    alpha: float
    eps: float
    clip: float

    def build(self, parameters: ParamsT) -> torch.optim.RMSprop:
        return torch.optim.RMSprop(parameters, self.lr, alpha=self.alpha, eps=self.eps)

    def clip_gradients(self, parameters: list[Tensor]) -> Norms:
        return clip_globally(parameters, self.clip)


OptimizerConfig = LaPropConfig | AdamConfig | RMSpropConfig


@torch.no_grad()
def clip_globally(parameters: list[Tensor], clip: float) -> Norms:
    """Scale all gradients down together, to a global norm of ``clip``."""
    before = torch.nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
    return Norms(before, before * (clip / (before + 1e-6)).clamp(max=1.0))  # the share that torch's function takes


@torch.no_grad()
def clip_adaptively(parameters: list[Tensor], clip: float, floor: float = 1e-3) -> Norms:
    """Scale each gradient down to ``clip`` times its parameter's norm (at least ``floor``).

    AGC (Brock et al. 2021) for whole tensors, as in DreamerV3: g / max(1, |g| / (clip max(floor, |p|))).
    """
    parameters = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    limits = torch._foreach_maximum(torch._foreach_norm(parameters), floor)
    ratios = torch._foreach_div(norms, torch._foreach_mul(limits, clip))
    shares = torch._foreach_maximum(ratios, 1.0)
    torch._foreach_div_(gradients, shares)
    return Norms(*(torch.linalg.vector_norm(torch.stack(each)) for each in (norms, torch._foreach_div(norms, shares))))


class LaProp(torch.optim.Optimizer):
    """Adam that divides by the gradient's scale before the momentum, not after (Ziyin et al., arXiv 2002.04839).

    nu <- b2 nu + (1 - b2) g^2;  d = g / (sqrt(nu / (1 - b2^t)) + eps)
    mu <- b1 mu + (1 - b1) d;    p <- p - lr mu / (1 - b1^t)
    """

    def __init__(self, parameters: ParamsT, lr: float, betas: tuple[float, float], eps: float):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:  # a group that is frozen: its t stands still too
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p] = {"mu": torch.zeros_like(p), "nu": torch.zeros_like(p)}
            group["step"] = group.get("step", 0) + 1
            (b1, b2), t = group["betas"], group["step"]
            gradients = [p.grad for p in parameters]
            mu, nu = ([self.state[p][name] for p in parameters] for name in ("mu", "nu"))
            torch._foreach_mul_(nu, b2)
            torch._foreach_addcmul_(nu, gradients, gradients, 1 - b2)
            scale = torch._foreach_sqrt(torch._foreach_div(nu, 1 - b2**t))
            torch._foreach_add_(scale, group["eps"])
            torch._foreach_lerp_(mu, torch._foreach_div(gradients, scale), 1 - b1)
            torch._foreach_add_(parameters, mu, alpha=-group["lr"] / (1 - b1**t))
