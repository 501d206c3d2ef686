"""Tree search over continuous actions: those of a node are K that were drawn there.

Sampled MuZero (Hubert et al. 2021, arXiv 2104.06303). Of K draws from a proposal beta each is 1 / K of the draws, so
the prior of the i-th is proportional to pi(a_i) / beta(a_i): 1 / K where beta is the policy itself, whose densities
would count twice as a prior. Gumbel MuZero searches the same way.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from agents.planning.tree import Embedding, Recurrent, Step
from worldmodels.distributions import random_normal


class Sampled(NamedTuple):
    """The embedding of a node, and the actions that a search may take there."""

    state: Embedding
    actions: Float[Tensor, "B K A"]

    def action(self, index: Int64[Tensor, " B"]) -> Float[Tensor, "B A"]:
        """The action with a number of its own in each row."""
        return torch.take_along_dim(self.actions, index[:, None, None], 1).squeeze(1)


def by_index(move: Callable[[Embedding, Float[Tensor, "B A"], Generator | None], Step]) -> Recurrent:
    """What a search calls, of a ``move`` from states by actions; the embedding of its step is ``Sampled`` again."""
    return lambda node, index, generator: move(node.state, node.action(index), generator)


def draw_actions(
    mean: Float[Tensor, "B A"],
    std: Float[Tensor, "B A"],
    count: int,
    wide: int,
    widening: float,
    generator: Generator | None,
    mode_first: bool = False,
) -> tuple[Float[Tensor, "B K A"], Float[Tensor, "B K"]]:
    """K = ``count`` draws from a policy tanh(N(mean, std)), in [-1, 1], and logits of their priors.

    ``wide`` of them come from a policy whose std is ``widening`` times as great: 12 of 16, 3 times, in EfficientZero V2
    (Wang et al. 2024, arXiv 2403.00564). beta is the mixture of both. tanh stretches pi and beta alike. With
    ``mode_first`` the first is tanh(mean), as if that had been drawn: no other prior is greater.
    """
    if not 0 <= wide <= count or count < 1 or not widening > 0:
        raise ValueError(
            f"1 or more actions, up to all of them widened by more than 0: not {count}, {wide}, {widening}"
        )
    scale = torch.ones(count, 1, device=mean.device)
    scale[count - wide :] = widening
    noise = scale * random_normal((len(mean), count, mean.shape[-1]), mean, generator)
    if mode_first:
        noise[:, 0] = 0
    # log (beta / pi) = log((1 - w) + w N(noise; 0, widening) / N(noise; 0, 1))
    ratio = (0.5 * (1 - widening**-2) * noise.square() - math.log(widening)).sum(-1)
    plain, widened = (math.log(share) if share else -math.inf for share in (1 - wide / count, wide / count))
    logits = -torch.logaddexp(torch.full_like(ratio, plain), widened + ratio)
    return torch.tanh(mean.unsqueeze(1) + std.unsqueeze(1) * noise), logits
