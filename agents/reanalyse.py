"""Search what is replayed again, and learn from it at the posterior and some imagined steps on: AlphaZero and MuZero.

Papers: Schrittwieser et al., "Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model", 2020 (arXiv
1911.08265: unrolled losses, n-step returns) and "Online and Offline RL by Planning with a Learned Model", 2021
(2104.06294: reanalyse).

    z_t = sum_{i<n} gamma^i r_{t+i+1} + gamma^n nu_{t+n},   nu: root value of a search with the networks as they are
    l_0 + 1/K sum_{k=1..K} l_k,   l_k at what k real actions lead to from the posterior, open loop

Searches are made in the loss, of the last ``reanalysed`` steps of each sequence, which bounds what they cost. So no
target is older than the networks, and there is nothing to keep.

Metrics: ``value``, ``search_value`` (nu), ``return`` (z), means; ``entropy`` of the policy, ``search_entropy`` of w,
``kl`` from w to the policy (nats; of continuous actions without a meaning of its own).
"""

from abc import ABC
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agents.actor import ActorCritic
from agents.apprentice import ApprenticeConfig, TreeExpert, entropy, imitation, policy_of
from agents.base import Carry, Simulating
from agents.imagination import flatten_posterior, last_steps
from agents.returns import n_step_return
from agents.soft import drawn
from worldmodels.base import Latent, Sequence, WorldModel, map_latent
from worldmodels.layers import step_precision


@dataclass(frozen=True, kw_only=True)
class ReanalyseConfig(ApprenticeConfig, ABC):
    """What the configs of these agents have in common."""

    expert: TreeExpert
    reanalysed: int  # the last so many steps of each sequence are searched and learned from; 0: all
    unroll: int  # K

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unroll < 0 or self.reanalysed < 0:
            raise ValueError(f"unroll and reanalysed must be 0 or more, not {self.unroll} and {self.reanalysed}")
        if 0 < self.reanalysed <= self.unroll:
            raise ValueError(f"reanalysed must be 0 or more than unroll, {self.unroll}, not {self.reanalysed}")


class Lesson(NamedTuple):
    """What the search says of B windows of L steps."""

    actions: Float[Tensor, "B L K A"]
    weights: Float[Tensor, "B L K"]
    value: Float[Tensor, "B L"]  # nu
    returns: Float[Tensor, "B L"]  # z


class Ahead(NamedTuple):
    """What k real actions lead to from each step of a window that has as many after it."""

    latent: Latent  # [B, L - k]
    reached: Float[Tensor, "B N"]  # 1, or 0 where an episode ended on the way


def unroll(model: WorldModel, latent: Latent, batch: Sequence, count: int, share: float) -> list[Ahead]:
    """Posterior latents ``[B, L]``, then those of 1 to ``count`` steps of imagination with the actions of ``batch``.

    ``share`` of the gradient passes each step backwards (MuZero: 0.5). Raises ``ValueError`` for windows too short.
    """
    if (length := batch.reward.shape[1]) <= count:
        raise ValueError(f"unroll {count} needs windows of more steps than {length}: raise --replay.length")
    found = [Ahead(latent, torch.ones_like(batch.reward))]
    with step_precision(batch.reward.numel(), batch.reward):
        for k in range(count):
            latent, reached = found[-1]
            start = map_latent(lambda part: scale_gradient(part[:, :-1].flatten(0, 1), share), latent)
            moved = model.imagine(start, batch.action[:, k:-1].flatten(0, 1))
            latent = map_latent(lambda part, size=length - k - 1: part.unflatten(0, (-1, size)), moved)
            found.append(Ahead(latent, reached[:, :-1] * (~batch.is_last[:, k:-1]).float()))
    return found


def scale_gradient(part: Float[Tensor, "*B"], share: float) -> Float[Tensor, "*B"]:
    """The same value, ``share`` of its gradient."""
    return share * part + (1 - share) * part.detach() if part.requires_grad else part


def mean_over_steps(losses: Items[Float[Tensor, "B _"]], masks: Items[Float[Tensor, "B _"]]) -> Float[Tensor, ""]:
    """The mean over imagined steps of the means where masks are 1."""
    means = [(loss * mask).sum() / mask.sum().clamp_min(1) for loss, mask in zip(losses, masks, strict=True)]
    return torch.stack(means).mean()


def over_steps(losses: Items[Float[Tensor, "B _"]], masks: Items[Float[Tensor, "B _"]]) -> Float[Tensor, ""]:
    """The loss of the posterior, and the mean over the steps after it: each with weight 1 / K (MuZero)."""
    first = mean_over_steps(losses[:1], masks[:1])
    return first + mean_over_steps(losses[1:], masks[1:]) if len(losses) > 1 else first


class Reanalysing(ActorCritic, Simulating, ABC):
    """See the card at the top of the file."""

    def __init__(self, config: ReanalyseConfig, model: WorldModel):
        super().__init__(config, model)
        self.config, self.scales = config, config.scales

    @property
    def simulations(self) -> int:
        return self.config.expert.search.simulations if self.config.control == "expert" else 0

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        if self.config.control == "apprentice" and not explore:
            return super().act(model, latent, carry, explore=explore, generator=generator)
        config = self.config
        advice = config.expert(self, model, latent, config.discount, explore=explore, generator=generator)
        return advice.action, carry

    def window(self, latent: Latent, batch: Sequence) -> tuple[Latent, Sequence]:
        """What is learned from of a posterior ``[B, T]`` and its sequence."""
        return last_steps(latent, batch, self.config.reanalysed) if self.config.reanalysed else (latent, batch)

    @torch.no_grad()
    def reanalyse(self, model: WorldModel, latent: Latent, batch: Sequence) -> Lesson:
        """Search every step of a posterior ``[B, L]`` with the networks as they are."""
        config, shape = self.config, batch.reward.shape
        start = flatten_posterior(latent)
        advice = config.expert(self, model, start, config.discount, explore=True, generator=None)
        actions, weights, value = (part.unflatten(0, shape) for part in advice[1:])
        live = config.discount * (~batch.is_terminal).float()
        returns = n_step_return(batch.reward, live, batch.is_last, value, config.return_steps)
        return Lesson(actions, weights, value, returns)

    def imitate(
        self, model: WorldModel, path: list[Ahead], lesson: Lesson, batch: Sequence
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Losses of actor and critic at every step of ``path``, of which the graph is what the path has; metrics."""
        features = torch.cat([model.features(latent) for latent, _ in path], 1)
        length = batch.reward.shape[1]
        sizes = list(range(length, length - len(path), -1))
        there = torch.cat([torch.arange(k, length, device=features.device) for k in range(len(path))])
        policy, critic = policy_of(self, features), self.critic(features)
        entropies = drawn(policy)[1]
        imitated = imitation(policy, lesson.actions[:, there], lesson.weights[:, there])
        alive = (~batch.is_terminal).float()
        masks = [reached * alive[:, k:] for k, (_, reached) in enumerate(path)]
        actor = over_steps((imitated - self.config.entropy * entropies).split(sizes, 1), masks)
        worth = over_steps(critic.loss(lesson.returns[:, there]).split(sizes, 1), masks)
        searched = entropy(lesson.weights).mean()
        metrics = {
            "value": critic.mean[:, :length].detach().mean(),
            "search_value": lesson.value.mean(),
            "return": lesson.returns.mean(),
            "entropy": entropies[:, :length].detach().mean(),
            "search_entropy": searched,
            "kl": imitated[:, :length].detach().mean() - searched,
        }
        return actor, worth, metrics
