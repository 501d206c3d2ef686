"""Worlds: learned ones, real ones, and what was seen in them."""

from worldmodels._compat import ensure_torchvision

ensure_torchvision()
