"""Pixels: the environment model of I2A, whose latent is the picture itself and whose step draws the next one.

Paper: Weber, Racaniere et al., "Imagination-Augmented Agents for Deep Reinforcement Learning", NeurIPS 2017,
arXiv 1707.06203: an action-conditional model of the next picture and its reward, from this picture and action alone.

    code_t    = E(obs_t), for each patch of the picture
    body      = [code_t, a_t as planes] through pool-and-inject blocks
    picture   obs_{t+1} ~ N(obs_t + D(body), 1), of which a dream takes the mean, cut to [0, 1]
    step_{t+1}   what the step did, of all positions of the body; reward and continue are heads of it
    latent    obs_t, code_t, step_t; where an episode begins step_t is 0.  features_t = [code_t, step_t]

A block of the paper's re-implementations: every channel's greatest value is tiled over the picture (pool and inject),
branches of a 1x1 and a wider convolution, a 1x1 that joins them; its output is appended to its input. D begins at 0:
before it has learned anything, nothing moves. Dreams are deterministic.

The model is Markov in the picture: what one picture does not show (a velocity, what is behind a wall) is not known. It
fits boards, and anything else that is all in sight. Rewards are of the picture and action that a step left from, as in
the paper, so a latent says what arrived with it, seen or dreamt, and a poor picture spoils no reward.

Loss terms. ``image``: squared error of obs_t + D(body), not cut, summed over the pixels of an image scaled to [0, 1];
mean over the steps that have one before them in their episode that is known. ``reward`` and ``continue``: of these and
of those that begin an episode. One step far, from real pictures, as in the paper; all steps at once.

Deviations: the paper's MiniPacman model tells seven colours apart for each pixel by cross-entropy; its Sokoban model is
in an appendix that was not read, so sizes are those of a re-implementation for MiniPacman. Here pictures are RGB
of any size, and an uncertain one is a blur. Patches are positions and a picture that they do not fill is filled up with
black. An agent sees a code, which the body reads in the picture's place, so it learns from all three terms. Branches
keep the size where the re-implementation has a 10x10 convolution after a stride. What a step did reads each channel's
greatest value too. Ends are predicted like rewards, which weigh 1 and there 0.1. Blocks and codes are normalised,
weights begin as in DreamerV3.

Metrics: ``copied``, what ``image`` would be of a model that always draws the picture it has.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor, nn

from worldmodels.base import Decoding, Losses, Rewarded, Sequence, Spaces, Storing, WorldModel
from worldmodels.decoders import image_loss, to_image, to_pixels
from worldmodels.encoders import ChannelNorm, conv, to_float, to_patches
from worldmodels.heads import HeadConfig
from worldmodels.layers import ACTIVATIONS, Activation, RMSNorm, linear
from worldmodels.rssm import mean
from worldmodels.strict import at_least
from worldmodels.vae_rnn import foretold


@dataclass(frozen=True, kw_only=True)
class Config:
    patch: int  # side of a position in pixels; best the size of a board's cells
    code: int  # numbers that an agent sees of each position
    depth: int  # channels of the body, and what each block appends
    blocks: int
    kernels: tuple[int, ...]  # side of each branch's convolution, in positions
    branches: tuple[int, ...]  # channels of each branch
    drawing: int  # channels of the decoder's hidden layer
    step: int  # numbers that say what a step did
    activation: Activation
    reward: HeadConfig
    continues: HeadConfig
    scales: dict[str, float]  # weight of every loss term

    def __post_init__(self) -> None:
        at_least(self, 1, "patch", "code", "depth", "blocks", "drawing", "step")
        if not self.kernels or min(self.kernels) < 1 or not all(kernel % 2 for kernel in self.kernels):
            raise ValueError(f"kernels must be odd numbers, one for each branch, got {self.kernels}")
        if len(self.branches) != len(self.kernels) or min(self.branches) < 1:
            raise ValueError(f"branches must be as many as kernels, each 1 or more, got {self.branches}")

    def build(self, spaces: Spaces) -> "Pixels":
        return Pixels(self, spaces)


class PixelsLatent(NamedTuple):
    """Float32; leading dimensions as the caller has them. ``code`` is that of ``image``, kept to be computed once."""

    image: Float[Tensor, "*B h w c"]  # in [0, 1]
    code: Float[Tensor, "*B G"]
    step: Float[Tensor, "*B S"]


class PictureEncoder(nn.Module):
    """A code for each patch, flat: rows, then columns, then channels."""

    def __init__(self, config: Config, image: tuple[int, int, int]):
        super().__init__()
        height, width, channels = image
        self.patch = config.patch
        self.padding = (0, 0, 0, -width % config.patch, 0, -height % config.patch)
        self.stem = conv(channels * config.patch**2, config.depth, 1)
        self.activation = ACTIVATIONS[config.activation]
        self.output = conv(config.depth, config.code, 1)
        self.norm = ChannelNorm(config.code)

    def forward(self, image: Float[Tensor, "N h w c"]) -> Float[Tensor, "N G"]:
        patches = to_patches(F.pad(image, self.padding), self.patch).permute(0, 3, 1, 2)
        code = self.norm(self.output(self.activation(self.stem(patches - 0.5))))
        return code.permute(0, 2, 3, 1).flatten(1).float()


class Inject(nn.Module):
    """A 1x1 convolution of the input and of its channels' greatest values, tiled; they are not tiled to compute it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.here = conv(inputs, outputs, 1)
        self.here.weight.data *= 0.5**0.5  # half of what is read
        self.anywhere = linear(inputs, outputs, scale=0.5**0.5, bias=False)

    def forward(self, x: Float[Tensor, "N i y x"]) -> Float[Tensor, "N o y x"]:
        return self.here(x) + self.anywhere(x.amax((2, 3)))[..., None, None]


