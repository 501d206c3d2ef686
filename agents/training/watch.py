"""Looking after a run: what is logged, evaluated, filmed and saved, and when it stops."""

import json
import math
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agents.training import checkpoint
from agents.training.evaluate import evaluate_agent, evaluate_baselines, evaluation_seeds, stage_of, windows
from agents.training.film import COLUMNS, CONTEXT, HORIZON, can_film, film_imagination, film_policy
from agents.training.lightning import Callback, LightningModule, Trainer
from agents.training.logging import MeanMetrics, MetricsLog
from agents.training.phases import Phase
from agents.training.progress import Progress
from agents.training.video import write_json
from worldmodels.base import Sequence
from worldmodels.replay.memory import Replay
from worldmodels.strict import to_dict

if TYPE_CHECKING:
    from agents.training.run import Run


class Stopped(KeyboardInterrupt):
    """A signal came during something that may be left unfinished."""


class LearningFailedError(ValueError):
    """A loss, a gradient or a weight is not a number."""


class Watch(Callback):
    """Called by Lightning after every update and every block; everything periodic happens between blocks."""

    def __init__(self, run: "Run", state: dict[str, Any] | None, *, resumed: bool):
        self.run, self.state = run, state
        self.phase: Phase | None = None
        self.stopped = 0
        """The number of a signal that came; the run can be resumed."""
        self.aside = False
        """Whether what is going on changes nothing that the run depends on."""
        counts = (run.env_steps, run.updates)
        # not "log": Lightning overwrites that attribute of its callbacks
        self.metrics_log = MetricsLog(
            run.folder,
            resumed_at=counts if resumed else None,
            wandb=run.config.training.wandb,
            config=to_dict(run.config),
            axis="updates" if run.totals()[1] or not run.collector else "env_steps",
        )
        training = run.config.training
        totals = run.totals()
        self.progress = Progress(
            totals[0],
            total_updates=totals[1],
            env_steps=counts[0],
            updates=counts[1],
            every=training.log_every_s,
        )
        self.means = MeanMetrics()
        self.episodes: list[tuple[float, int]] = []
        self.logged_at = self.saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()

    def begin(self) -> None:
        """A phase begins, or is gone on with."""
        # here, after Lightning's own handlers: these end the block and save instead of raising in the middle of one
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        run = self.run
        if self.state is not None:
            run.load_optimizers(self.state)
            self.state = None
        elif not checkpoint.checkpoints(run.folder / "checkpoints"):
            run.save()  # before anything is collected, so that a run can be resumed whenever it ends

    def _stop(self, number: int, _: Any) -> None:
        assert self.phase is not None
        self.stopped, self.phase.stopping = number, True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        if self.aside:
            raise Stopped

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.worked(self.run.learner.metrics)

    def worked(self, metrics: dict[str, Tensor]) -> None:
        """After every update, and every step of a phase that makes none."""
        assert self.phase is not None
        if metrics:
            self.means.add(metrics)
        self._take_episodes()
        last = self.episodes[-1][0] if self.episodes else None
        self.progress.update(self.run.env_steps, self.run.updates, last, self.phase.about)
        if time.monotonic() - self.logged_at >= self.run.config.training.log_every_s:
            self._log()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = self.after_block()

    def after_block(self) -> bool:
        """What is periodic; whether the phase is over, or has to end because a signal came."""
        run, training = self.run, self.run.config.training
        assert self.phase is not None
        self._take_episodes()
        self._log()
        due = self.phase.evaluates(crossed(run.evaluated_at, run.env_steps, training.eval_every))
        if due and not self.stopped:
            self._evaluate_aside()
        ending = self.phase.finished or bool(self.stopped)  # once: a signal after this is for the next block
        if ending or time.monotonic() - self.saved_at >= training.checkpoint_every_s:
            path = run.save()
            self.saved_at = time.monotonic()
            if self.stopped:
                command = f"python scripts/train.py --resume {shlex.quote(str(run.folder))}"
                self.progress.note(f"saved {path}; go on with: {command}")
        return ending

    def explain(self, error: Exception) -> None:
        """Raises ``LearningFailedError`` where an error came of numbers that nobody has looked at yet."""
        run = self.run
        try:
            self._check(self.means.take())
            run.check_weights()
            if run.collector is not None and not run.collector.policy.action.isfinite().all():
                raise LearningFailedError(f"the action is not a number after update {run.updates}; {run.remedy()}")
        except LearningFailedError as reason:
            raise reason from error

    def _check(self, metrics: dict[str, float]) -> None:
        """A run whose loss or gradient is not a number ends here, before it is saved."""
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if any(name == "total" or name.startswith("gradient_norm/") for name in bad):
            found = f"the loss is not a number at update {self.run.updates}: {', '.join(bad)}"
            raise LearningFailedError(f"{found}; {self.run.remedy()}")

    def _evaluate_aside(self) -> None:
        """Evaluate, unless a signal comes."""
        self.progress.pause()
        try:
            self.aside = True
            try:
                self.evaluate()
            finally:
                self.aside = False
        except Stopped:
            self.progress.note("evaluation left unfinished")
        finally:
            self.progress.resume()

    def _take_episodes(self) -> None:
        assert self.phase is not None
        self.episodes += self.phase.finished_episodes
        self.phase.finished_episodes = []

    def _log(self) -> None:
        """Write the means since the last time."""
        self.logged_at = time.monotonic()
        metrics = self.means.take()
        if not metrics and not self.episodes:
            return
        self._check(metrics)
        if self.episodes:
            totals, lengths = zip(*self.episodes, strict=True)
            metrics |= {"train/return": float(np.mean(totals)), "train/length": float(np.mean(lengths))}
            self.episodes = []
        if self.run.collector is not None:
            metrics |= {"train/episodes": self.run.collector.episodes}
            if self.run.pool is not None and self.run.pool.restarts:
                metrics |= {"train/worker_restarts": self.run.pool.restarts}
        self.metrics_log.log(metrics, self.run.env_steps, self.run.updates)

    def evaluate(self) -> None:
        """Play evaluation episodes, log their returns, film what is imagined about them."""
        run, training = self.run, self.run.config.training
        assert self.phase is not None
        wanted = crossed(run.filmed_at, run.env_steps, training.video_every)
        if self.phase.films_itself or run.collector is None:  # env steps stand still
            wanted = training.video_every > 0 and self.phase.finished
        filming = can_film(run.model) and wanted
        if not run.plays:
            assert run.dataset is not None
            if filming:
                self.film(evenly_spaced(run.dataset))
        elif training.eval_every:
            self._play(COLUMNS if filming else 0)
            run.evaluated_at = run.env_steps
            run.filmed_at = run.env_steps if filming else run.filmed_at

    def _play(self, record: int) -> None:
        run, episodes = self.run, self.run.config.training.eval_episodes
        result = evaluate_agent(stage_of(run.config), run.model, run.agent, episodes, record=record)
        path = self.film(windows(result.recordings, run.spaces, CONTEXT + HORIZON)) if record else None
        summary, baselines = result.summary(), self.baselines()
        names = ("return_mean", "return_std", "length_mean", "terminal_share")
        metrics = {f"eval/{name}": summary[name] for name in names}
        metrics |= {f"eval/{name}_return": value for name, value in baselines.items()}
        self.metrics_log.log(metrics, run.env_steps, run.updates)
        mean, std = summary["return_mean"], summary["return_std"]
        self.progress.evaluation(run.env_steps, mean, std, len(result.returns), baselines, path)

    def baselines(self) -> dict[str, float]:
        """Returns of random and of no actions on the evaluation's seeds; played once, then kept in the folder."""
        path, config = self.run.folder / "baselines.json", self.run.config
        seeds = evaluation_seeds(config.training.eval_episodes)
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("seeds") != seeds:  # not there yet, or other episodes were asked for when the run was resumed
            results = evaluate_baselines(stage_of(config), self.run.spaces, len(seeds))
            known = {"seeds": seeds, **{name: result.summary() for name, result in results.items()}}
            write_json(known, path)
        return {name: known[name]["return_mean"] for name in ("random", "zero")}

    def film(self, sequence: Sequence) -> Path:
        """Imagined rollouts, and what the policy has in mind: its plan or its own dream."""
        run = self.run
        stem = str(run.folder / "videos" / f"{run.env_steps:09d}-{run.updates:09d}")
        labels: dict[str, Any] = {"task": run.config.task, "env_steps": run.env_steps}
        imagined = film_imagination(run.model, sequence, CONTEXT, Path(f"{stem}-imagined.mp4"), **labels)
        own = film_policy(run.model, run.agent, sequence, CONTEXT, HORIZON, Path(f"{stem}-policy.mp4"), **labels)
        for name, film in (("imagined", imagined), ("policy", own)):
            self.metrics_log.video(name, film.frames, run.env_steps, run.updates, film.path)
            self.metrics_log.log(film.metrics, run.env_steps, run.updates)
        return imagined.path

    def close(self) -> None:
        self.progress.close()
        self.metrics_log.close()


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, now]; never if ``every`` is 0."""
    return bool(every) and now // every > before // every


def evenly_spaced(dataset: Replay) -> Sequence:
    """The windows to film of a dataset, the same ones every time; nothing is drawn from its sampler."""
    length = min(CONTEXT + HORIZON, len(dataset))
    starts = torch.linspace(0, len(dataset) - length, COLUMNS).long()
    return dataset.gather(torch.zeros_like(starts), starts, length).sequence
