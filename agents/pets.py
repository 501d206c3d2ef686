"""PETS: plan with an ensemble of dynamics whose uncertainty particles carry along the imagined trajectory.

Paper: Chua et al., "Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models",
NeurIPS 2018, arXiv 1805.12114. The planner is their CEM; what an imagined step is, is ``propagation``:

    TSinf   every particle keeps one member, hence one bootstrap, for the whole horizon
    TS1     members are dealt anew at every step, each to as many particles (their code; with replacement in the paper)
    DS      as TSinf, and the particles of a member are redrawn from independent normals fitted to them
    MM      as DS, fitted to the particles of all members together
    E       the mean of the members' means, no noise, one particle

Deviations: the members predict the next stochastic latent of an RSSM, over one memory and one representation, instead
of the change of a state vector; DS and MM fit the memory's vector too. Non-finite scores lose, as in their code.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Generator, Tensor

from agents.imagination import Move
from agents.mpc import SearchConfig, Searching
from worldmodels.base import Ensembled, Latent, Rewarded, WorldModel, map_latent
from worldmodels.distributions import random_uniform


@dataclass(frozen=True, kw_only=True)
class Config(SearchConfig):
    propagation: Literal["TSinf", "TS1", "DS", "MM", "E"]

    def build(self, model: WorldModel) -> "PETS":
        return PETS(self, model)


class PETS(Searching):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Ensembled)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        assert isinstance(model, Ensembled)  # ``needs``
        check_particles(config.particles, config.propagation, model)
        self.propagation = config.propagation

    def move(self, model: WorldModel, generator: Generator | None) -> Move:
        assert isinstance(model, Ensembled)
        return propagate(model, self.propagation, generator)


def check_particles(particles: int, kind: str, model: Ensembled) -> None:
    """Raises ``ValueError`` for a number of particles that ``propagate`` cannot share out."""
    if kind == "E" and particles != 1:
        raise ValueError(f"particles must be 1, not {particles}: propagation E has no noise")
    if kind != "E" and particles % model.num_members:
        raise ValueError(f"particles must be a multiple of {model.num_members} members, not {particles}")


def propagate(model: Ensembled, kind: str, generator: Generator | None) -> Move:
    """One imagined step of particles ``[P, M]``; P is a multiple of K, and particle p is member p // (P / K)'s."""
    members = model.num_members

    def mean(latent: Latent, action: Float[Tensor, "P M A"]) -> Latent:
        moved = model.imagine_mean(map_latent(lambda part: part[0], latent), action[0])
        return map_latent(lambda part: part[None], moved)

    def sample(latent: Latent, action: Float[Tensor, "P M A"]) -> Latent:
        particles, futures = action.shape[:2]
        share = particles // members  # particles of a member

        def group(part: Tensor) -> Tensor:
            return part.reshape(members, share * futures, *part.shape[2:])

        moved = model.imagine_members(map_latent(group, latent), group(action), generator)
        moved = map_latent(lambda part: part.unflatten(1, (share, futures)), moved)  # [K, P / K, M]
        if kind == "DS":
            swapped = map_latent(lambda part: part.transpose(0, 1), moved)  # particles of a member first
            moved = map_latent(lambda part: part.transpose(0, 1), model.match_moments(swapped, generator))
        return map_latent(lambda part: part.flatten(0, 1), moved)

    def deal(latent: Latent, action: Float[Tensor, "P M A"]) -> Latent:
        order = random_uniform(action.shape[:2], action, generator).argsort(0)
        return sample(map_latent(lambda part: take(part, order), latent), take(action, order))

    def match(latent: Latent, action: Float[Tensor, "P M A"]) -> Latent:
        return model.match_moments(sample(latent, action), generator)

    return {"E": mean, "TSinf": sample, "DS": sample, "TS1": deal, "MM": match}[kind]


def take(part: Tensor, order: Tensor) -> Tensor:
    """Reorder the first axis of ``[P, M, ...]`` by ``order`` ``[P, M]``, each future by itself."""
    return part.gather(0, order.view(*order.shape, *[1] * (part.ndim - 2)).expand_as(part))