class Block(nn.Module):
    """See the card: ``depth`` channels more than there were."""

    def __init__(self, inputs: int, config: Config):
        super().__init__()
        self.branches = list(config.branches)
        self.inject = Inject(inputs, sum(config.branches))  # the first layer of all branches
        pairs = zip(config.branches, config.kernels, strict=True)
        self.convs = nn.ModuleList(conv(channels, channels, kernel) for channels, kernel in pairs)
        self.join = conv(sum(config.branches), config.depth, 1)
        self.norm = ChannelNorm(config.depth)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "N i y x"]) -> Float[Tensor, "N o y x"]:
        parts = self.activation(self.inject(x)).split(self.branches, 1)
        branches = [self.activation(layer(part)) for layer, part in zip(self.convs, parts, strict=True)]
        return torch.cat([x, self.activation(self.norm(self.join(torch.cat(branches, 1))))], 1)


class Body(nn.Module):
    """Code and action to channels at every position, from which picture and step are read."""

    def __init__(self, config: Config, grid: tuple[int, int], actions: int):
        super().__init__()
        self.grid = grid
        self.from_code = conv(config.code, config.depth, 1)
        self.from_action = linear(actions, config.depth, bias=False)  # a 1x1 convolution of planes that are alike
        self.activation = ACTIVATIONS[config.activation]
        sizes = [config.depth * n for n in range(1, config.blocks + 2)]
        self.blocks = nn.Sequential(*(Block(size, config) for size in sizes[:-1]))
        self.size = sizes[-1]

    def forward(self, code: Float[Tensor, "N G"], action: Float[Tensor, "N A"]) -> Float[Tensor, "N o y x"]:
        positions = code.unflatten(-1, (*self.grid, -1)).permute(0, 3, 1, 2)
        return self.blocks(self.activation(self.from_code(positions) + self.from_action(action)[..., None, None]))


class Step(nn.Module):
    """What a step did: the body, thinned out, at every position and at its greatest."""

    def __init__(self, config: Config, inputs: int, positions: int):
        super().__init__()
        self.thin = conv(inputs, config.code, 1)
        self.output = linear(config.code * (positions + 1), config.step)
        self.norm = RMSNorm(config.step)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, body: Float[Tensor, "N i y x"]) -> Float[Tensor, "N S"]:
        thin = self.activation(self.thin(body))
        read = torch.cat([thin.permute(0, 2, 3, 1).flatten(1), thin.amax((2, 3))], -1)
        return self.activation(self.norm(self.output(read))).float()


class Change(nn.Module):
    """What is added to a picture, 0 at first."""

    def __init__(self, config: Config, inputs: int, image: tuple[int, int, int]):
        super().__init__()
        self.patch, self.image = config.patch, image
        self.hidden = conv(inputs, config.drawing, 1)
        self.activation = ACTIVATIONS[config.activation]
        self.output = conv(config.drawing, image[2] * config.patch**2, 1)
        nn.init.zeros_(self.output.weight)

    def forward(self, body: Float[Tensor, "N i y x"]) -> Float[Tensor, "N h w c"]:
        height, width, _ = self.image
        patches = self.output(self.activation(self.hidden(body))).float()
        return to_pixels(patches, self.patch)[:, :height, :width]


