"""Dreams: what a policy would live through in a world model."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from worldmodels.base import Latent, Sequence, WorldModel, map_latent


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
) -> Dream:
    """Follow ``policy`` (features [N, F] to actions [N, A]) for ``horizon`` steps from ``start`` [N].

    The policy sees detached features, so the only way from one action to a later reward is through the dynamics
    (Dreamer V1). Whether there are gradients at all is the caller's choice.
    """
    latent, latents, features, actions = start, [start], [model.features(start)], []
    for _ in range(horizon):
        action = policy(features[-1].detach())
        latent = model.imagine(latent, action, generator)
        latents.append(latent)
        features.append(model.features(latent))
        actions.append(action)
    stacked = map_latent(lambda *parts: torch.stack(parts, 1), *latents)
    return Dream(stacked, torch.stack(features, 1), torch.stack(actions, 1))


def last_steps(latent: Latent, batch: Sequence, count: int) -> tuple[Latent, Sequence]:
    """The last ``count`` steps of a posterior ``[B, T]`` and of the sequence it belongs to.

    For losses that read rewards and flags only: ``prev_action`` and ``context`` are left as they are.
    """
    steps = {
        name: getattr(batch, name)[:, -count:]
        for name in ("obs", "action", "reward", "is_first", "is_last", "is_terminal")
    }
    return map_latent(lambda part: part[:, -count:], latent), batch._replace(**steps)


def flatten_posterior(latent: Latent) -> Latent:
    """Every step ``[B, T]`` of a posterior as a start ``[B * T]`` of a dream, without its graph."""
    return map_latent(lambda part: part.detach().flatten(0, 1), latent)
