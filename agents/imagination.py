"""Dreams: what a policy would live through in a world model, and what given actions would earn there."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agents.gradients import Watch
from worldmodels.base import Latent, Rewarded, Sequence, WorldModel, cut, map_latent
from worldmodels.layers import multiplies_bf16, step_precision


class Dream(NamedTuple):
    """H imagined steps from N latents; index 0 is the latent that they start from."""

    latent: Latent  # [N, H+1]
    features: Float[Tensor, "N H1 F"]
    action: Float[Tensor, "N H A"]
    """``action[:, t]`` is chosen at ``features[:, t]`` and leads to ``t + 1``."""


def dream(
    model: WorldModel,
    policy: Callable[[Tensor], Tensor],
    start: Latent,
    horizon: int,
    generator: Generator | None = None,
    watch: Watch | None = None,
) -> Dream:
    """Follow ``policy`` (features [N, F] to actions [N, A]) for ``horizon`` steps from ``start`` [N].

    The policy sees detached features, so the only way from one action to a later reward is through the dynamics
    (Dreamer V1). Whether there are gradients at all is the caller's choice; ``watch`` sees those that come back to each
    step. Of 0 steps it is the start alone.
    """
    latent, latents, features, actions = start, [start], [model.features(start)], []
    with step_precision(len(features[0]), features[0]):
        for t in range(horizon):
            action = policy(features[-1].detach())
            latent = model.imagine(latent, action, generator)
            latent = latent if watch is None else watch.passed(latent, t)
            latents.append(latent)
            features.append(model.features(latent))
            actions.append(action)
    stacked = map_latent(lambda *parts: torch.stack(parts, 1), *latents)
    nothing = features[0].new_zeros(len(features[0]), 0, model.spaces.action_dim)
    return Dream(stacked, torch.stack(features, 1), torch.stack(actions, 1) if actions else nothing)


Move = Callable[[Latent, Tensor], Latent]
"""One imagined step of P particles each of M futures: latents ``[P, M]`` and actions ``[P, M, A]`` to latents."""


def move_particles(model: WorldModel, generator: Generator | None = None) -> Move:
    """Every particle by the model itself, each with noise of its own."""

    def move(latent: Latent, action: Float[Tensor, "P M A"]) -> Latent:
        moved = model.imagine(map_latent(lambda part: part.flatten(0, 1), latent), action.flatten(0, 1), generator)
        return map_latent(lambda part: part.unflatten(0, action.shape[:2]), moved)

    return move


def imagined_returns(
    model: WorldModel,
    start: Latent,
    act: Callable[[Latent, int], Tensor],
    move: Move,
    *,
    futures: int,
    particles: int,
    horizon: int,
    discount: float,
    stop_at_end: bool,
    bf16_rows: int,
    value: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "B N"]:
    """What N futures of each of B latents would earn: the mean over particles of the discounted rewards.

    ``act(latent, t)``: actions ``[P, B * N, A]`` at step t from latents ``[P, B * N]``; ``follow`` is that of given
    sequences. The sum is ``sum_t discount^t alive_t r(z_{t+1})`` over the rewards that arrive after the ``horizon``
    actions, then ``discount^H alive_H value(features(z_H))`` where a ``value`` is given. ``alive_t`` is the product of
    the continue probabilities of z_1..z_t (the reward that comes with an end counts), or 1 unless ``stop_at_end``.
    ``bf16_rows`` is how many latents have to move at once for products to be made in bfloat16; 0: they never are.
    """
    assert isinstance(model, Rewarded)  # ``needs``

    def spread(part: Tensor) -> Tensor:
        return part.repeat_interleave(futures, 0).expand(particles, *[-1] * part.ndim)

    latent = map_latent(spread, start)
    total: Tensor | float = 0.0
    weight: Tensor | float = 1.0
    with products(latent[0], bf16_rows):
        for t in range(horizon):
            latent = move(latent, act(latent, t))
            total = total + weight * model.reward(latent)
            weight = discount * weight * (model.continues(latent) if stop_at_end else 1.0)
        if value is not None:
            total = total + weight * value(model.features(latent))
    return torch.as_tensor(total).mean(0).unflatten(0, (-1, futures))


def products(latent: Float[Tensor, "P M *S"], bf16_rows: int) -> AbstractContextManager[Any]:
    """Around imagination without a gradient; with one, casting pays later (``layers.step_precision``)."""
    if 0 < bf16_rows <= latent.shape[0] * latent.shape[1] and multiplies_bf16(latent.device):
        return torch.autocast(latent.device.type, torch.bfloat16)
    return nullcontext()


def follow(actions: Float[Tensor, "B N H A"], particles: int) -> Callable[[Latent, int], Tensor]:
    """For ``imagined_returns``: the given actions, whatever is imagined."""
    steps = actions.flatten(0, 1)
    return lambda latent, t: steps[:, t].expand(particles, -1, -1)


def last_steps(latent: Latent, batch: Sequence, count: int) -> tuple[Latent, Sequence]:
    """The last ``count`` steps of a posterior ``[B, T]`` and of the sequence it belongs to.

    For losses that read rewards and flags only: ``prev_action`` and ``context`` are left as they are.
    """
    return map_latent(lambda part: part[:, -count:], latent), cut(batch, slice(-count, None))


def flatten_posterior(latent: Latent) -> Latent:
    """Every step ``[B, T]`` of a posterior as a start ``[B * T]`` of a dream, without its graph."""
    return map_latent(lambda part: part.detach().flatten(0, 1), latent)
