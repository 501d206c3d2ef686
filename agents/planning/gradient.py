"""Planning by gradient: climb the score itself, which has to be differentiable in the actions.

Several sequences climb at once with Adam (Kingma and Ba, 2015), moved back between the bounds after each step; the
first starts from the plan, the others around it. Such planners in learned models: Henaff et al. 2017, arXiv 1705.07177;
Bharadhwaj et al. 2020, arXiv 2004.08763.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from agents.planning.noise import white_noise
from agents.planning.search import (
    Belief,
    Found,
    Plan,
    Score,
    SearchSpace,
    better,
    check,
    draw,
    evaluate,
    first_plan,
    next_plan,
    no_best,
    shift,
)

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Executes the best sequence evaluated and hands it on, shifted and with a 0 appended. Continuous actions only.

    ``iterations`` steps are ``iterations + 1`` evaluations. The graph is its own business: it also works under
    ``torch.no_grad``, and nothing but the actions gets a gradient.
    """

    type: Literal["gradient"]
    horizon: int
    iterations: int
    candidates: int
    initial_std: float  # of the sequences around the plan
    learning_rate: float  # in units of actions: the length of a first step

    def __post_init__(self) -> None:
        check(self)

    def initial(self, batch: int, space: SearchSpace, device: torch.device) -> Plan:
        if space.discrete:
            raise ValueError("gradient has no way through discrete actions: choose cem, icem, mppi or random_shooting")
        return first_plan(batch, self.horizon, 0, space, device)

    def __call__(self, score: Score, plan: Plan, space: SearchSpace, generator: Generator | None) -> Found:
        start, best = self.initial(len(plan.mean), space, plan.mean.device), no_best(plan, space)
        belief = Belief(plan.mean, torch.full_like(plan.mean, self.initial_std))
        noise = white_noise(plan.mean, self.candidates, generator)
        noise[:, 0] = 0
        actions = draw(belief, noise, space).detach()
        first = second = torch.zeros_like(actions)
        for i in range(1, self.iterations + 1):
            slope, scores = ascent(score, actions)
            best = better(best, actions, scores)
            first = BETAS[0] * first + (1 - BETAS[0]) * slope
            second = BETAS[1] * second + (1 - BETAS[1]) * slope.square()
            unbiased = (second / (1 - BETAS[1] ** i)).sqrt() + EPS
            actions = space.valid(actions + self.learning_rate * first / (1 - BETAS[0] ** i) / unbiased)
        with torch.no_grad():
            best = better(best, actions, evaluate(score, actions))
        moved = shift(best.actions, start.mean[:, -1:], space)
        return Found(best.actions, best.score, best.actions, next_plan(moved, start.elites))


def ascent(score: Score, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of each candidate's score in its own actions, 0 where it is not finite, and the scores."""
    with torch.enable_grad():
        actions = actions.detach().requires_grad_()
        scores = evaluate(score, actions)
        if not scores.requires_grad:
            raise ValueError("gradient needs a score that is differentiable in the actions: choose another planner")
        (slope,) = torch.autograd.grad(scores.sum(), actions)
    return slope.nan_to_num(0.0, 0.0, 0.0), scores.detach()
