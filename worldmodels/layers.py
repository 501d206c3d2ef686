"""Layers that several networks share: normalisation, block-diagonal and plain linear layers, MLPs."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["silu", "elu", "relu"]
Norm = Literal["rms", "layer", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "elu": F.elu, "relu": F.relu}


def initialise(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Truncated normal of standard deviation ``scale / sqrt(fan_in)``, cut at two of the untruncated ones (DreamerV3).

    1.1368 restores the deviation that the cut takes away.
    """
    std = scale * 1.1368 / math.sqrt(fan_in)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std) if std > 0 else nn.init.zeros_(weight)


def step_precision(rows: int, like: Tensor) -> AbstractContextManager[Any]:
    """Around a loop of small steps, each of ``rows`` rows on the device of ``like``: float32 on a CPU if they are few.

    Casting to bfloat16 and back then takes longer than its products save: measured at 128 rows, and not at 1024.
    """
    if like.device.type == "cpu" and rows < 512:
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def product_dtype(device: torch.device) -> torch.dtype:
    """What layers make of their input before they multiply it: autocast's dtype, float32 where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware does: every GPU that PyTorch says so of, CPUs with AVX512 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def normalise(x: Float[Tensor, "*B U"], eps: float) -> tuple[Float[Tensor, "*B U"], Float[Tensor, "*B 1"]]:
    """``x`` in float32 divided by the root of its mean square over the last axis, and what it was multiplied by."""
    x = x.float()
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


class RMSNormalise(torch.autograd.Function):
    """``F.rms_norm`` of the last axis with its gradient written out.

    A CPU has no kernel for it: autograd would go back through squares, means and roots one by one, in three times the
    time of these.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = normalise(x, eps)
        ctx.save_for_backward(normed, scale, weight)
        return (normed * weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        normed, scale, weight = ctx.saved_tensors
        along = grad.float() * normed
        inner = (along @ weight).unsqueeze(-1).div_(-len(weight))
        dx = (grad.float() * weight).addcmul_(normed, inner).mul_(scale)
        return dx.to(grad.dtype), along.flatten(0, -2).sum(0), None


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis with eps 1e-4, in the dtype of the input (DreamerV3)."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            if torch.is_grad_enabled():
                return RMSNormalise.apply(x, self.weight, 1e-4)  # pyright: ignore[reportReturnType]
            return normalise(x, 1e-4)[0].mul_(self.weight).to(x.dtype)
        # float32 inside whatever the input is: the fused kernel wants one dtype for input and weight
        return F.rms_norm(x.float(), self.weight.shape, self.weight, 1e-4).to(x.dtype)


def make_norm(kind: Norm, size: int) -> nn.Module:
    """A normalisation of the last axis."""
    return {"rms": RMSNorm, "layer": lambda n: nn.LayerNorm(n, eps=1e-3), "none": lambda _: nn.Identity()}[kind](size)


def linear(inputs: int, outputs: int, scale: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear layer initialised as in DreamerV3; ``scale`` 0 gives zeros."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    initialise(layer.weight.data, inputs, scale)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class BlockLinear(nn.Module):
    """A linear layer whose weight is block-diagonal: block i of the output sees block i of the input only.

    Initialised as in DreamerV3's code, which counts all inputs and not those of one block.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, fan_in: int | None = None):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"{blocks} blocks divide neither or only one of {inputs} inputs and {outputs} outputs")
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))
        initialise(self.weight.data, fan_in or inputs)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        blocks, _, outputs = self.weight.shape
        out = self.by_block(x.reshape(-1, x.shape[-1]), self.bias.view(blocks, 1, outputs))
        return out.transpose(0, 1).reshape(*x.shape[:-1], -1)

    def by_block(self, x: Float[Tensor, "N I"], added: Float[Tensor, "G _ O"]) -> Float[Tensor, "G N O"]:
        """Block by block, as it is computed: with ``added`` in place of the bias."""
        blocks, inputs, _ = self.weight.shape
        return torch.baddbmm(added, x.view(-1, blocks, inputs).transpose(0, 1), self.weight)


class MLP(nn.Module):
    """``layers`` times linear, norm, activation; then a linear output if ``outputs`` is not 0."""

    def __init__(
        self,
        inputs: int,
        units: int,
        layers: int,
        outputs: int = 0,
        *,
        norm: Norm = "rms",
        activation: Activation = "silu",
        output_scale: float = 1.0,
    ):
        super().__init__()
        sizes = [inputs] + [units] * layers
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(make_norm(norm, units) for _ in range(layers))
        self.activation = ACTIVATIONS[activation]
        self.output = linear(sizes[-1], outputs, output_scale) if outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        return self.output(x)


class MemberLinear(nn.Module):
    """K linear layers in one batched product: group k of the input meets the weights of member k only."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        initialise(self.weight.data, inputs)

    def forward(self, x: Float[Tensor, "K N I"]) -> Float[Tensor, "K N O"]:
        return torch.baddbmm(self.bias, x, self.weight)


class MemberNorm(nn.Module):
    """``make_norm`` with a scale, and for layer norm a shift, of each member's own."""

    def __init__(self, kind: Norm, members: int, size: int):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(members, 1, size)) if kind != "none" else None
        self.bias = nn.Parameter(torch.zeros(members, 1, size)) if kind == "layer" else None

    def forward(self, x: Float[Tensor, "K N U"]) -> Float[Tensor, "K N U"]:
        if self.weight is None:
            return x
        size = x.shape[-1:]
        if self.bias is None:
            return (F.rms_norm(x.float(), size, eps=1e-4) * self.weight).to(x.dtype)
        return torch.addcmul(self.bias, F.layer_norm(x.float(), size, eps=1e-3), self.weight).to(x.dtype)


class MemberMLP(nn.Module):
    """K ``MLP``s of the same shape and other weights, evaluated together."""

    def __init__(
        self, members: int, inputs: int, units: int, layers: int, outputs: int, *, norm: Norm, activation: Activation
    ):
        super().__init__()
        sizes = [inputs] + [units] * layers
        self.layers = nn.ModuleList(MemberLinear(members, a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(MemberNorm(norm, members, units) for _ in range(layers))
        self.activation = ACTIVATIONS[activation]
        self.output = MemberLinear(members, sizes[-1], outputs)

    def forward(self, x: Float[Tensor, "K N I"]) -> Float[Tensor, "K N O"]:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        return self.output(x)
