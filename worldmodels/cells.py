"""The deterministic part of an RSSM: how memory, stochastic latent and action make the next memory.

A cell has two methods so that what does not depend on the past runs once for a whole sequence:
``embed_action`` for all steps together, ``forward`` for one step.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from worldmodels.layers import ACTIVATIONS, Activation, BlockLinear, linear, make_norm


@dataclass(frozen=True, kw_only=True)
class BlockGRUConfig:
    """DreamerV3's GRU with block-diagonal recurrence."""

    type: Literal["block_gru"]
    deter: int
    hidden: int
    blocks: int

    def build(self, stoch: int, action: int) -> "BlockGRU":
        return BlockGRU(self, stoch, action)


class BlockGRU(nn.Module):
    """Block-diagonal GRU (DreamerV3, section "World model").

    The paper's first layer takes, for each block, that block of deter beside the embedded deter, stoch and action.
    Here it is the same sum as two layers: block-diagonal on deter, dense on what all blocks share.
    """

    def __init__(self, config: BlockGRUConfig, stoch: int, action: int):
        super().__init__()
        deter, hidden, self.blocks = config.deter, config.hidden, config.blocks
        fan_in = deter + 3 * hidden * self.blocks  # of the paper's code, which has one layer in place of two
        self.embed_deter, self.deter_norm = linear(deter, hidden), make_norm("rms", hidden)
        self.embed_stoch, self.stoch_norm = linear(stoch, hidden), make_norm("rms", hidden)
        self.action_layer, self.action_norm = linear(action, hidden), make_norm("rms", hidden)
        self.from_deter = BlockLinear(deter, deter, self.blocks, fan_in)
        self.from_shared = linear(3 * hidden, deter, scale=(3 * hidden / fan_in) ** 0.5, bias=False)
        self.norm = make_norm("rms", deter)
        self.gates = BlockLinear(deter, 3 * deter, self.blocks)
        self.act = ACTIVATIONS["silu"]

    def embed_action(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B I"]:
        """The action scaled back to [-1, 1] where it is outside, embedded."""
        action = action / action.detach().abs().clamp_min(1.0)
        return self.act(self.action_norm(self.action_layer(action)))

    def forward(
        self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"], embedded: Float[Tensor, "N I"]
    ) -> Float[Tensor, "N D"]:
        x_deter = self.act(self.deter_norm(self.embed_deter(deter)))
        x_stoch = self.act(self.stoch_norm(self.embed_stoch(stoch)))
        shared = F.linear(torch.cat([x_deter, x_stoch, embedded], -1), self.from_shared.weight, self.from_deter.bias)
        x = self.from_deter.by_block(deter, shared.unflatten(-1, (self.blocks, -1)).transpose(0, 1))
        x = self.act(self.norm(x.transpose(0, 1).flatten(-2)))
        gates = self.gates.by_block(x, self.gates.bias.view(self.blocks, 1, -1))
        # block by block to the end: only the next memory is brought back to [N, D]
        memory = deter.unflatten(-1, (self.blocks, -1)).transpose(0, 1)
        return gru_update(memory, *gates.float().chunk(3, -1)).transpose(0, 1).flatten(-2)


def gru_update(deter: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """Gate pre-activations to the next memory; the update gate starts nearly closed (Dreamer V2 and V3)."""
    candidate = tanh(torch.sigmoid(reset) * candidate)
    return torch.lerp(deter, candidate, torch.sigmoid(update - 1.0))


def tanh(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """By a sigmoid on a CPU where there is no gradient: torch takes a quarter of its tanh's time for one."""
    return torch.tanh(x) if x.requires_grad or x.device.type != "cpu" else 2 * torch.sigmoid(2 * x) - 1


class NormGRUCell(nn.Module):
    """A GRU with LayerNorm over its gate pre-activations (Dreamer V2)."""

    def __init__(self, inputs: int, deter: int):
        super().__init__()
        self.gates = linear(inputs + deter, 3 * deter, bias=False)
        self.norm = make_norm("layer", 3 * deter)

    def forward(self, x: Float[Tensor, "N I"], deter: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gates = self.norm(self.gates(torch.cat([x, deter], -1)).float())
        return gru_update(deter, *gates.chunk(3, -1))


@dataclass(frozen=True, kw_only=True)
class DenseGRUConfig:
    """A dense GRU behind one dense layer: the usual one (PlaNet, Dreamer V1) or with LayerNorm (Dreamer V2)."""

    type: Literal["gru", "norm_gru"]
    deter: int
    hidden: int
    activation: Activation

    def build(self, stoch: int, action: int) -> "DenseGRU":
        return DenseGRU(self, stoch, action)


class DenseGRU(nn.Module):
    """``x = act(W [stoch, action])``, then a GRU (PlaNet; Dreamer V1 and V2)."""

    def __init__(self, config: DenseGRUConfig, stoch: int, action: int):
        super().__init__()
        self.from_stoch, self.action_layer = linear(stoch, config.hidden), linear(action, config.hidden, bias=False)
        self.act = ACTIVATIONS[config.activation]
        self.gru = {"gru": nn.GRUCell, "norm_gru": NormGRUCell}[config.type](config.hidden, config.deter)

    def embed_action(self, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B I"]:
        """The action's share of the input layer."""
        return self.action_layer(action)

    def forward(
        self, deter: Float[Tensor, "N D"], stoch: Float[Tensor, "N Z"], embedded: Float[Tensor, "N I"]
    ) -> Float[Tensor, "N D"]:
        # autocast on CUDA runs nn.GRUCell in bfloat16, and memory is float32
        return self.gru(self.act(self.from_stoch(stoch) + embedded), deter).float()


Cell = BlockGRUConfig | DenseGRUConfig
