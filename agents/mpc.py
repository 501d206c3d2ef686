"""Model-predictive control: search for the best action sequence in the model, take its first action, search again.

Papers, each a YAML of values for this one agent: random shooting (Nagabandi et al. 2017, arXiv 1708.02596), PlaNet
(Hafner et al. 2019, arXiv 1811.04551), iCEM (Pinneri et al. 2020, arXiv 2008.06389) and MPPI (Williams et al. 2017).

    score(a_1..a_H) = mean over particles of  sum_t gamma^t alive_t r(z_{t+1}),   z_{t+1} ~ model(z_t, a_t)
    alive_t = product of the continue probabilities before t, or 1 as in the papers

Nothing of the agent is learned; the world model learns from what it collects. The papers' models of random shooting,
iCEM and MPPI are of state vectors or simulators: here all plan in the latent space of any world model with rewards.

Deviations: PlaNet plans with one sampled latent per candidate, which is ``particles: 1``; the others have
no such noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agents.actor import add_noise
from agents.base import Agent, Planning
from agents.imagination import Move, follow, imagined_returns, move_particles
from agents.planning import Found, Plan, Planner, SearchSpace, chunked
from worldmodels.base import Latent, Losses, Rewarded, Sequence, WorldModel


@dataclass(frozen=True, kw_only=True)
class Scoring(ABC):
    """What to search with, and how a sequence is imagined."""

    planner: Planner
    particles: int  # sampled futures of each candidate, averaged
    stop_at_end: bool  # rewards count as far as the episode is predicted to go on; the papers count all
    rows: int  # latents imagined at once, at most; bounds the memory, changes nothing else
    bf16_rows: int = 0  # so many at once are imagined in bf16 where hardware has it; 0: none, as in runs saved before

    def __post_init__(self) -> None:
        if self.particles < 1 or self.rows < 1:
            raise ValueError(f"particles and rows must be 1 or more, not {self.particles} and {self.rows}")
        if self.bf16_rows < 0:
            raise ValueError(f"bf16_rows must be 0 or more, not {self.bf16_rows}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Scoring, ABC):
    """What the configs of agents that search for action sequences have in common."""

    discount: float
    exploration_noise: float  # std of normal noise on the action taken when exploring; discrete: chance of a random one

    @abstractmethod
    def build(self, model: WorldModel) -> "Searching": ...


@dataclass(frozen=True, kw_only=True)
class Config(SearchConfig):
    def build(self, model: WorldModel) -> "MPC":
        return MPC(self, model)


@torch.no_grad()
def search_sequences(
    scoring: Scoring,
    model: WorldModel,
    latent: Latent,
    plan: Plan,
    space: SearchSpace,
    move: Move,
    generator: Generator | None,
    *,
    discount: float,
    value: Callable[[Tensor], Tensor] | None = None,
) -> Found:
    """The best plan from each latent ``[B]``, and what the next search begins with; ``value``: ``imagined_returns``."""

    def score(actions: Float[Tensor, "B N H A"]) -> Float[Tensor, "B N"]:
        return imagined_returns(
            model,
            latent,
            follow(actions, scoring.particles),
            move,
            futures=actions.shape[1],
            particles=scoring.particles,
            horizon=scoring.planner.horizon,
            discount=discount,
            stop_at_end=scoring.stop_at_end,
            bf16_rows=scoring.bf16_rows,
            value=value,
        )

    at_once = max(1, scoring.rows // scoring.particles)
    return scoring.planner(chunked(score, at_once), plan, space, generator)


class Searching(Agent, Planning, ABC):
    """What agents share that search for the best action sequence; how imagination goes on is their own."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)
    scales: dict[str, float] = {}  # noqa: RUF012 (never changed)

    def __init__(self, config: SearchConfig, model: WorldModel):
        super().__init__(model)
        self.config, self.planner, self.horizon = config, config.planner, config.planner.horizon
        self.space = SearchSpace(self.spaces.action_dim, self.spaces.discrete)

    def initial(self, batch: int, device: torch.device) -> Plan:
        return self.planner.initial(batch, self.space, device)

    @abstractmethod
    def move(self, model: WorldModel, generator: Generator | None) -> Move:
        """How the particles of a candidate go on."""

    def search(self, model: WorldModel, latent: Latent, carry: Plan, generator: Generator | None) -> Found:
        """The best plan from each latent ``[B]``, and what the next search begins with."""
        move, discount = self.move(model, generator), self.config.discount
        return search_sequences(self.config, model, latent, carry, self.space, move, generator, discount=discount)

    def plan(
        self, model: WorldModel, latent: Latent, carry: Plan, generator: Generator | None
    ) -> Float[Tensor, "B H A"]:
        return self.search(model, latent, carry, generator).actions

    def act(
        self, model: WorldModel, latent: Latent, carry: Plan, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Plan]:
        found = self.search(model, latent, carry, generator)
        action = found.actions[:, 0]
        if explore and self.config.exploration_noise:
            action = add_noise(action, self.spaces.discrete, self.config.exploration_noise, generator)
        return action if self.spaces.discrete else action.clamp(-1, 1), found.plan

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        return Losses({}, {})


class MPC(Searching):
    """See the card at the top of the file."""

    def move(self, model: WorldModel, generator: Generator | None) -> Move:
        return move_particles(model, generator)
