"""Behaviours: what to do, given a latent world."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.pretrained import load_agent

__all__ = ["load_agent"]


def __getattr__(name: str) -> Any:
    if name != "load_agent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agents.pretrained import load_agent  # on demand: agents.pretrained imports every part of this package

    return load_agent
