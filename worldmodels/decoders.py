"""Latents to pixels. A decoder draws images as float ``[N, h, w, c]``, 0 for black and 1 for white.

Its ``loss`` is the squared error summed over the pixels of an image scaled to [0, 1] (uint8, or float already),
computed in its own layout.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Real, UInt8
from torch import Tensor, nn

from worldmodels.encoders import ChannelNorm, conv, difference, patch_seed, to_patches
from worldmodels.layers import ACTIVATIONS, MLP, Activation, BlockLinear, RMSNorm, initialise, linear


class SigmoidImageLoss(torch.autograd.Function):
    """Squared error between sigmoid(logits) and an image, summed; loss and gradient in one go over the pixels.

    Left to autograd, the float image, the difference, its square and their gradients would each be written and read
    again; at 12 288 values an image that is the larger part of a small decoder's time on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, image: Tensor) -> Tensor:
        slope = torch.empty_like(logits)
        loss = torch.empty(len(logits), device=logits.device)
        # a few images at a time stay in a processor's cache; a GPU takes all at once
        size = 32 if logits.device.type == "cpu" else len(logits)
        for part in (slice(i, i + size) for i in range(0, len(logits), size)):
            drawn = torch.sigmoid(logits[part].float())
            error = difference(drawn, image[part])
            slope[part] = torch.addcmul(drawn, drawn, drawn, value=-1).mul_(error)
            loss[part] = error.square_().flatten(1).sum(1)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        return slope * (2 * grad).to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)), None


