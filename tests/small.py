"""What several tests build: agents of few weights, and weights that are none of them at zero."""

import dataclasses
from typing import Any

import torch
from torch import Generator, nn

from agents.actor import ActorConfig
from agents.soft import CriticsConfig


def soft_config(kind: Any, *, discount: float, members: int = 2, layers: int = 0, **changes: Any) -> Any:
    """A ``SoftConfig`` of this kind, small, whose entropy costs 0.5."""
    values = dict(
        actor=ActorConfig(
            layers=layers, units=8, norm="none", activation="elu", output_scale=1.0, continuous="squashed_normal",
            unimix=0.0, exploration_noise=0.0, evaluation="mode",
        ),
        critics=CriticsConfig(members=members, layers=layers, units=8, norm="none", activation="elu"),
        discount=discount, target_rate=0.1, temperature=0.5, target_entropy=-1.0, target_entropy_share=0.5,
        scales={"critic": 1.0, "actor": 1.0, "temperature": 1.0},
    )  # fmt: skip
    return kind(**(values | changes))


def awake(*modules: nn.Module, seed: int) -> None:
    """No weight at zero, so that whatever is connected shows."""
    generator = Generator().manual_seed(seed)
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def three_members(run: Any, spaces: Any, **changes: Any) -> tuple[Any, Any]:
    """An ensemble of three that has no weight at zero, its agent by this run, and changes to the agent's config."""
    members = dataclasses.replace(run.world_model.members, num=3)
    torch.manual_seed(0)
    model = dataclasses.replace(run.world_model, members=members).build(spaces)
    agent = dataclasses.replace(run.agent, **changes).build(model)
    awake(model, agent, seed=7)
    return model, agent
