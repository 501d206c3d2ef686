"""Make ``import torchvision`` work where a CUDA build of it meets a CPU build of torch.

Lightning imports torchmetrics, which imports torchvision. The wheel of torchvision is built for CUDA; beside a CPU
build of torch its C library does not load, and the import then fails because two operators were never declared.
Declaring them is enough: nothing here calls them, and a call says clearly that there is no kernel.
"""

import sys

import torch

_library: torch.library.Library | None = None  # the declarations live as long as this object does


def ensure_torchvision() -> None:
    """Import torchvision, declaring its missing operators first if that is what the import fails on."""
    global _library
    try:
        import torchvision
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
