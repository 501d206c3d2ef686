"""Gradients that come back through imagined steps: their norms are kept, and held below a limit where one is wanted.

A gradient from step H to step 1 is a product of H Jacobians of the model and the policy, so it can grow or vanish with
the horizon. What comes back to the latent of step t is the sum over everything that the latent leads to. Here a state's
gradient is that of its own objective: where a loss is the mean over N states, N times the loss's. The clip is a state's
too, so one that explodes takes nothing from the others; the optimiser's clip afterwards is of all states together.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodels.base import Latent


class Watch(NamedTuple):
    """What came back to each of H imagined steps; ``watch_steps`` makes it, the backward pass fills it."""

    norms: Float[Tensor, "2 H"]
    """Root mean square over states of the gradient's norm, before and after the clip; 0 before the backward pass."""
    limit: float
    """Greatest norm of a state's gradient at one step; 0: no clip, and gradients pass to the bit."""

    def passed(self, latent: Latent, step: int) -> Latent:
        """The latent ``[N]`` that step ``step`` (from 0) led to; use this one, or its gradient is not seen."""
        return type(latent)(*_Passed.apply(self.norms, step, self.limit, *latent))  # pyright: ignore

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        """Views, so read them after the backward pass; steps count from 1, the one that the first action leads to."""
        names = ("gradient_norm", "gradient_norm_clipped")[: 2 if self.limit else 1]
        return {
            f"{name}/step_{step + 1}": norm
            for name, norms in zip(names, self.norms, strict=False)
            for step, norm in enumerate(norms)
        }


def watch_steps(horizon: int, limit: float, device: torch.device) -> Watch:
    return Watch(torch.zeros(2, horizon, device=device), limit)


class _Passed(torch.autograd.Function):
    """Identity. Its backward sees the gradients of all parts of a latent at once, which a hook on a tensor does not."""

    @staticmethod
    def forward(ctx: Any, norms: Tensor, step: int, limit: float, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.norms, ctx.step, ctx.limit = norms, step, limit
        return tuple(part.view_as(part) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        squares = torch.stack(
            [gradient.float().reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
        ).sum(0)
        norm = len(squares) * squares.sqrt()
        ctx.norms[:, ctx.step] = root_mean_square(norm)
        if ctx.limit:
            share = (norm / ctx.limit).clamp_min(1).reciprocal()
            ctx.norms[1, ctx.step] = root_mean_square(share * norm)
            gradients = tuple(share.view(-1, *[1] * (g.ndim - 1)).to(g.dtype) * g for g in gradients)
        return None, None, None, *gradients


def root_mean_square(values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    return values.square().mean().sqrt()
