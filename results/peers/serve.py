"""A learner that makes one update whenever it is asked to, for ``compare.py``; needs torch and nothing of ours."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

BATCH, LENGTH, SIZE, ACTIONS = 16, 64, 64, 6


class Counter(TorchDispatchMode):
    """Adds up torch's formulas for products and convolutions."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def parameters(**parts: torch.nn.Module) -> dict[str, int]:
    """Trainable numbers of each part, and of all together, shared ones once."""
    counts = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
    every = {p for part in parts.values() for p in part.parameters() if p.requires_grad}
    return counts | {"all": sum(p.numel() for p in every)}


def serve(update: Callable[[], Any], **facts: Any) -> None:
    """One update to warm up, one to count its arithmetic, then one for each line that comes in: its seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr
    update()
    with Counter() as counter:
        update()
    about = facts | {"gflop": counter.flops / 1e9, "threads": torch.get_num_threads()}
    print(json.dumps(about | {"torch": torch.__version__}), file=answers, flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        update()
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(seconds), file=answers, flush=True)
