"""Soft actor-critic on latents: the learner that value expansion and model gradients add a model's use to, without it.

Papers: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905; discrete actions: 1910.07207
The equations are in ``soft.py``; the critics' target is y = r + gamma (1 - terminal) V(s').

The world model learns the features and is otherwise unused: nothing is imagined. So this is the baseline that says
whether the use of a model helped.

Deviations: states are a world model's features, which move while it learns; they are made anew for every batch. All
steps of replayed sequences are one batch, so its transitions come from fewer places than the paper's.

Metrics: ``value`` (mean Q of replayed actions), ``target`` (mean y), ``entropy`` (nats), ``temperature`` (alpha).
"""

from dataclasses import dataclass

from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, td_lessons
from worldmodels.base import Latent, WorldModel


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    def build(self, model: WorldModel) -> "SAC":
        return SAC(self, model)


class SAC(SoftActorCritic):
    """See the card at the top of the file."""

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        return td_lessons(self, real)
