"""What agents keep that learn from their own plans: the last steps, in buffers, so that a checkpoint has them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodels.distributions import random_uniform

HELD_OUT = 5  # every fifth step is not learned from


class Ring(nn.Module):
    """The last steps: features and what to do there. ``written`` counts them, those overwritten too."""

    features: Tensor
    targets: Tensor
    written: Tensor

    def __init__(self, size: int, features: int, targets: tuple[int, int]):
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(size, features))
        self.register_buffer("targets", torch.zeros(size, *targets))
        self.register_buffer("written", torch.tensor(0))

    @torch.no_grad()
    def add(self, features: Float[Tensor, "B F"], targets: Float[Tensor, "B G A"]) -> None:
        slots = (self.written + torch.arange(len(features), device=self.written.device))[-self.size :] % self.size
        self.features[slots] = features[-self.size :].float()
        self.targets[slots] = targets[-self.size :]
        self.written += len(features)

    def draw(self, number: int, held_out: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N, F] and targets [N, G, A] of random steps, held out or not; 1, or 0 where there are none."""
        count = self.written.clamp_max(self.size)
        among = count // HELD_OUT if held_out else count - count // HELD_OUT
        dice = (random_uniform((number,), self.features, None) * among).long().minimum((among - 1).clamp_min(0))
        slots = HELD_OUT * dice + HELD_OUT - 1 if held_out else dice + dice // (HELD_OUT - 1)
        slots = slots.clamp_max(self.size - 1)
        return self.features[slots], self.targets[slots], (among > 0).float()
