"""World Models: a linear controller on a world model's features, evolved by CMA-ES in its dreams or in the world.

Paper: Ha and Schmidhuber, "World Models", 2018, arXiv 1803.10122; code: hardmaru/WorldModelsExperiments.

    y = W features(latent) + b;  a = tanh(y), or the discrete action of the largest y
    theta = (W, b) minimises - mean return + weight_decay * mean(theta^2), the return of ``rollouts`` undiscounted

CMA-ES is that of the ``cma`` package (``evolution.py``), as in the paper. Its mean acts, never the luckiest candidate.

In a dream (the paper's Doom): it starts at what the model makes of a recorded first image, and ends where the model
gives going on a chance below 1/2 (a cut-off, nothing is drawn) or after ``dream_length`` steps. All candidates of a
generation are one batch of dreams, with the same starts and the same noise. In the world (its car racing): the same
episodes for all candidates. There ``dream_length`` does not count, the task's own limit does.

The paper's procedure is the list of phases in the YAML: collect with random actions, V learns, then M, then C evolves;
``--training.rounds`` above 1 is its iterated training, where the controller collects from the second round on.

Deviations. Features of any world model that is ``Rewarded``; the paper's Doom controller sees the LSTM's cell too, and
so do 512 of its 1088 weights. Rewards are the model's own, where the paper counts 1 for each step of a dream. The paper
splits one output of Doom into thirds, here each discrete action has its own. Brake and gas are both (y + 1) / 2 where
the environment has them from 0 to 1; the paper clips the brake. Random actions are drawn anew in each step; the paper
draws a random controller for an episode, or holds an action. The authors' code adds their weight decay to the return
with the wrong sign. They evolve from 64 candidates of 16 rollouts with the same seeds in both halves; here all share
them. ``exploration_noise`` when collecting is not theirs.

Metrics: ``evolve/mean`` and ``evolve/best`` over the candidates (returns), ``evolve/sigma`` (step size),
``evolve/weights`` (root mean square of theta); ``evolve/dream`` and ``evolve/dream_std``, returns of what acts in 100
dreams, beside each evaluation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from agents.actor import add_noise
from agents.base import Agent, Carry, Evolving
from agents.evolution import CMAES
from worldmodels.base import Latent, Losses, Rewarded, Sequence, WorldModel, map_latent
from worldmodels.distributions import CommonNoise
from worldmodels.strict import above, at_least


@dataclass(frozen=True, kw_only=True)
class Config:
    where: Literal["dream", "world"]  # candidates are tried in the model's dreams, or in real environments
    population: int  # candidates in a generation
    rollouts: int  # episodes of each
    sigma: float  # standard deviation of the weights of the first candidates
    bias: bool
    dream_length: int  # steps of a dream, at most
    weight_decay: float  # cost of the mean square of the weights, in units of return
    exploration_noise: float  # when collecting: std of normal noise; discrete: chance of a random action

    def __post_init__(self) -> None:
        at_least(self, 4, "population")
        at_least(self, 1, "rollouts", "dream_length")
        at_least(self, 0, "weight_decay", "exploration_noise")
        above(self, 0, "sigma")

    def build(self, model: WorldModel) -> "WorldModels":
        return WorldModels(self, model)


class WorldModels(Agent, Evolving):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)
    scales: dict[str, float] = {}  # noqa: RUF012 (never changed)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(model)
        self.config, self.where, self.rollouts = config, config.where, config.rollouts
        self.weights = (self.spaces.action_dim, model.feature_dim)
        dim = self.spaces.action_dim * (model.feature_dim + config.bias)
        self.search = CMAES(dim, config.population, config.sigma)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        action = self.act_as(model, latent, self.acting.expand(len(model.features(latent)), -1))
        if explore and self.config.exploration_noise:
            action = add_noise(action, self.spaces.discrete, self.config.exploration_noise, generator)
        return action if self.spaces.discrete else action.clamp(-1, 1), carry

    def act_as(self, model: WorldModel, latent: Latent, candidate: Float[Tensor, "B D"]) -> Float[Tensor, "B A"]:
        features, (outputs, inputs) = model.features(latent).float(), self.weights
        weight, bias = candidate.float().split([outputs * inputs, candidate.shape[1] - outputs * inputs], 1)
        y = torch.einsum("bi,boi->bo", features, weight.view(-1, outputs, inputs))
        y = y + bias if self.config.bias else y
        return F.one_hot(y.argmax(-1), outputs).float() if self.spaces.discrete else y.tanh()

    @property
    def acting(self) -> Float[Tensor, " D"]:
        return self.search.mean

    def ask(self, generator: Generator | None) -> Float[Tensor, "N D"]:
        return self.search.ask(generator)

    @torch.no_grad()
    def dream(
        self, model: WorldModel, start: Latent, candidates: Float[Tensor, "N D"], generator: Generator | None
    ) -> Float[Tensor, "N R"]:
        assert isinstance(model, Rewarded)  # ``needs``
        number, starts = len(candidates), len(start[0])
        latent = map_latent(lambda part: part.repeat(number, *[1] * (part.ndim - 1)), start)
        lanes = candidates.to(start[0].device, torch.float32).repeat_interleave(starts, 0)
        noise = CommonNoise(generator or torch.default_generator, number)
        total = torch.zeros(number * starts, device=lanes.device)
        alive = torch.ones_like(total, dtype=torch.bool)
        for _ in range(self.config.dream_length):
            latent = model.imagine(latent, self.act_as(model, latent, lanes), noise)
            total += alive * model.reward(latent)
            alive &= model.continues(latent) > 0.5
            if not alive.any():
                break
        return total.view(number, starts)

    def tell(self, candidates: Float[Tensor, "N D"], returns: Float[Tensor, "N R"]) -> dict[str, float]:
        cost = self.config.weight_decay * candidates.square().mean(1) - returns.double().mean(1).to(candidates.device)
        self.search.tell(candidates, cost)
        return {"sigma": self.search.sigma.item(), "weights": self.search.mean.square().mean().sqrt().item()}

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        return Losses({}, {})
