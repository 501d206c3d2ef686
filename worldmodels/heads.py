"""Small networks from features to distributions: rewards, ends of episodes, values."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from worldmodels.distributions import Bernoulli, TwoHot, UnitNormal
from worldmodels.layers import MLP, Activation, MemberMLP, Norm

OUTPUTS = {"two_hot": TwoHot, "normal": UnitNormal, "bernoulli": Bernoulli}


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    layers: int
    units: int
    norm: Norm
    activation: Activation
    output: Literal["two_hot", "normal", "bernoulli"]
    output_scale: float  # of the last layer's initial weights; 0 makes the first prediction exactly 0

    def build(self, inputs: int) -> "Head":
        return Head(inputs, self)

    def build_members(self, members: int, inputs: int) -> "MemberHead":
        return MemberHead(members, inputs, self)


class Head(nn.Module):
    """Features to a distribution with ``mean`` and ``loss(target)``."""

    def __init__(self, inputs: int, config: HeadConfig):
        super().__init__()
        self.output = OUTPUTS[config.output]
        self.mlp = MLP(
            inputs,
            config.units,
            config.layers,
            self.output.size,
            norm=config.norm,
            activation=config.activation,
            output_scale=config.output_scale,
        )

    def forward(self, features: Float[Tensor, "*B F"]) -> TwoHot | UnitNormal | Bernoulli:
        return self.output(self.mlp(features))


class MemberHead(nn.Module):
    """R heads of the same shape and other weights, evaluated together: distributions with a leading axis R."""

    def __init__(self, members: int, inputs: int, config: HeadConfig):
        super().__init__()
        self.members, self.output = members, OUTPUTS[config.output]
        self.mlp = MemberMLP(
            members,
            inputs,
            config.units,
            config.layers,
            self.output.size,
            norm=config.norm,
            activation=config.activation,
        )
        self.mlp.output.weight.data *= config.output_scale

    def forward(self, features: Float[Tensor, "*B F"]) -> TwoHot | UnitNormal | Bernoulli:
        flat = features.flatten(0, -2)
        return self.output(self.mlp(flat.expand(self.members, *flat.shape)).unflatten(1, features.shape[:-1]))
