"""Dyna: the learner sees imagined transitions among the real ones; MBPO is the values of ``mbpo.yaml``.

Papers: Sutton, "Dyna, an Integrated Architecture for Learning, Planning, and Reacting", 1991
(doi:10.1145/122344.122377); Janner et al., "When to Trust Your Model: Model-Based Policy Optimization", NeurIPS 2019,
arXiv 1906.08253: short rollouts that branch off from real states, so that errors cannot add up.

    for every real state s of the batch, k times:  a ~ pi(s),  s' ~ model(s, a),  y = r(s') + gamma c(s') V(s')
    critic   real_ratio of the weight on real transitions, the rest on imagined ones, as far as they are reached
    k        grows in whole numbers from ``first`` to ``last`` between the updates ``begin`` and ``end``

The mixture, the schedule and why nothing imagined is kept: ``branching.py``.

Deviations: MBPO keeps imagined transitions for 1000 env steps, retrains its model from time to time, and its actor
learns from imagined states as well; ends are known functions there, here predicted probabilities, which weigh what
comes after. One model imagines, not a random member of an ensemble.

Metrics: those of ``sac.py`` and of ``branching.py``.
"""

from dataclasses import dataclass

from torch import Tensor

from agents.branching import Branching, BranchingConfig, branch
from agents.soft import Transitions
from worldmodels.base import Latent, WorldModel


@dataclass(frozen=True, kw_only=True)
class Config(BranchingConfig):
    def build(self, model: WorldModel) -> "Dyna":
        return Dyna(self, model)


class Dyna(Branching):
    """See the card at the top of the file."""

    def imagine(
        self, model: WorldModel, start: Latent, real: Transitions, length: int
    ) -> tuple[list[Transitions], dict[str, Tensor]]:
        return branch(self, model, start, real, length, model.imagine), {}
