"""Pixels to vectors. The only place where uint8 becomes float.

Images arrive channels-last, ``[N, h, w, c]``; seen as ``[N, c, h, w]`` that is PyTorch's ``channels_last`` memory
format, so no copy is made and convolutions run in their fast layout. They are uint8, or float in [0, 1) once
``dequantise`` has made them so: encoders and decoders' losses take either.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Real
from torch import Generator, Tensor, nn

from worldmodels.distributions import random_uniform
from worldmodels.layers import ACTIVATIONS, Activation, RMSNorm, initialise, product_dtype


def to_float(image: Real[Tensor, "*B h w c"]) -> Float[Tensor, "*B h w c"]:
    """0..255 to [0, 1]; a float image is in [0, 1] already."""
    return image if image.is_floating_point() else image.float() / 255


def difference(drawn: Float[Tensor, "*B h w c"], image: Real[Tensor, "*B h w c"]) -> Float[Tensor, "*B h w c"]:
    """``drawn`` less ``to_float(image)``, in one pass less over the pixels."""
    return drawn - image if image.is_floating_point() else torch.sub(drawn, image.float(), alpha=1 / 255)


def dequantise(image: Real[Tensor, "*B h w c"], bits: int, generator: Generator | None) -> Real[Tensor, "*B h w c"]:
    """The ``bits`` highest of 8, with uniform noise in place of the others (PlaNet): float32 in [0, 1).

    8 bits: the image as it is, uint8 and without noise. A float image has its noise already and stays too.
    """
    if bits == 8 or image.is_floating_point():
        return image
    # 2^-18 short of a whole level: level + noise would else round up to the next one in float32
    noise = random_uniform(image.shape, image, generator) * (1 - 2**-18)
    return ((image >> (8 - bits)) + noise) / 2**bits


class ImageConv(nn.Conv2d):
    """A first convolution, of pixels in [-0.5, 0.5].

    Bytes keep their own scale, whole numbers less 127.5, and the weights are divided by 255 instead: that is one pass
    over the pixels and not three, and exact in bfloat16.
    """

    def forward(self, image: Real[Tensor, "N h w c"]) -> Float[Tensor, "N _ y x"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if image.is_floating_point():
            return super().forward((image - 0.5).permute(0, 3, 1, 2))
        pixels = image.to(product_dtype(image.device)).sub_(127.5).permute(0, 3, 1, 2)
        return self._conv_forward(pixels, self.weight / 255, self.bias)


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    kind: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Conv2d:
    """A convolution initialised as in DreamerV3; ``padding`` None keeps the size (before the stride)."""
    layer = kind(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding)
    initialise(layer.weight.data, inputs * kernel**2)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class ChannelNorm(nn.Module):
    """RMS normalisation over channels of ``[N, c, h, w]``; on channels_last memory that is the contiguous axis."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class PoolEncoder:
    """DreamerV3: stages of convolution 5x5, 2x2 max-pool, RMSNorm, SiLU down to 4 pixels."""

    type: Literal["pool"]
    depth: int
    mults: tuple[int, ...]  # channels of each stage, times depth

    def build(self, image: tuple[int, int, int]) -> "PoolConv":
        return PoolConv(self, image)


class PoolConv(nn.Module):
    def __init__(self, config: PoolEncoder, image: tuple[int, int, int]):
        super().__init__()
        height, width, channels = image
        stages = len(config.mults)
        if height % 2**stages or width % 2**stages:
            raise ValueError(
                f"an encoder of {stages} halvings needs an image size divisible by {2**stages}, not {image}"
            )
        sizes = [config.depth * m for m in config.mults]
        first = conv(channels, sizes[0], 5, kind=ImageConv)
        self.convs = nn.ModuleList([first, *(conv(a, b, 5) for a, b in pairwise(sizes))])
        self.norms = nn.ModuleList(ChannelNorm(size) for size in sizes)
        self.size = sizes[-1] * (height >> stages) * (width >> stages)

    def forward(self, image: Real[Tensor, "N h w c"]) -> Float[Tensor, "N E"]:
        x = image
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(F.max_pool2d(layer(x), 2)))
        return x.permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class StrideEncoder:
    """World Models, PlaNet, Dreamer V1 and V2: four convolutions 4x4 of stride 2, 64 pixels to 2."""

    type: Literal["stride"]
    depth: int  # channels are depth times 1, 2, 4, 8
    activation: Activation

    def build(self, image: tuple[int, int, int]) -> "StrideConv":
        return StrideConv(self, image)


class StrideConv(nn.Module):
    def __init__(self, config: StrideEncoder, image: tuple[int, int, int]):
        super().__init__()
        if image[:2] != (64, 64):
            raise ValueError(f"the stride encoder is made for 64x64 images, not {image[0]}x{image[1]}: --env.size 64")
        sizes = [config.depth * m for m in (1, 2, 4, 8)]
        first = conv(image[2], sizes[0], 4, stride=2, padding=0, kind=ImageConv)
        self.convs = nn.ModuleList([first, *(conv(a, b, 4, stride=2, padding=0) for a, b in pairwise(sizes))])
        self.activation = ACTIVATIONS[config.activation]
        self.size = sizes[-1] * 4

    def forward(self, image: Real[Tensor, "N h w c"]) -> Float[Tensor, "N E"]:
        x = image
        for layer in self.convs:
            x = self.activation(layer(x))
        return x.permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class PatchEncoder:
    """Made for CPUs, in no paper: patches embedded one by one (1x1), then 3x3 convolutions of stride 2.

    Full-resolution feature maps, which take most of the time of the published encoders on a CPU, never exist.
    """

    type: Literal["patch"]
    patch: int  # side of a patch in pixels
    depth: int
    mults: tuple[int, ...]  # channels of each stage, times depth

    def build(self, image: tuple[int, int, int]) -> "PatchConv":
        return PatchConv(self, image)


def patch_seed(image: tuple[int, int, int], patch: int, stages: int) -> tuple[int, int]:
    """Height and width left of an image after cutting it into patches and halving it ``stages - 1`` times."""
    factor = patch * 2 ** (stages - 1)
    if image[0] % factor or image[1] % factor:
        raise ValueError(f"patches of {patch} and {stages} stages need an image divisible by {factor}, not {image}")
    return image[0] // factor, image[1] // factor


def to_patches(image: Real[Tensor, "N h w c"], patch: int) -> Real[Tensor, "N y x p"]:
    """Cut into square patches whose pixels become channels; on bytes that is cheap."""
    return rearrange(image, "n (h p) (w q) c -> n h w (p q c)", p=patch, q=patch)


class PatchConv(nn.Module):
    def __init__(self, config: PatchEncoder, image: tuple[int, int, int]):
        super().__init__()
        height, width = patch_seed(image, config.patch, len(config.mults))
        self.patch = config.patch
        sizes = [config.depth * m for m in config.mults]
        self.stem = conv(image[2] * config.patch**2, sizes[0], 1, kind=ImageConv)
        self.convs = nn.ModuleList(conv(a, b, 3, stride=2) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(ChannelNorm(size) for size in sizes[1:])
        self.size = sizes[-1] * height * width

    def forward(self, image: Real[Tensor, "N h w c"]) -> Float[Tensor, "N E"]:
        x = F.silu(self.stem(to_patches(image, self.patch)))  # not normalised: at this size that costs as much
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(layer(x)))
        return x.permute(0, 2, 3, 1).flatten(1)


Encoder = PoolEncoder | StrideEncoder | PatchEncoder
