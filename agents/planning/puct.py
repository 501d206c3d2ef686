"""Tree search by an upper bound of what an action may be worth, as in MuZero (Schrittwieser et al., arXiv 1911.08265).

    argmax_a  q(a) + P(a) sqrt(n) / (1 + N(a)) (c1 + log((n + c2 + 1) / c2)),   n = 1 + sum_b N(b)       (App. B, Eq. 2)

q is Q stretched to [0, 1], 0 where there was no visit. The paper's n has no 1, so that nothing tells the first actions
apart; with it the prior does, as in DeepMind's mctx. With one simulation the result is the prior's best action.

Not here: EfficientZero's guess of Q for actions that were not visited, and AlphaZero's Q that is never stretched.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from agents.planning.noise import dirichlet_noise, gumbel_noise
from agents.planning.tree import Nodes, Recurrent, Root, Searched, grow, log_probs, possible, searched


@dataclass(frozen=True, kw_only=True)
class PUCT:
    """MuZero's search. When exploring, the root's prior is mixed with noise and the action is drawn by visits.

    The policy to learn is the share of visits. MuZero's values: c1 1.25, c2 19652, noise_share 0.25; 50 simulations
    and noise 0.25 on Atari, 800 and 0.03 to 0.3 on board games.
    """

    type: Literal["puct"]
    simulations: int
    max_depth: int
    c1: float
    c2: float
    stretch: Literal["tree", "siblings"]  # by the extremes ever seen in the tree (MuZero), or at the node (mctx)
    least_range: float  # a smaller range of Q is stretched as if it were this; EfficientZero 0.01, mctx 1e-8
    noise: float  # concentration alpha of the Dirichlet distribution
    noise_share: float  # in the root's prior
    temperature: float  # the action is drawn by N^(1 / temperature); 0: the most visited one

    def __post_init__(self) -> None:
        check_size(self.simulations, self.max_depth)
        for name in ("c2", "least_range", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("c1", "temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.noise_share <= 1:
            raise ValueError(f"noise_share must be in [0, 1], not {self.noise_share}")

    def __call__(
        self,
        root: Root,
        recurrent: Recurrent,
        generator: Generator | None,
        *,
        explore: bool,
        invalid: Bool[Tensor, "B A"] | None = None,
    ) -> Searched:
        """Search from each root. ``invalid`` actions are not taken there; further down the model knows no such mask."""
        valid = possible(root, invalid)
        logits = log_probs(root.logits, valid)
        if explore and self.noise_share:
            noise = dirichlet_noise(valid, self.noise, logits, generator)
            logits = torch.log((1 - self.noise_share) * logits.exp() + self.noise_share * noise)
        stretched = by_tree if self.stretch == "tree" else by_siblings

        def scores(nodes: Nodes) -> Float[Tensor, "B n A"]:
            return stretched(nodes, self.least_range) + bonus(nodes, self.c1, self.c2)

        tree = grow(
            root._replace(logits=logits),
            recurrent,
            lambda nodes: scores(nodes).masked_fill(~valid.unsqueeze(1), -torch.inf).argmax(-1),
            lambda nodes: scores(nodes).argmax(-1),
            simulations=self.simulations,
            max_depth=self.max_depth,
            generator=generator,
        )
        visits, prior = tree.first(1).visits, logits.exp().unsqueeze(1)
        if explore and self.temperature:
            action = (visits.log() / self.temperature + gumbel_noise(visits, generator)).argmax(-1)
        else:
            action = (visits + 0.5 * prior).argmax(-1)  # the prior decides between equal counts
        return searched(tree, action, visits / self.simulations)


def check_size(simulations: int, max_depth: int) -> None:
    if simulations < 1 or max_depth < 1:
        raise ValueError(f"simulations and max_depth must be 1 or more, not {simulations} and {max_depth}")


def bonus(nodes: Nodes, c1: float, c2: float) -> Float[Tensor, "B n A"]:
    """The second term of Eq. 2, what is added for the prior and for few visits."""
    count = 1 + nodes.visits.sum(-1, keepdim=True)
    return nodes.logits.exp() * count.sqrt() / (1 + nodes.visits) * exploration_rate(count, c1, c2)


def exploration_rate(count: Float[Tensor, "*B"], c1: float, c2: float) -> Float[Tensor, "*B"]:
    """c1 + log((n + c2 + 1) / c2); the logarithm matters from some thousand visits on."""
    return c1 + torch.log((count + c2 + 1) / c2)


def by_tree(nodes: Nodes, least_range: float) -> Float[Tensor, "B n A"]:
    """Q stretched to [0, 1] by the least and the greatest one ever seen in the tree (MuZero, App. B, Eq. 5)."""
    return stretch(nodes, nodes.low, nodes.high, least_range)


def by_siblings(nodes: Nodes, least_range: float) -> Float[Tensor, "B n A"]:
    """Q stretched by the least and the greatest among those at the node and the node's own value (mctx)."""
    own = nodes.mean_value
    q = torch.where(nodes.visits > 0, nodes.q, own.unsqueeze(-1))
    return stretch(nodes, torch.minimum(own, q.amin(-1)), torch.maximum(own, q.amax(-1)), least_range)


def stretch(
    nodes: Nodes, low: Float[Tensor, "B #n"], high: Float[Tensor, "B #n"], least_range: float
) -> Float[Tensor, "B n A"]:
    q = (nodes.q - low.unsqueeze(-1)) / (high - low).clamp_min(least_range).unsqueeze(-1)
    return q.masked_fill(nodes.visits == 0, 0)
