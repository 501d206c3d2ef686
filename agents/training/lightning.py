"""Lightning, imported once its one obstacle is out of the way; nothing else here imports it."""

from agents.training.torchvision_guard import ensure_torchvision

ensure_torchvision()

from lightning import Callback, LightningModule, Trainer  # noqa: E402

__all__ = ["Callback", "LightningModule", "Trainer"]
