"""A price that is learned: how dear something has to be for its mean to be what is wanted (a Lagrange multiplier).

    log price sg(x - target),  so that the price falls while x is above the target, and rises while it is below

SAC's temperature (Haarnoja et al. 2018, arXiv 1812.05905) with x the entropy, and Offline DreamerV2's weight of
doubt (Lu et al. 2023, 2206.04779), with x what doubt costs, which is proportional to its price.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Multiplier(nn.Module):
    """See the card at the top of the file. Above 0 always."""

    def __init__(self, initial: float, target: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))
        self.target = target

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.log.detach().exp()

    def loss(self, x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        return self.log * (x - self.target).detach()
