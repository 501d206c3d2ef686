"""Expert iteration: a policy and a value learn from what a search finds, and the search is the better for both.

Papers: Anthony, Tian, Barber, "Thinking Fast and Slow with Deep Learning and Tree Search", 2017 (arXiv 1705.08439);
Silver et al., "Mastering Chess and Shogi by Self-Play", 2017 (arXiv 1712.01815), and what came of it.

    in a tree   z' ~ model(z, a),  r(z'),  gamma c(z'),  prior pi(. | z') and value v(z') by the apprentice
    imitation   -sum_k w_k log pi(a_k | s),   w: how much the expert would do a_k

Of discrete actions all are compared; of continuous ones each node draws K from pi, and w is over these (Sampled MuZero,
Hubert et al. 2021, arXiv 2104.06303). Edges are sampled once, so within a search an action has one outcome.
"""

from abc import ABC
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agents.actor import ActorConfig, ActorCritic
from agents.planning import Root, Sampled, Step, TreeSearch, by_index, draw_actions
from worldmodels.base import Latent, Rewarded, Spaces, WorldModel
from worldmodels.distributions import OneHot, SquashedNormal
from worldmodels.heads import HeadConfig
from worldmodels.layers import step_precision


class Advice(NamedTuple):
    """What an expert says of B latents."""

    action: Float[Tensor, "B A"]
    """To execute."""
    actions: Float[Tensor, "B K A"]
    """Those it compared: all of them where they are discrete."""
    weights: Float[Tensor, "B K"]
    """How much the apprentice should do each; they sum to 1."""
    value: Float[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class DrawnActions:
    """The continuous actions that a node of a tree offers; discrete ones are all offered."""

    count: int  # K
    wide: int  # of them from a policy of greater std (EfficientZero V2: 12 of 16)
    widening: float  # so many times (3)

    def __post_init__(self) -> None:
        if not 0 <= self.wide <= self.count or self.count < 1 or not self.widening > 0:
            raise ValueError(f"count must be 1 or more, wide at most count, widening above 0: not {self}")


@dataclass(frozen=True, kw_only=True)
class ApprenticeConfig(ABC):
    """What the configs of agents have in common whose policy imitates an expert."""

    actor: ActorConfig
    critic: HeadConfig
    control: Literal["expert", "apprentice"]  # which of them acts when not exploring
    discount: float
    return_steps: int  # n of the critic's targets: so many real rewards, then a value
    entropy: float  # price of a nat in the policy's loss
    scales: dict[str, float]

    def __post_init__(self) -> None:
        if self.actor.continuous != "squashed_normal":
            raise ValueError(f"actor.continuous must be squashed_normal here, not {self.actor.continuous}")
        if self.return_steps < 0 or self.entropy < 0:
            raise ValueError(f"return_steps and entropy must be 0 or more, not {self.return_steps}, {self.entropy}")


@dataclass(frozen=True, kw_only=True)
class TreeExpert:
    """Tree search on the latents of a world model, guided by the apprentice."""

    type: Literal["tree"]
    search: TreeSearch
    drawn: DrawnActions

    def compared(self, spaces: Spaces) -> int:
        """K, the actions in an ``Advice``."""
        return spaces.action_dim if spaces.discrete else self.drawn.count

    @torch.no_grad()
    def __call__(
        self,
        apprentice: ActorCritic,
        model: WorldModel,
        latent: Latent,
        discount: float,
        *,
        explore: bool,
        generator: Generator | None,
    ) -> Advice:
        """Advice on latents ``[B]``. Without exploring the first action drawn at a root is the policy's mode.

        So with one simulation it is the apprentice's own choice, of continuous actions too.
        """
        assert isinstance(model, Rewarded)  # ``needs``

        def judged(latent: Latent, mode_first: bool = False) -> tuple[Sampled, Tensor, Tensor]:
            features = model.features(latent)
            actions, logits = self.offer(policy_of(apprentice, features), mode_first, generator)
            return Sampled(latent, actions), logits, apprentice.critic(features).mean

        def move(latent: Latent, action: Tensor, generator: Generator | None) -> Step:
            latent = model.imagine(latent, action, generator)
            node, logits, value = judged(latent)
            return Step(node, model.reward(latent), discount * model.continues(latent), logits, value)

        with step_precision(len(latent[0]), latent[0]):
            node, logits, value = judged(latent, mode_first=not explore)
            found = self.search(Root(logits, value, node), by_index(move), generator, explore=explore)
        return Advice(node.action(found.action), node.actions, found.weights, found.value)

    def offer(
        self, policy: OneHot | SquashedNormal, mode_first: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B K A"], Float[Tensor, "B K"]]:
        """The actions at nodes, and the logits of their priors."""
        if isinstance(policy, OneHot):
            batch, count = policy.log_probs.shape
            each = torch.eye(count, device=policy.log_probs.device)
            return each.expand(batch, -1, -1), policy.log_probs
        drawn = self.drawn
        std = policy.log_std.exp()
        return draw_actions(policy.mean, std, drawn.count, drawn.wide, drawn.widening, generator, mode_first)


def policy_of(apprentice: ActorCritic, features: Float[Tensor, "*B F"]) -> OneHot | SquashedNormal:
    policy = apprentice.actor(features)
    assert isinstance(policy, OneHot | SquashedNormal)  # ``ApprenticeConfig``
    return policy


def imitation(
    policy: OneHot | SquashedNormal, actions: Float[Tensor, "*B K A"], weights: Float[Tensor, "*B K"]
) -> Float[Tensor, "*B"]:
    """Cross-entropy of a policy with an expert's weights, nats: the loss of expert iteration and of AlphaZero.

    Of continuous actions those are log densities at the actions that the expert compared (Sampled MuZero).
    """
    log_probs = policy.log_prob(actions.movedim(-2, 0))
    return -(weights.movedim(-1, 0) * log_probs).sum(0)


def entropy(weights: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Of an expert's weights, nats."""
    return -torch.special.xlogy(weights, weights).sum(-1)
