"""MOPO and LOMPO: soft actor-critic on recorded transitions and on short imagined ones that pay for being doubtful.

Papers: Yu et al., "MOPO: Model-based Offline Policy Optimization", NeurIPS 2020, arXiv 2005.13239; Rafailov et al.,
"Offline Reinforcement Learning from Images with Latent Space Models" (LOMPO), L4DC 2021, arXiv 2012.11547. LOMPO is the
values of ``lompo.yaml``.

    phase 1    the world model and its ensemble alone, on the data
    phase 2    the agent, the world model frozen: from every real latent of a batch k steps, each row and step by a
               member i ~ U(1..K):   a ~ pi(s), s' ~ member_i(s, a), r~ = r(s') - lambda u(s, a, s')
    critic     real_ratio of the weight on real transitions, whose rewards nothing is taken from
    u          MOPO: ``max_sigma``; LOMPO: ``log_prob_std``, of ``penalties.py``; of all members, not of i alone

The mixture and why nothing imagined is kept: ``branching.py``. The phases are those of the YAML.

Deviations: doubts are divided by their mean on the data (``penalties.py``). Members share the RSSM's memory and its
reward head, so u is of the next stochastic latent alone, where MOPO's states and rewards are both in it; all members
imagine, MOPO's 5 elites of 7 are not chosen. The model learns for a given number of updates from all data, where MOPO
holds some out and stops early. The RSSM has a prior of its own and the members give it no gradient; LOMPO's learns from
the KL to a member's prior, drawn at each step, without free nats. The actor learns from real states, with a reward for
entropy; LOMPO's is deterministic with noise, and both learn from imagined states too. Ends are predicted probabilities.

Metrics: those of ``sac.py`` and of ``branching.py`` (rewards are penalised ones); ``doubt``, ``penalty_to_reward``,
``doubt_recorded`` (U, in its own unit).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from agents.branching import Branching, BranchingConfig, branch
from agents.m2ac import move_by_any_member
from agents.penalties import Penalty, PenaltyConfig, told
from agents.soft import Lessons, Transitions
from worldmodels.base import Ensembled, Latent, Rewarded, WorldModel


@dataclass(frozen=True, kw_only=True)
class Config(BranchingConfig):
    penalty: PenaltyConfig

    def build(self, model: WorldModel) -> "MOPO":
        return MOPO(self, model)


class MOPO(Branching):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.penalty = Penalty(config.penalty)

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        assert isinstance(model, Ensembled)  # ``needs``
        self.penalty.calibrate(model, latent, real.action, real.weight)
        return super().lessons(model, latent, real)

    def imagine(
        self, model: WorldModel, start: Latent, real: Transitions, length: int
    ) -> tuple[list[Transitions], dict[str, Tensor]]:
        assert isinstance(model, Ensembled)  # ``needs``
        doubts: list[Tensor] = []
        moved = move_by_any_member(model)

        def move(latent: Latent, action: Float[Tensor, "N A"]) -> Latent:
            arrived = moved(latent, action)
            doubts.append(self.penalty(model, latent, action, arrived))
            return arrived

        steps = branch(self, model, start, real, length, move)
        price, found = self.penalty.config.weight, []
        for step, doubt in zip(steps, doubts, strict=True):
            found.append(step._replace(reward=step.reward - price * doubt))
        rewards, weights = (torch.stack(parts) for parts in ([s.reward for s in steps], [s.weight for s in steps]))
        metrics = told(price, torch.stack(doubts), rewards, weights)
        return found, metrics | {"doubt_recorded": self.penalty.recorded.clone()}
