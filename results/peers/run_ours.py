"""Our DreamerV3, one whole update as ``benchmark.py update`` times it: run_ours.py SIZES PRECISION

SIZES: ``1m``, the published ones of our preset of that name; ``xs``, those of sheeprl's ``dreamer_v3_XS``, its
convolutions included, which are below because no config of ours has them; ``1m-patch`` and ``xs-patch``, the same with
the encoder and decoder of our presets ``cpu`` and ``patch``, which see patches of 4x4. Sampling from the replay and
writing latents back are included.
"""

import shlex
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from serve import BATCH, LENGTH, SIZE, parameters, serve
from torch import Tensor, nn

from agents.training import cli
from agents.training.benchmark.update import Case
from worldmodels.decoders import image_loss
from worldmodels.encoders import ChannelNorm, ImageConv, conv
from worldmodels.layers import RMSNorm, linear

COMMON = (
    f"--agent dreamer --task walker-walk --env.size {SIZE} --env.quality lean --collect.num-envs 1 "
    f"--collect.workers serial --training.device cpu --replay.batch {BATCH} --replay.length {LENGTH}"
)
XS = (
    "--world-model.cell '{type: norm_gru, deter: 256, hidden: 256, activation: silu}' --world-model.latent.classes 32 "
    "--world-model.units 256 --world-model.prior-layers 1 --world-model.norm layer --world-model.reward.units 256 "
    "--world-model.continues.units 256 --agent.actor.layers 1 --agent.actor.units 256 --agent.critic.layers 1 "
    "--agent.critic.units 256"
)
PRESETS = {"1m": "paper,1m", "1m-patch": "paper,1m,patch", "xs": "paper", "xs-patch": "paper,patch"}
CHANNELS = (24, 48, 96, 192)


@dataclass(frozen=True)
class Encoder:
    """Convolutions 4x4 of stride 2 with a border of 1, normalised: 64 pixels to 4."""

    def build(self, image: tuple[int, int, int]) -> "EncoderConv":
        return EncoderConv(image)


class EncoderConv(nn.Module):
    def __init__(self, image: tuple[int, int, int]):
        super().__init__()
        first = conv(image[2], CHANNELS[0], 4, 2, 1, kind=ImageConv)
        self.convs = nn.ModuleList([first, *(conv(a, b, 4, 2, 1) for a, b in pairwise(CHANNELS))])
        self.norms = nn.ModuleList(map(ChannelNorm, CHANNELS))
        self.size = CHANNELS[-1] * 16

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(layer(x)))
        return x.permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True)
class Decoder:
    """A 4x4 seed and transposed convolutions 4x4 of stride 2, normalised: the encoder backwards."""

    def build(self, image: tuple[int, int, int], deter: int, stoch: int) -> "DecoderConv":
        return DecoderConv(image, deter + stoch)


class DecoderConv(nn.Module):
    def __init__(self, image: tuple[int, int, int], inputs: int):
        super().__init__()
        self.seed, self.seed_norm = linear(inputs, 16 * CHANNELS[-1]), RMSNorm(CHANNELS[-1])
        sizes = list(pairwise((*reversed(CHANNELS), image[2])))
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            for a, b in sizes
        )
        self.norms = nn.ModuleList(ChannelNorm(b) for _, b in sizes[:-1])

    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        seed = self.seed(torch.cat([deter, stoch], -1)).unflatten(-1, (4, 4, -1))
        x = F.silu(self.seed_norm(seed)).permute(0, 3, 1, 2)
        for layer, norm in zip(self.convs[:-1], self.norms, strict=True):
            x = F.silu(norm(layer(x)))
        return self.convs[-1](x).permute(0, 2, 3, 1) + 0.5

    def loss(self, deter: Tensor, stoch: Tensor, image: Tensor) -> Tensor:
        return image_loss(self(deter, stoch), image)


def main(sizes: str, precision: str) -> None:
    words = COMMON.split() + (shlex.split(XS) if sizes.startswith("xs") else [])
    config = cli.parse([*words, "--preset", PRESETS[sizes], "--training.precision", precision]).config
    if sizes == "xs":
        own: Any = replace(config.world_model, encoder=Encoder(), decoder=Decoder())  # pyright: ignore
        config = replace(config, world_model=own)
    case = Case(config, torch.get_num_threads())
    model, agent = case.learner.model, case.learner.agent
    counts = parameters(
        encoder=model.encoder, decoder=model.decoder, world_model=model, actor=agent.actor, critic=agent.critic
    )
    serve(case.update, name=f"ours {sizes}", precision=precision, parameters=counts)


if __name__ == "__main__":
    main(*sys.argv[1:])
