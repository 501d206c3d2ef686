"""How much an ensemble doubts a step, by name, and what the doubt costs: what offline agents take from rewards.

Papers: MOPO (Yu et al. 2020, arXiv 2005.13239), LOMPO (Rafailov et al. 2021, 2012.11547), Offline DreamerV2 (Lu et al.
2023, 2206.04779).

    m_k, s_k       mean and std of the next stochastic latent z' by member k; of one-hot vectors p and sqrt(p (1 - p))
    meandis        mean_k |m_k - mean_j m_j|          Offline DreamerV2 on probabilities, LOMPO's ``mean`` on normals
    mean_spread    max_k |m_k - mean_j m_j|           MOPO's alternative
    max_sigma      max_k |s_k|                        MOPO; not 0 where members agree
    log_prob_std   std_k log p_k(z')                  LOMPO; z' is where the step led
    disagreement   the ensemble's own, see its docstring

    r~ = r - weight * u / U,   U the moving average of u over recorded steps

Units differ between names and models by orders of magnitude. Divided by U, a doubt of 1 is the mean one about what was
recorded, and ``weight`` is its price in units of reward. The papers have U = 1: ``rate`` 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldmodels.base import Ensembled, Latent, map_latent
from worldmodels.strict import at_least

Kind = Literal["meandis", "mean_spread", "max_sigma", "log_prob_std", "disagreement"]


def meandis(mean: Float[Tensor, "K *B Z"], std: Float[Tensor, "K *B Z"]) -> Float[Tensor, "*B"]:
    """Mean distance of the members' means from their mean."""
    return distances(mean).mean(0)


def mean_spread(mean: Float[Tensor, "K *B Z"], std: Float[Tensor, "K *B Z"]) -> Float[Tensor, "*B"]:
    """Greatest distance of a member's mean from their mean."""
    return distances(mean).amax(0)


def max_sigma(mean: Float[Tensor, "K *B Z"], std: Float[Tensor, "K *B Z"]) -> Float[Tensor, "*B"]:
    """Greatest norm of a member's standard deviations."""
    return torch.linalg.vector_norm(std, dim=-1).amax(0)


def distances(mean: Float[Tensor, "K *B Z"]) -> Float[Tensor, "K *B"]:
    return torch.linalg.vector_norm(mean - mean.mean(0), dim=-1)


def log_prob_std(log_prob: Float[Tensor, "K *B"]) -> Float[Tensor, "*B"]:
    """Standard deviation over the members (divided by K) of the log density that each gives to the same outcome."""
    return log_prob.std(0, correction=0)


OF_MOMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "meandis": meandis,
    "mean_spread": mean_spread,
    "max_sigma": max_sigma,
}


@torch.no_grad()
def doubt(
    kind: Kind, model: Ensembled, latent: Latent, action: Float[Tensor, "*B A"], arrived: Latent
) -> Float[Tensor, "*B"]:
    """u of the step from ``latent`` by ``action`` to ``arrived``, latents ``[*B]``; 0 or more, in its own unit."""
    if kind == "disagreement":
        return model.disagreement(latent, action)
    stats = model.member_stats(latent, action)
    if kind == "log_prob_std":
        return log_prob_std(model.member_log_prob(stats, arrived))
    return OF_MOMENTS[kind](*model.member_moments(stats))


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    kind: Kind
    weight: float  # lambda: reward that a doubt of 1 costs; 0: nothing
    rate: float  # of the moving average of recorded steps' doubts, the unit of all doubts; 0: each kind's own unit

    def __post_init__(self) -> None:
        at_least(self, 0, "weight", "rate")
        if self.rate > 1:
            raise ValueError(f"rate must be at most 1, not {self.rate}")


class Penalty(nn.Module):
    """See the card at the top of the file."""

    recorded: Tensor

    def __init__(self, config: PenaltyConfig):
        super().__init__()
        self.config = config
        self.register_buffer("recorded", torch.zeros(()))  # U, in the kind's own unit

    @torch.no_grad()
    def calibrate(
        self, model: Ensembled, latent: Latent, action: Float[Tensor, "N A"], weight: Float[Tensor, " N"]
    ) -> None:
        """Take the doubts about recorded steps into U: those within a posterior ``[B, T]``, N = B (T - 1).

        ``weight`` is 0 for what is no step. The first call sets U.
        """
        left, right = (map_latent(lambda part, at=at: part[:, at].flatten(0, 1), latent) for at in STEPS)
        found = doubt(self.config.kind, model, left, action, right)
        mean = (weight * found).sum() / weight.sum().clamp_min(1)
        share = torch.where(self.recorded > 0, self.config.rate, 1.0)
        self.recorded.copy_(torch.where(weight.sum() > 0, torch.lerp(self.recorded, mean, share), self.recorded))

    def forward(
        self, model: Ensembled, latent: Latent, action: Float[Tensor, "*B A"], arrived: Latent
    ) -> Float[Tensor, "*B"]:
        """u / U of imagined steps, or u where ``rate`` is 0."""
        found = doubt(self.config.kind, model, latent, action, arrived)
        return found / self.recorded.clamp_min(1e-8) if self.config.rate else found


STEPS = slice(None, -1), slice(1, None)  # of each step of a posterior or a dream: from, to


def told(
    price: Float[Tensor, ""] | float,
    doubts: Float[Tensor, "*B"],
    reward: Float[Tensor, "*B"],
    weight: Float[Tensor, "*B"],
) -> dict[str, Float[Tensor, ""]]:
    """Metrics: ``doubt`` (mean u / U) and ``penalty_to_reward`` (price times it over the mean absolute reward)."""
    count = weight.sum().clamp_min(1e-8)
    mean, size = (weight * doubts).sum() / count, (weight * reward.abs()).sum() / count
    return {"doubt": mean, "penalty_to_reward": price * mean / size.clamp_min(1e-8)}
