"""Tree search that improves the policy with any number of simulations: Gumbel MuZero (Danihelka et al., ICLR 2022,
https://openreview.net/forum?id=bERaNdoegnO), the full variant.

    root      of g + logits the best m actions, g ~ Gumbel(0, 1); Sequential Halving by g + logits + sigma(q)
    inside    argmax_a  pi'(a) - N(a) / (1 + sum_b N(b))                                                    (Eq. 14)
    policy    pi' = softmax(logits + sigma(completed q))                                                    (Eq. 11)
    completed q(a) where there was a visit, else                                                            (Eq. 10)
              v_mix = (v + sum_b N(b) sum_visited pi q / sum_visited pi) / (1 + sum_b N(b))                 (App. D)
    sigma(q)  = (c_visit + max_b N(b)) c_scale q                                                            (Eq. 8)

Without exploring g = 0. With one simulation the action is the prior's best one.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from agents.planning.noise import gumbel_noise
from agents.planning.puct import check_size
from agents.planning.tree import Nodes, Recurrent, Root, Searched, grow, log_probs, possible, searched

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Gumbel:
    """Gumbel MuZero's search; the policy to learn is pi'.

    The paper: c_visit 50, c_scale 1 for Go and chess with q as it is, 0.1 for Atari with q stretched to [0, 1]; 16
    considered actions.
    """

    type: Literal["gumbel"]
    simulations: int
    max_depth: int
    considered: int  # m; no more than there are possible actions
    c_visit: float
    c_scale: float
    stretch: bool  # completed q to [0, 1] at each node (mctx); for returns whose range is not known
    least_range: float  # a smaller range of q is stretched as if it were this; mctx 1e-8

    def __post_init__(self) -> None:
        check_size(self.simulations, self.max_depth)
        if self.considered < 1:
            raise ValueError(f"considered must be 1 or more, not {self.considered}")
        for name in ("c_visit", "c_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not self.least_range > 0:
            raise ValueError(f"least_range must be above 0, not {self.least_range}")

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
        noise = gumbel_noise(logits, generator) if explore else torch.zeros_like(logits)
        table = torch.tensor(halving_table(self.considered, self.simulations)).to(logits)
        counts = table[valid.sum(-1).clamp_max(self.considered)]  # [B, simulations]

        def best(nodes: Nodes, visits: Float[Tensor, "B 1 1"]) -> Int64[Tensor, "B 1"]:
            """Of the root's actions with so many visits."""
            score = (noise + self.raised(nodes).squeeze(1)).unsqueeze(1)
            return score.masked_fill((nodes.visits != visits) | ~valid.unsqueeze(1), -torch.inf).argmax(-1)

        tree = grow(
            root._replace(logits=logits),
            recurrent,
            lambda nodes: best(nodes, counts.gather(1, nodes.visits.sum(-1).long()).unsqueeze(2)),
            lambda nodes: proportional(self.raised(nodes).softmax(-1), nodes.visits),
            simulations=self.simulations,
            max_depth=self.max_depth,
            generator=generator,
        )
        final = tree.first(1)
        return searched(tree, best(final, final.visits.amax(-1, keepdim=True)), self.raised(final).softmax(-1))

    def raised(self, nodes: Nodes) -> Float[Tensor, "B n A"]:
        """Logits of the improved policy pi'."""
        q = completed(nodes)
        if self.stretch:
            low, high = q.amin(-1, keepdim=True), q.amax(-1, keepdim=True)
            q = (q - low) / (high - low).clamp_min(self.least_range)
        return nodes.logits + (self.c_visit + nodes.visits.amax(-1, keepdim=True)) * self.c_scale * q


def completed(nodes: Nodes) -> Float[Tensor, "B n A"]:
    """q where there was a visit, v_mix elsewhere."""
    return torch.where(nodes.visits > 0, nodes.q, mixed_value(nodes).unsqueeze(-1))


def mixed_value(nodes: Nodes) -> Float[Tensor, "B n"]:
    """v_mix: the model's value, and the mean q of visited actions by the prior, counted once for every visit."""
    prior = nodes.logits.exp().clamp_min(TINY)  # what was visited may have no chance in the prior
    seen = prior.masked_fill(nodes.visits == 0, 0)
    count = nodes.visits.sum(-1)
    mean = (seen * nodes.q).sum(-1) / seen.sum(-1).clamp_min(TINY)
    return (nodes.value + count * mean) / (1 + count)


def proportional(policy: Float[Tensor, "B n A"], visits: Float[Tensor, "B n A"]) -> Int64[Tensor, "B n"]:
    """The action whose next visit brings the shares of visits nearest to a policy (Eq. 14)."""
    return (policy - visits / (1 + visits.sum(-1, keepdim=True))).argmax(-1)


def halving(considered: int, simulations: int) -> tuple[int, ...]:
    """Sequential Halving (Karnin et al. 2013) by counts: simulation i goes to the best action visited so often before.

    ceil(log2 m) phases; each visits all that are left, at least once, and keeps the better half.
    """
    if considered <= 1:
        return tuple(range(simulations))
    phases, sequence = math.ceil(math.log2(considered)), []
    visits, left = 0, considered
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            sequence += [visits] * left
            visits += 1
        left = max(2, left // 2)
    return tuple(sequence[:simulations])


@cache
def halving_table(considered: int, simulations: int) -> tuple[tuple[int, ...], ...]:
    """``halving`` of 0 to ``considered`` actions."""
    return tuple(halving(m, simulations) for m in range(considered + 1))
