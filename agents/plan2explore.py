"""Plan2Explore: seek in imagination what an ensemble of world models does not agree on, with no task in mind.

Paper: Sekar et al., "Planning to Explore via Self-Supervised World Models", ICML 2020, arXiv 2005.05960.

    reward     r_{t+1} = scale * disagreement of the members about the step from s_t by a_t                 (Eq. 5, 6)
    explorer   an actor-critic that learns from that reward alone, in dreams                        (Algorithm 1)

What an action leads to is in doubt before one has been there: the reward is high where the model has still to learn,
and members that agree on a wide distribution give none. No task reward reaches the explorer, recorded or predicted.

What knows of the task nevertheless. The world model learns from the recorded rewards, and that shapes an RSSM's
features too. With ``--world-model.rssm.scales.reward 0`` no reward does (the ensemble's own reward heads learn on
detached features either way). Dreams end where the model has seen episodes end, and an explorer values nothing
beyond.

Deviations. The learner is V3's, ``agents/dreamer.py`` without its replay loss (which is on recorded rewards), where the
paper has V1's gradient through the dynamics; returns are scaled by their range, so that ``scale`` matters below
``return_floor`` and not as the paper's 10^4. Members predict statistics of the next stochastic latent from the RSSM's
memory, where the paper's predict the next image's embedding from features and action; disagreement is the ensemble's
(``worldmodels/ensemble.py``): Jensen-Shannon in nats for categorical latents, the paper's variance of means for
Gaussian ones (divided by K). Members differ by bootstrap and beginning as there.

Metrics: those of ``dreamer.py``, of the intrinsic reward, and ``disagreement`` (mean over the dreams, unscaled).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from agents.dreamer import Dreaming, DreamingConfig
from agents.imagination import Dream, last_steps
from worldmodels.base import Ensembled, Latent, Losses, Rewarded, Sequence, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(DreamingConfig):
    scale: float  # of the disagreement; about 1 for nats (ensemble-v3), 100 for squared units (ensemble-v1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, not {self.scale}: there would be nothing to explore for")

    def build(self, model: WorldModel) -> "Plan2Explore":
        return Plan2Explore(self, model)


class Plan2Explore(Dreaming):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.scale = config.scale

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        if self.settings.imagination_starts:
            latent, _ = last_steps(latent, batch, self.settings.imagination_starts)
        dreamed = self.follow_policy(model, latent)
        doubt = doubted(model, dreamed)
        (terms, metrics), _ = self.learn(model, dreamed, self.scale * doubt)
        return Losses(terms, metrics | {"disagreement": doubt[:, 1:].mean()})


@torch.no_grad()
def doubted(model: WorldModel, dreamed: Dream) -> Float[Tensor, "N H1"]:
    """How little the members agreed on the step that led to each latent of a dream; 0 at its start, where none did.

    In the unit of ``Ensembled.disagreement``.
    """
    assert isinstance(model, Ensembled)  # ``needs``
    left = map_latent(lambda part: part[:, :-1], dreamed.latent)
    return F.pad(model.disagreement(left, dreamed.action), (1, 0))
