"""Offline Dreamer: learn in dreams of a model that recorded data have taught, and pay for what its ensemble doubts.

Paper: Lu et al., "Challenges and Opportunities in Offline Reinforcement Learning from Visual Observations", TMLR 2023,
arXiv 2206.04779 (Offline DreamerV2).

    phase 1    the world model alone, on the data
    phase 2    actor and critic in dreams from posteriors of the data, H = 5, the world model frozen
    reward     r~_{t+1} = r(s_{t+1}) - lambda u(s_t, a_t),   u: ``meandis`` of ``penalties.py``
    lambda     given, or (``target`` > 0) by log lambda (sg(lambda u) - target): what doubt costs on the mean is
               ``target``

The phases are those of the YAML; nothing here knows of them.

Deviations. The learner is V3's (``agents/dreamer.py``, without its replay loss), whose actor's gradient is the score
function; the paper's is V2's, pathwise for continuous actions, so there the penalty is differentiated too. Dreams
move by the RSSM's own prior, which has learned from all data, where the paper draws one of its heads for each step and
has no prior beside them. Doubts are divided by their mean on the data (``penalties.py``); ``penalty.rate`` 0 is the
paper's unit. Members learn from resamples of the data, where the paper's differ by which steps chose them.

Metrics: those of ``dreamer.py``, of penalised rewards; ``doubt``, ``penalty_to_reward``, ``doubt_recorded`` (U, in its
own unit), ``imagined_reward`` and ``recorded_reward`` (means, unpenalised: a model that promises far more than was ever
recorded is exploited), ``price`` (lambda).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.dreamer import Dreaming, DreamingConfig
from agents.imagination import last_steps
from agents.multiplier import Multiplier
from agents.penalties import STEPS, Penalty, PenaltyConfig, told
from worldmodels.base import Ensembled, Latent, Losses, Rewarded, Sequence, WorldModel, map_latent
from worldmodels.strict import at_least


@dataclass(frozen=True, kw_only=True)
class Config(DreamingConfig):
    penalty: PenaltyConfig
    target: float  # of lambda times doubt, mean over the dreams; ``penalty.weight`` is then the first lambda. 0: fixed

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "target")
        if self.target and not self.penalty.weight:
            raise ValueError("target needs a penalty.weight above 0 to begin with")

    def build(self, model: WorldModel) -> "OfflineDV2":
        return OfflineDV2(self, model)


class OfflineDV2(Dreaming):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.penalty = Penalty(config.penalty)
        self.multiplier = Multiplier(config.penalty.weight, config.target) if config.target else None

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        assert isinstance(model, Rewarded) and isinstance(model, Ensembled)  # ``needs``
        weight = (~batch.is_last[:, :-1]).float()
        self.penalty.calibrate(model, latent, batch.action[:, :-1].flatten(0, 1), weight.flatten())
        if self.settings.imagination_starts:
            latent, _ = last_steps(latent, batch, self.settings.imagination_starts)
        dreamed = self.follow_policy(model, latent)
        with torch.no_grad():
            left, right = (map_latent(lambda part, at=at: part[:, at], dreamed.latent) for at in STEPS)
            doubts = self.penalty(model, left, dreamed.action, right)
            reward = model.reward(dreamed.latent)
        fixed = torch.full_like(self.penalty.recorded, self.penalty.config.weight)
        price = self.multiplier.value if self.multiplier is not None else fixed
        penalised = torch.cat([reward[:, :1], reward[:, 1:] - price * doubts], 1)
        (terms, metrics), _ = self.learn(model, dreamed, penalised)
        if self.multiplier is not None:
            terms = terms | {"multiplier": self.multiplier.loss(price * doubts).mean()}
        metrics |= told(price, doubts, reward[:, 1:], torch.ones_like(doubts)) | {
            "doubt_recorded": self.penalty.recorded.clone(),
            "imagined_reward": reward[:, 1:].mean(),
            "recorded_reward": batch.reward.mean(),
            "price": price,
        }
        return Losses(terms, metrics)
