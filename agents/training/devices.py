"""Where networks run, and in which precision."""

import torch

from worldmodels.layers import multiplies_bf16


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("training.device is cuda, and torch finds no CUDA device here: --training.device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 where the hardware multiplies it (``layers.multiplies_bf16``)."""
    return name if name != "auto" else "bf16" if multiplies_bf16(device) else "fp32"
