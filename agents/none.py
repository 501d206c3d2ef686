"""No agent: random actions, nothing learned. For training a world model by itself and as a baseline.

In no paper. Actions are uniform over [-1, 1] or over the discrete ones, independent of what is seen.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Generator, Tensor

from agents.actor import random_actions
from agents.base import Agent, Carry
from worldmodels.base import Latent, Losses, Sequence, WorldModel


@dataclass(frozen=True, kw_only=True)
class Config:
    def build(self, model: WorldModel) -> "NoAgent":
        return NoAgent(model)


class NoAgent(Agent):
    """See the card at the top of the file."""

    scales: dict[str, float] = {}  # noqa: RUF012 (never changed)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        features = model.features(latent)
        action = random_actions(len(features), self.spaces.action_dim, self.spaces.discrete, generator, features)
        return action, carry

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        return Losses({}, {})
