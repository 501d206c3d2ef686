"""COMBO: no uncertainty is estimated; critics are held down at what is imagined, and up at what was recorded.

Paper: Yu et al., "COMBO: Conservative Offline Model-Based Policy Optimization", NeurIPS 2021, arXiv 2102.08363; numbers
of actions and the importance weights are those of a reimplementation, OfflineRL-Kit.

    phase 1    the world model and its ensemble alone, on the data
    phase 2    the agent, the world model frozen: SAC on real_ratio real and else imagined transitions, as ``mopo.py``
               imagines them and without a penalty, and for each critic
    conservative_critics   E_{s ~ rho} log sum_a exp(Q(s, a) - log q(a))  -  E_{(s, a) ~ D} Q(s, a)

rho are the states of imagined transitions, as likely as they are to be reached; without any (``real_ratio`` 1) those of
the data, which is CQL. ``actions`` of the uniform distribution and as many of the policy are summed over, each with its
own density q; discrete actions are all there, each once, with q = 1. beta is the term's scale; the squared error has a
factor 1/2 as in the paper, where the reimplementation, whose beta is 0.5 or 5, has none.

Deviations: actions of the policy at the next state, a third of the reimplementation's, are left out. The target has its
entropy, theirs has none. rho is drawn from, ``states`` a time. The actor learns from real states.

Metrics: those of ``sac.py`` and of ``branching.py``; ``soft_maximum`` and ``value_recorded``, the two halves of the
term, means over critics.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from agents.actor import random_actions, random_log_prob
from agents.branching import Branching, BranchingConfig, branch
from agents.m2ac import move_by_any_member
from agents.soft import Lessons, Transitions
from worldmodels.base import Ensembled, Latent, Rewarded, WorldModel
from worldmodels.distributions import SquashedNormal
from worldmodels.strict import at_least


@dataclass(frozen=True, kw_only=True)
class Config(BranchingConfig):
    actions: int  # of the uniform distribution, and as many of the policy, at each state; not for discrete actions
    states: int  # where critics are held down, drawn from those of imagined transitions

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "actions", "states")

    def build(self, model: WorldModel) -> "COMBO":
        return COMBO(self, model)


class COMBO(Branching):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config

    def imagine(
        self, model: WorldModel, start: Latent, real: Transitions, length: int
    ) -> tuple[list[Transitions], dict[str, Tensor]]:
        assert isinstance(model, Ensembled)  # ``needs``
        return branch(self, model, start, real, length, move_by_any_member(model)), {}

    def caution(
        self, lessons: Lessons, values: Float[Tensor, "L M"], real: Transitions
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        count = len(real.weight)  # real ones are the first lessons
        features, reached = lessons.features[count:], lessons.weight[0, count:]
        if not len(features):
            features, reached = real.features, real.weight
        chosen = torch.multinomial(reached.clamp_min(1e-8), self.config.states, replacement=True)
        high = self.soft_maximum(features[chosen]).mean(-1)
        low = (real.weight * values[:, :count]).sum(-1) / real.weight.sum().clamp_min(1)
        metrics = {"soft_maximum": high.detach().mean(), "value_recorded": low.detach().mean()}
        return {"conservative_critics": (high - low).sum()}, metrics

    def soft_maximum(self, features: Float[Tensor, "S F"]) -> Float[Tensor, "L S"]:
        """log sum_a exp(Q(s, a) - log q(a)) of each critic; one sum over all actions of a state."""
        if self.spaces.discrete:
            action = torch.eye(self.spaces.action_dim, device=features.device).expand(len(features), -1, -1)
            density = torch.zeros(action.shape[:-1], device=features.device)
        else:
            action, density = self.candidates(features)
        spread = features.unsqueeze(1).expand(-1, action.shape[1], -1)
        return torch.logsumexp(self.critics(spread, action) - density, -1)

    def candidates(self, features: Float[Tensor, "S F"]) -> tuple[Float[Tensor, "S N A"], Float[Tensor, "S N"]]:
        """``actions`` uniform ones for each state, then as many of the policy, and the logarithms of their densities.

        Computed with a graph and cut off: casts made without one would be reused.
        """
        number, size = self.config.actions, self.spaces.action_dim
        uniform = random_actions(len(features) * number, size, False, None, features).view(-1, number, size)
        flat = torch.full(uniform.shape[:-1], random_log_prob(size, False), device=features.device)
        policy = self.policy(features.unsqueeze(1).expand(-1, number, -1))
        assert isinstance(policy, SquashedNormal)  # not discrete
        own, log_prob = policy.sample_with_log_prob()
        return torch.cat([uniform, own.detach()], 1), torch.cat([flat, log_prob.detach()], 1)
