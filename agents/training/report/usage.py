"""What each variable of an RSSM's stochastic latent is used for.

KL: nats by which the posterior of a variable differs from its prior, that is what the image told beyond the dynamics.
A variable is dead where its posterior hardly depends on what is seen: categorical ones where the mutual information of
variable and step is below 0.01 nats, Gaussian ones where the variance of the posterior's mean is below 0.01 (active
units: Burda et al., 2016, arXiv 1509.00519). A dead variable carries nothing; one with a small KL may be foretold well.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldmodels.base import Sequence, WorldModel
from worldmodels.distributions import mixed
from worldmodels.ensemble import EnsembleRSSM
from worldmodels.latents import Categorical, Gaussian
from worldmodels.rssm import RSSM

DEAD = 0.01  # nats, or squared units of the latent


class Usage(NamedTuple):
    """Of V variables, means over all steps."""

    kl: np.ndarray  # float32 [V], nats
    dead: np.ndarray  # bool [V]


@torch.no_grad()
def latent_usage(model: WorldModel, sequence: Sequence) -> Usage | None:
    """The use of every variable in these sequences; None for a world model without an RSSM's latent."""
    rssm = model.rssm if isinstance(model, EnsembleRSSM) else model
    if not isinstance(rssm, RSSM):
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        latent, stats, _ = rssm.learn(sequence)
    kl, dead = usage(rssm.latent, stats.float(), rssm.prior(latent.deter).float())
    return Usage(kl.cpu().numpy(), dead.cpu().numpy())


def usage(
    kind: Categorical | Gaussian, posterior: Float[Tensor, "B T S"], prior: Float[Tensor, "B T S"]
) -> tuple[Tensor, Tensor]:
    """Mean KL of each variable ``[V]``, and whether it is dead, from statistics."""
    one = replace(kind, variables=1)
    p, q = (split(kind, stats) for stats in (posterior, prior))
    kl = one.kl(p, q).mean((0, 1))
    if isinstance(one, Categorical):
        probs = mixed(p, one.unimix, -1).flatten(0, 1)
        information = entropy(probs.mean(0)) - entropy(probs).mean(0)
    else:
        information = p[..., 0].flatten(0, 1).var(0)
    return kl, information < DEAD


def split(kind: Categorical | Gaussian, stats: Float[Tensor, "B T S"]) -> Float[Tensor, "B T V s"]:
    """The statistics of each variable by itself."""
    parts = kind.classes if isinstance(kind, Categorical) else 2
    return stats.unflatten(-1, (parts, kind.variables)).transpose(-1, -2)


def entropy(probs: Float[Tensor, "*B C"]) -> Float[Tensor, "*B"]:
    """In nats."""
    return -torch.xlogy(probs, probs).sum(-1)