def sigmoid_image_loss(logits: Float[Tensor, "N ..."], image: Real[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    """Squared error of sigmoid(logits) against an image of the same layout scaled to [0, 1], summed over pixels."""
    return SigmoidImageLoss.apply(logits, image)  # pyright: ignore[reportReturnType]


def to_pixels(patches: Float[Tensor, "N p h w"], patch: int) -> Float[Tensor, "N y x c"]:
    """Undo ``to_patches``: channels become the pixels of square patches."""
    return rearrange(patches, "n (p q c) h w -> n (h p) (w q) c", p=patch, q=patch)


def image_loss(prediction: Float[Tensor, "N h w c"], image: Real[Tensor, "N h w c"]) -> Float[Tensor, " N"]:
    """Squared error summed over the pixels of an image scaled to [0, 1]."""
    return (difference(prediction.float(), image) ** 2).sum((-3, -2, -1))


def to_image(prediction: Float[Tensor, "*B h w c"]) -> UInt8[Tensor, "*B h w c"]:
    """[0, 1] to 0..255, clamped and rounded."""
    return (prediction.detach().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class UpsampleDecoder:
    """DreamerV3: a 4x4 seed from deter (block-diagonal) and stoch (MLP), then nearest x2 and convolution 5x5."""

    type: Literal["upsample"]
    depth: int
    mults: tuple[int, ...]  # channels of the encoder's stages, times depth; walked backwards
    units: int
    blocks: int

    def build(self, image: tuple[int, int, int], deter: int, stoch: int) -> "UpsampleConv":
        return UpsampleConv(self, image, deter, stoch)


class UpsampleConv(nn.Module):
    def __init__(self, config: UpsampleDecoder, image: tuple[int, int, int], deter: int, stoch: int):
        super().__init__()
        height, width, channels = image
        stages = len(config.mults)
        self.seed = (height >> stages, width >> stages)
        sizes = [config.depth * m for m in reversed(config.mults)]
        flat = self.seed[0] * self.seed[1] * sizes[0]
        self.from_deter = BlockLinear(deter, flat, config.blocks)
        self.from_stoch = MLP(stoch, 2 * config.units, 1, flat)
        self.seed_norm = RMSNorm(sizes[0])
        self.convs = nn.ModuleList(conv(a, b, 5) for a, b in zip(sizes, [*sizes[1:], channels], strict=True))
        self.norms = nn.ModuleList(ChannelNorm(b) for b in sizes[1:])

    def logits(self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w p"]:
        """What the sigmoid makes an image of, its pixels as channels of patches of 2."""
        blocks = self.from_deter.weight.shape[0]
        # each block of deter fills its own channels, at every pixel of the seed
        x = rearrange(
            self.from_deter(deter), "n (g h w c) -> n h w (g c)", g=blocks, h=self.seed[0], w=self.seed[1]
        ) + self.from_stoch(stoch).unflatten(-1, (*self.seed, -1))
        x = F.silu(self.seed_norm(x)).permute(0, 3, 1, 2)
        for layer, norm in zip(self.convs[:-1], self.norms, strict=True):  # pyright: ignore[reportArgumentType]
            larger = conv_upsampled(layer, x)  # pyright: ignore[reportArgumentType]
            x = F.silu(norm(to_pixels(larger, 2).permute(0, 3, 1, 2)))
        return conv_upsampled(self.convs[-1], x).permute(0, 2, 3, 1)  # pyright: ignore[reportArgumentType]

    def forward(self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w c"]:
        return to_pixels(torch.sigmoid(self.logits(deter, stoch).float()).permute(0, 3, 1, 2), 2)

    def loss(
        self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"], image: Real[Tensor, "N h w c"]
    ) -> Float[Tensor, " N"]:
        return sigmoid_image_loss(self.logits(deter, stoch), to_patches(image, 2))


@cache
def _taps(device: torch.device) -> Float[Tensor, "2 3 5"]:
    """Which of three pixels the five taps of a kernel fall on, for the even and the odd pixels of a row doubled."""
    taps = torch.zeros(2, 3, 5)
    for odd, tap in product(range(2), range(5)):
        taps[odd, (odd + tap - 2) // 2 + 1, tap] = 1.0
    return taps.to(device)


def conv_upsampled(layer: nn.Conv2d, x: Float[Tensor, "N i h w"]) -> Float[Tensor, "N _ h w"]:
    """A convolution 5x5 of ``x`` enlarged twice (nearest), without enlarging it: its pixels as channels of patches.

    Each of the four pixels that one becomes sees 3x3 different ones. Taps that fall on the same pixel add up, so this
    is 9 products where there were 25, and the same sum but for its order.
    """
    taps = _taps(x.device).to(layer.weight.dtype)
    with torch.autocast(x.device.type, enabled=False):  # sums of weights are as exact as weights
        weight = torch.einsum("pau,qbv,oiuv->pqoiab", taps, taps, layer.weight).flatten(0, 2)
    assert layer.bias is not None
    return F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), layer.bias.repeat(4), padding=1)


@dataclass(frozen=True, kw_only=True)
class TransposedDecoder:
    """World Models, PlaNet, Dreamer V1 and V2: a linear layer, then transposed convolutions 5, 5, 6, 6 of stride 2.

    World Models squashes their output by a sigmoid, the others do not.
    """

    type: Literal["transposed", "transposed_sigmoid"]
    depth: int
    activation: Activation

    def build(self, image: tuple[int, int, int], deter: int, stoch: int) -> "TransposedConv":
        return TransposedConv(self, image, deter, stoch)


class TransposedConv(nn.Module):
    def __init__(self, config: TransposedDecoder, image: tuple[int, int, int], deter: int, stoch: int):
        super().__init__()
        if image[:2] != (64, 64):
            raise ValueError(f"the transposed decoder draws 64x64 images, not {image[0]}x{image[1]}: --env.size 64")
        self.seed = linear(deter + stoch, 32 * config.depth)
        sizes = [32 * config.depth, 4 * config.depth, 2 * config.depth, config.depth, image[2]]
        convs = [nn.ConvTranspose2d(a, b, k, stride=2) for a, b, k in zip(sizes, sizes[1:], (5, 5, 6, 6), strict=False)]
        for layer in convs:
            initialise(layer.weight.data, layer.weight.shape[0] * layer.weight.shape[2] ** 2)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        self.convs = nn.ModuleList(convs)
        self.activation = ACTIVATIONS[config.activation]
        self.squashed = config.type == "transposed_sigmoid"

    def raw(self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w c"]:
        """An image around 0, or what the sigmoid makes one of."""
        x = self.seed(torch.cat([deter, stoch], -1))[..., None, None]
        for layer in self.convs[:-1]:
            x = self.activation(layer(x))
        return self.convs[-1](x).permute(0, 2, 3, 1)

    def forward(self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w c"]:
        raw = self.raw(deter, stoch)
        return torch.sigmoid(raw.float()) if self.squashed else raw + 0.5

    def loss(
        self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"], image: Real[Tensor, "N h w c"]
    ) -> Float[Tensor, " N"]:
        if self.squashed:
            return sigmoid_image_loss(self.raw(deter, stoch), image)
        return image_loss(self(deter, stoch), image)


@dataclass(frozen=True, kw_only=True)
class PatchDecoder:
    """Made for CPUs, in no paper: a small seed, 3x3 convolutions with pixel shuffles, patches 1x1 at the end."""

    type: Literal["patch"]
    patch: int
    depth: int
    mults: tuple[int, ...]  # channels of the encoder's stages, times depth; walked backwards

    def build(self, image: tuple[int, int, int], deter: int, stoch: int) -> "PatchDeconv":
        return PatchDeconv(self, image, deter, stoch)


class PatchDeconv(nn.Module):
    def __init__(self, config: PatchDecoder, image: tuple[int, int, int], deter: int, stoch: int):
        super().__init__()
        self.patch, self.seed_size = config.patch, patch_seed(image, config.patch, len(config.mults))
        sizes = [config.depth * m for m in reversed(config.mults)]
        self.seed = linear(deter + stoch, self.seed_size[0] * self.seed_size[1] * sizes[0])
        self.seed_norm = RMSNorm(sizes[0])
        self.convs = nn.ModuleList(conv(a, 4 * b, 3) for a, b in pairwise(sizes))
        # none at the resolution of the patches, where it would cost as much as the convolution
        self.norms = nn.ModuleList([*(ChannelNorm(b) for b in sizes[1:-1]), nn.Identity()][: len(self.convs)])
        self.output = conv(sizes[-1], image[2] * config.patch**2, 1)

    def logits(self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w p"]:
        """What the sigmoid makes an image of, its pixels as channels of patches."""
        x = self.seed(torch.cat([deter, stoch], -1)).unflatten(-1, (*self.seed_size, -1))
        x = F.silu(self.seed_norm(x)).permute(0, 3, 1, 2)
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(to_pixels(layer(x), 2).permute(0, 3, 1, 2)))
        return self.output(x).permute(0, 2, 3, 1)

    def forward(self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"]) -> Float[Tensor, "N h w c"]:
        return to_pixels(torch.sigmoid(self.logits(deter, stoch).float()).permute(0, 3, 1, 2), self.patch)

    def loss(
        self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"], image: Real[Tensor, "N h w c"]
    ) -> Float[Tensor, " N"]:
        return sigmoid_image_loss(self.logits(deter, stoch), to_patches(image, self.patch))


Decoder = UpsampleDecoder | TransposedDecoder | PatchDecoder
