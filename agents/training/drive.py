"""See one phase through: what learns by gradients is handed to Lightning, the rest works by itself."""

import logging
import signal
import warnings
from typing import TYPE_CHECKING

import torch

from agents.training.lightning import Trainer
from agents.training.phases import Phase, Stream, Work
from agents.training.watch import LearningFailedError, Watch

if TYPE_CHECKING:
    from agents.training.run import Run


def carry_out(run: "Run", phase: Phase, watch: Watch) -> None:
    """Until the phase is finished or a signal has come."""
    watch.phase = phase
    if isinstance(phase, Stream):
        fit(run, phase, watch)
    else:
        assert isinstance(phase, Work)
        work(run, phase, watch)


def fit(run: "Run", phase: Stream, watch: Watch) -> None:
    """Hand one phase to Lightning."""
    run.learner.replay, run.learner.moving = phase.replay, phase.moving
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else it lists the devices it does not use
    with warnings.catch_warnings():
        # a stream has neither workers nor a real length, and both are as intended
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*Your `IterableDataset` has `__len__` defined.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")  # Lightning 2.6 on torch 2.13
        trainer = Trainer(
            max_epochs=-1,
            accelerator="gpu" if run.device.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
        )
        # its own generator: a loader draws a seed for each block, and blocks must not matter to what comes after them
        loader = torch.utils.data.DataLoader(phase, batch_size=None, num_workers=0, generator=torch.Generator())
        try:
            trainer.fit(run.learner, loader)
        except LearningFailedError:
            raise
        except Exception as error:
            watch.explain(error)
            raise


def work(run: "Run", phase: Work, watch: Watch) -> None:
    """Let one phase work, block by block."""
    run.learner.to(run.device)  # Lightning leaves it on the CPU
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        watch.begin()
        while True:
            phase.block(watch.worked)
            if watch.after_block():
                return
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
