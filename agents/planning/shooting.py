"""Planners that guess: draw sequences, score them, draw better ones.

    random_shooting   uniform draws, the best is executed (Nagabandi et al. 2017, arXiv 1708.02596)
    cem               refit a normal to the best K of N, I times; PlaNet (arXiv 1811.04551, Alg. 2) and PETS
                      (arXiv 1805.12114) are values of it
    icem              CEM with coloured noise, a memory of elites and ever fewer draws (Pinneri et al. 2020,
                      arXiv 2008.06389)
    mppi              mean weighted by exp(score / temperature) (Williams et al. 2017); with elites and a refitted std,
                      the planner of TD-MPC2 (arXiv 2310.16828) without its policy's proposals

Standard deviations are in units of actions. Discrete actions, which none of the papers has, are independent
categoricals for every step (``search``).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from agents.planning.noise import coloured_noise, marginal_std, white_noise
from agents.planning.search import (
    Belief,
    Found,
    Plan,
    Score,
    SearchSpace,
    better,
    check,
    draw,
    equal_weights,
    evaluate,
    first_plan,
    keep,
    mix,
    next_plan,
    no_best,
    refit,
    shift,
    top,
    where,
)


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """The best of uniformly random sequences; remembers nothing."""

    type: Literal["random_shooting"]
    horizon: int
    candidates: int

    def __post_init__(self) -> None:
        check(self)

    def initial(self, batch: int, space: SearchSpace, device: torch.device) -> Plan:
        if not space.discrete and space.bound is None:
            raise ValueError("random_shooting draws uniformly and needs bounds: choose cem, icem, mppi or gradient")
        return first_plan(batch, self.horizon, 0, space, device)

    def __call__(self, score: Score, plan: Plan, space: SearchSpace, generator: Generator | None) -> Found:
        start = self.initial(len(plan.mean), space, plan.mean.device)
        noise = white_noise(plan.mean, self.candidates, generator)
        if space.discrete:
            candidates = draw(Belief(start.mean, start.mean), noise, space)
        else:
            assert space.bound is not None  # ``initial``
            candidates = space.bound * (2 * torch.special.ndtr(noise) - 1)
        best = better(no_best(start, space), candidates, evaluate(score, candidates))
        return Found(best.actions, best.score, best.actions, next_plan(start.mean, start.elites))


@dataclass(frozen=True, kw_only=True)
class CEM:
    """The cross-entropy method.

    PlaNet: ``clip``, initial_std 1, min_std 1e-3, momentum 0, epsilon 0, no warm start. PETS: ``truncated``,
    initial_std 0.5, min_std 0, momentum 0.1, epsilon 1e-3, warm start. Both execute the final mean.
    """

    type: Literal["cem"]
    horizon: int
    iterations: int
    candidates: int
    elites: int
    initial_std: float
    min_std: float  # its square is added to the variance of the elites
    momentum: float  # share of the old mean and variance in the new ones
    sampling: Literal["clip", "truncated"]
    warm_start: bool  # hand on the mean, shifted and with a 0 appended, rather than nothing
    epsilon: float  # a row stops where its largest variance is no more than this
    result: Literal["mean", "best"]  # what to execute: the final mean, or the best sequence evaluated

    def __post_init__(self) -> None:
        check(self)

    def initial(self, batch: int, space: SearchSpace, device: torch.device) -> Plan:
        return first_plan(batch, self.horizon, 0, space, device)

    def __call__(self, score: Score, plan: Plan, space: SearchSpace, generator: Generator | None) -> Found:
        start = self.initial(len(plan.mean), space, plan.mean.device)
        belief, best = Belief(plan.mean, torch.full_like(plan.mean, self.initial_std)), no_best(plan, space)
        for _ in range(self.iterations):
            variance = belief.mean * (1 - belief.mean) if space.discrete else belief.std.square()
            live = variance.amax((1, 2)) > self.epsilon
            noise = white_noise(plan.mean, self.candidates, generator)
            candidates = draw(belief, noise, space, self.sampling == "truncated")
            scores = evaluate(score, candidates)
            found = better(best, candidates, scores)
            best = type(best)(*(where(live, *parts) for parts in zip(found, best, strict=True)))
            belief = keep(live, self._refit(belief, *top(candidates, scores, self.elites), space), belief)
        actions = space.valid(belief.mean) if self.result == "mean" else best.actions
        mean = shift(belief.mean, start.mean[:, -1:], space) if self.warm_start else start.mean
        return Found(actions, best.score, best.actions, next_plan(mean, start.elites))

    def _refit(self, belief: Belief, elites: Tensor, scores: Tensor, space: SearchSpace) -> Belief:
        new = refit(belief, elites, equal_weights(scores), space)
        variance = mix(belief.std.square(), new.std.square() + self.min_std**2, self.momentum)
        return Belief(mix(belief.mean, new.mean, self.momentum), variance.sqrt())


@dataclass(frozen=True, kw_only=True)
class ICEM:
    """CEM for few draws; executes the best sequence evaluated. The std begins anew at every step."""

    type: Literal["icem"]
    horizon: int
    iterations: int
    candidates: int  # of the first iteration
    elites: int
    initial_std: float
    momentum: float  # share of the old mean and std in the new ones
    decay: float  # candidates are divided by this at each iteration, down to twice the elites
    beta: float  # colour of the noise along time: 0 white, 2 Brownian
    kept: float  # share of the elites to try again, in the next iteration (not scored anew) and at the next step

    def __post_init__(self) -> None:
        check(self)

    @property
    def num_kept(self) -> int:
        return int(self.elites * self.kept)

    @property
    def populations(self) -> list[int]:
        """How many sequences are drawn in each iteration; the first one scores ``num_kept`` more."""
        return [max(2 * self.elites, int(self.candidates * self.decay**-i)) for i in range(self.iterations)]

    def initial(self, batch: int, space: SearchSpace, device: torch.device) -> Plan:
        return first_plan(batch, self.horizon, self.num_kept, space, device)

    def __call__(self, score: Score, plan: Plan, space: SearchSpace, generator: Generator | None) -> Found:
        belief, best = Belief(plan.mean, torch.full_like(plan.mean, self.initial_std)), no_best(plan, space)
        elites, elite_scores = plan.elites[:, :0], plan.mean.new_zeros(len(plan.mean), 0)
        for i, size in enumerate(self.populations):
            candidates = self._draw(belief, size + (self.num_kept if i == 0 else 0), space, generator)
            if i == 0:
                candidates = torch.cat([candidates[:, :size], self._again(plan, candidates[:, size:])], 1)
            if i == self.iterations - 1:
                candidates = torch.cat([space.valid(belief.mean).unsqueeze(1), candidates[:, 1:]], 1)
            scores = evaluate(score, candidates)
            best = better(best, candidates, scores)
            pool, pool_scores = torch.cat([candidates, elites], 1), torch.cat([scores, elite_scores], 1)
            elites, elite_scores = top(pool, pool_scores, self.elites)
            new = refit(belief, elites, equal_weights(elite_scores), space)
            belief = Belief(*(mix(*parts, self.momentum) for parts in zip(belief, new, strict=True)))
            elites, elite_scores = elites[:, : self.num_kept], elite_scores[:, : self.num_kept]
        moved = torch.cat([elites[:, :, 1:], elites[:, :, -1:]], 2)
        plan = next_plan(shift(belief.mean, belief.mean[:, -1:], space), moved)
        return Found(best.actions, best.score, best.actions, plan)

    def _draw(self, belief: Belief, count: int, space: SearchSpace, generator: Generator | None) -> Tensor:
        noise = coloured_noise(belief.mean, count, self.beta, generator)
        if space.discrete:  # a copula needs a std of exactly 1
            noise = noise / marginal_std(self.horizon, self.beta)
        return draw(belief, noise, space)

    def _again(self, plan: Plan, drawn: Tensor) -> Tensor:
        """The elites of the last step, each with the last action of a new draw; the whole draw where there are none."""
        return where(plan.begun, torch.cat([plan.elites[:, :, :-1], drawn[:, :, -1:]], 2), drawn)


@dataclass(frozen=True, kw_only=True)
class MPPI:
    """Model-predictive path integral control; executes the mean. In information-theoretic form, with U the old mean:

        V_k = clip(U + std N(0, 1)),  w = softmax(score(V_k) / temperature - sum U (V_k - U) / std^2),  U <- sum w V_k

    has one iteration, as many elites as candidates, a control cost, and min_std = initial_std = max_std.
    TD-MPC2: 6 iterations, 64 elites of 512, temperature 2 (its own is the inverse), no control cost, std in [0.05, 2].
    """

    type: Literal["mppi"]
    horizon: int
    iterations: int
    candidates: int
    elites: int  # only the best so many have weight
    initial_std: float
    min_std: float  # the std is refitted within these bounds
    max_std: float
    momentum: float  # share of the old mean in the new one
    temperature: float  # lambda, in units of the score
    control_cost: bool  # the term with U above, of continuous actions; it pulls towards 0

    def __post_init__(self) -> None:
        check(self)
        if not 0 < self.min_std <= self.initial_std <= self.max_std:
            raise ValueError(
                f"initial_std must be in [min_std, max_std], above 0, not {self.initial_std} in "
                f"[{self.min_std}, {self.max_std}]"
            )

    def initial(self, batch: int, space: SearchSpace, device: torch.device) -> Plan:
        return first_plan(batch, self.horizon, 0, space, device)

    def __call__(self, score: Score, plan: Plan, space: SearchSpace, generator: Generator | None) -> Found:
        start = self.initial(len(plan.mean), space, plan.mean.device)
        belief, best = Belief(plan.mean, torch.full_like(plan.mean, self.initial_std)), no_best(plan, space)
        for _ in range(self.iterations):
            candidates = draw(belief, white_noise(plan.mean, self.candidates, generator), space)
            scores = evaluate(score, candidates)
            best = better(best, candidates, scores)
            elites, elite_scores = top(candidates, scores, self.elites)
            new = refit(belief, elites, self._weights(belief, elites, elite_scores, space), space)
            belief = Belief(mix(belief.mean, new.mean, self.momentum), new.std.clamp(self.min_std, self.max_std))
        plan = next_plan(shift(belief.mean, start.mean[:, -1:], space), start.elites)
        return Found(space.valid(belief.mean), best.score, best.actions, plan)

    def _weights(self, belief: Belief, elites: Tensor, scores: Tensor, space: SearchSpace) -> Tensor:
        logits = (scores - scores[:, :1]) / self.temperature
        if self.control_cost and not space.discrete:
            mean, std = belief.mean.unsqueeze(1), belief.std.unsqueeze(1)
            logits = logits - (mean * (elites - mean) / std.square()).sum((2, 3))
        # not a number in rows without a finite score, which ``refit`` leaves as they are
        return torch.where(scores.isfinite(), logits, -torch.inf).softmax(1)
