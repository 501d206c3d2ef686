"""Behaviour cloning: do what was done. What an offline agent has to beat, and on an expert's data seldom does.

Paper: Pomerleau, "Efficient Training of Artificial Neural Networks for Autonomous Navigation", Neural Computation 1991
(doi:10.1162/neco.1991.3.1.88); from pixels as a baseline in Lu et al. 2023, arXiv 2206.04779.

    actor   -log pi(a_t | s_t)   at every recorded step that an action followed

The features are those of a world model that learns beside it, and stop there: nothing of the actor reaches the model.
No reward is looked at.

Deviations: the paper regresses a steering angle, in bins; here the policy is any with a density, a truncated normal by
default. Lu et al. have an encoder of their own for it. A posterior remembers, so what is cloned may depend on the past.

Metrics: ``log_prob`` (of recorded actions, nats) and ``entropy``.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Generator, Tensor

from agents.actor import Actor, ActorConfig, require_entropy
from agents.base import Agent, Carry
from worldmodels.base import Latent, Losses, Sequence, WorldModel
from worldmodels.distributions import BoundedNormal, OneHot, TruncatedNormal


@dataclass(frozen=True, kw_only=True)
class Config:
    actor: ActorConfig
    scales: dict[str, float]

    def __post_init__(self) -> None:
        require_entropy(self.actor)

    def build(self, model: WorldModel) -> "BC":
        return BC(self, model)


class BC(Agent):
    """See the card at the top of the file."""

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(model)
        self.scales = config.scales
        self.actor = Actor(model.feature_dim, model.spaces, config.actor)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        return self.actor.act(model.features(latent), explore=explore, generator=generator), carry

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        policy = self.actor(model.features(latent).detach())
        assert isinstance(policy, OneHot | BoundedNormal | TruncatedNormal)  # ``require_entropy``
        acted = (~batch.is_last).float()
        count = acted.sum().clamp_min(1)
        log_prob = (acted * policy.log_prob(batch.action)).sum() / count
        entropy = (acted * policy.entropy().detach()).sum() / count
        return Losses({"actor": -log_prob}, {"log_prob": log_prob.detach(), "entropy": entropy})