class Pixels(WorldModel, Rewarded, Decoding, Storing):
    """See the card at the top of the file."""

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__()
        self.config, self.spaces = config, spaces
        height, width, channels = spaces.image
        grid = (-(-height // config.patch), -(-width // config.patch))
        self.image_bytes = height * width * channels
        self.packed_bytes = self.image_bytes + 2 * config.step
        self.feature_dim = config.code * grid[0] * grid[1] + config.step
        self.encoder = PictureEncoder(config, spaces.image)
        self.body = Body(config, grid, spaces.action_dim)
        self.decoder = Change(config, self.body.size, spaces.image)
        self.step = Step(config, self.body.size, grid[0] * grid[1])
        self.reward_head = config.reward.build(config.step)
        self.continue_head = config.continues.build(config.step)

    def initial(self, batch: int) -> PixelsLatent:
        device = self.encoder.stem.weight.device
        step = torch.zeros(batch, self.config.step, device=device)
        return self._showing(torch.zeros(batch, *self.spaces.image, device=device), step)

    def _showing(self, image: Float[Tensor, "*B h w c"], step: Float[Tensor, "*B S"]) -> PixelsLatent:
        """The latent of a picture, its code computed."""
        code = self.encoder(image.reshape(-1, *self.spaces.image)).unflatten(0, step.shape[:-1])
        return PixelsLatent(image, code, step)

    def observe(
        self,
        latent: PixelsLatent,
        prev_action: Float[Tensor, "B A"],
        obs: UInt8[Tensor, "B h w c"],
        is_first: Bool[Tensor, " B"],
        generator: Generator | None = None,
    ) -> PixelsLatent:
        step = self.step(self.body(latent.code, prev_action))
        return self._showing(to_float(obs), step.masked_fill(is_first.unsqueeze(-1), 0))

    def imagine(
        self, latent: PixelsLatent, action: Float[Tensor, "B A"], generator: Generator | None = None
    ) -> PixelsLatent:
        """The mean of what is predicted; nothing is drawn by chance. Pixels that are cut have no gradient."""
        body = self.body(latent.code, action)
        return self._showing((latent.image + self.decoder(body)).clamp(0, 1), self.step(body))

    def features(self, latent: PixelsLatent) -> Float[Tensor, "*B F"]:
        return torch.cat([latent.code, latent.step], -1)

    def filter(self, batch: Sequence, generator: Generator | None = None) -> PixelsLatent:
        return self._see(batch)[0]

    def _see(self, batch: Sequence) -> tuple[PixelsLatent, Float[Tensor, "B T h w c"], Float[Tensor, "N o y x"]]:
        """The posterior ``[B, T]``; of each step the picture before it, and the body ``[B * T]`` that led to it."""
        size, length = batch.reward.shape
        before = self.initial(size) if batch.context is None else self.unpack(batch.context)
        seen = self._showing(to_float(batch.obs), before.step.unsqueeze(1).expand(-1, length, -1))
        image = torch.cat([before.image.unsqueeze(1), seen.image[:, :-1]], 1)
        code = torch.cat([before.code.unsqueeze(1), seen.code[:, :-1]], 1)
        action = torch.cat([batch.prev_action.unsqueeze(1), batch.action[:, :-1]], 1)
        body = self.body(code.flatten(0, 1), action.flatten(0, 1))
        step = self.step(body).unflatten(0, (size, length)).masked_fill(batch.is_first.unsqueeze(-1), 0)
        return seen._replace(step=step), image, body

    def loss(self, batch: Sequence) -> tuple[PixelsLatent, Losses]:
        latent, image, body = self._see(batch)
        before, obs = image.flatten(0, 1), batch.obs.flatten(0, 1)
        weight = foretold(batch)
        known = weight + batch.is_first.float()
        terms = {
            "image": mean(image_loss(before + self.decoder(body), obs), weight.flatten()),
            "reward": mean(self.reward_head(latent.step).loss(batch.reward), known),
            "continue": mean(self.continue_head(latent.step).loss((~batch.is_terminal).float()), known),
        }
        return latent, Losses(terms, {"copied": mean(image_loss(before, obs), weight.flatten())})

    def reward(self, latent: PixelsLatent) -> Float[Tensor, "*B"]:
        return self.reward_head(latent.step).mean

    def continues(self, latent: PixelsLatent) -> Float[Tensor, "*B"]:
        return self.continue_head(latent.step).mean

    @torch.no_grad()
    def decode(self, latent: PixelsLatent) -> UInt8[Tensor, "*B h w c"]:
        """The latent's own picture: of what was seen it is exact."""
        return to_image(latent.image)

    def pack(self, latent: PixelsLatent) -> UInt8[Tensor, "*B L"]:
        """The picture in bytes, exact if it was seen, and the step in bfloat16. The code is computed anew."""
        step = latent.step.detach().to(torch.bfloat16).contiguous().view(torch.uint8)
        return torch.cat([to_image(latent.image).flatten(-3), step], -1)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> PixelsLatent:
        pixels, rest = packed.split([self.image_bytes, 2 * self.config.step], -1)
        step = rest.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()  # aligned
        return self._showing(to_float(pixels.unflatten(-1, self.spaces.image)), step)
