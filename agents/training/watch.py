"""Looking after a run: what is logged, evaluated, filmed and saved, and when it stops."""

import json
import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.training.evaluate import evaluate_agent, evaluate_baselines, stage_of, windows
from agents.training.film import COLUMNS, CONTEXT, HORIZON, can_film, film_dream, film_imagination
from agents.training.lightning import Callback, LightningModule, Trainer
from agents.training.logging import MeanMetrics, MetricsLog
from agents.training.phases import Online, Phase
from agents.training.progress import Progress
from worldmodels.base import Sequence
from worldmodels.strict import to_dict

if TYPE_CHECKING:
    from agents.training.run import Run


class Watch(Callback):
    """Called by Lightning after every update and every block; everything periodic happens between blocks."""

    def __init__(self, run: "Run", state: dict[str, Any] | None):
        self.run, self.state = run, state
        self.phase: Phase | None = None
        self.stopped = False
        """A signal came; the run can be resumed."""
        counts = (run.env_steps, run.updates)
        # not "log": Lightning overwrites that attribute of its callbacks
        self.metrics_log = MetricsLog(
            run.folder,
            resumed_at=counts if state else None,
            wandb=run.config.training.wandb,
            config=to_dict(run.config),
            axis="env_steps" if run.collector else "updates",
        )
        training = run.config.training
        self.progress = Progress(
            training.env_steps,
            total_updates=0 if training.env_steps else training.offline_updates,
            env_steps=counts[0],
            updates=counts[1],
            every=training.log_every_s,
        )
        self.means = MeanMetrics()
        self.episodes: list[tuple[float, int]] = []
        self.logged_at = self.saved_at = time.monotonic()
        self.began_at = self.evaluated_at = self.filmed_at = counts[0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.state is not None:
            self.run.load_optimizers(self.state)
            self.state = None
        # here, after Lightning's own handlers: these end the block and save instead of raising in the middle of one
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _: Any) -> None:
        assert self.phase is not None
        self.stopped = self.phase.stopping = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.means.add(self.run.learner.metrics)
        self._take_episodes()
        self.progress.update(self.run.env_steps, self.run.updates, self.episodes[-1][0] if self.episodes else None)
        if time.monotonic() - self.logged_at >= self.run.config.training.log_every_s:
            self._log()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run, training = self.run, self.run.config.training
        assert self.phase is not None
        ending = self.phase.finished or self.stopped
        self._take_episodes()
        self._log()
        if not self.stopped:
            self.progress.pause()
            if crossed(self.evaluated_at, run.env_steps, training.eval_every) or self.phase.finished:
                self.evaluate()
            self.progress.resume()
        if ending or time.monotonic() - self.saved_at >= training.checkpoint_every_s:
            path = run.save()
            self.saved_at = time.monotonic()
            if self.stopped:
                self.progress.note(f"saved {path}; go on with: python scripts/train.py --resume {run.folder}")
        trainer.should_stop = ending

    def _take_episodes(self) -> None:
        if isinstance(self.phase, Online):
            self.episodes += self.phase.finished_episodes
            self.phase.finished_episodes = []

    def _log(self) -> None:
        """Write the means since the last time; a run whose loss is not a number ends here, before it is saved."""
        self.logged_at = time.monotonic()
        metrics = self.means.take()
        if not metrics and not self.episodes:
            return
        if not math.isfinite(metrics.get("total", 0.0)):
            raise ValueError(
                f"the loss is not a number at update {self.run.updates}: {', '.join(not_finite(metrics))}; the last "
                f"good checkpoint is in {self.run.folder / 'checkpoints'}: resume with a lower learning rate"
            )
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
        first = self.evaluated_at == self.filmed_at == self.began_at
        filming = can_film(run.model) and (first or crossed(self.filmed_at, run.env_steps, training.video_every))
        self.evaluated_at = run.env_steps
        if filming:
            self.filmed_at = run.env_steps
        if run.collector is None:
            assert run.dataset is not None
            if filming:
                length = min(CONTEXT + HORIZON, len(run.dataset))
                self.film(run.dataset.sample(COLUMNS, length).sequence)
            return
        result = evaluate_agent(
            stage_of(run.config), run.model, run.agent, training.eval_episodes, record=COLUMNS if filming else 0
        )
        path = self.film(windows(result.recordings, run.spaces, CONTEXT + HORIZON)) if filming else None
        summary, baselines = result.summary(), self.baselines()
        metrics = {f"eval/{name}": summary[name] for name in ("return_mean", "return_std", "length_mean")}
        metrics |= {f"eval/{name}_return": value for name, value in baselines.items()}
        self.metrics_log.log(metrics, run.env_steps, run.updates)
        mean, std = summary["return_mean"], summary["return_std"]
        self.progress.evaluation(run.env_steps, mean, std, len(result.returns), baselines, path)

    def baselines(self) -> dict[str, float]:
        """Returns of random and of no actions on the evaluation's seeds; played once, then kept in the folder."""
        path = self.run.folder / "baselines.json"
        if not path.exists():
            config = self.run.config
            results = evaluate_baselines(stage_of(config), self.run.spaces, config.training.eval_episodes)
            path.write_text(json.dumps({name: result.summary() for name, result in results.items()}, indent=1))
        return {name: summary["return_mean"] for name, summary in json.loads(path.read_text()).items()}

    def film(self, sequence: Sequence) -> Path:
        """Imagined rollouts and the policy's own dream."""
        run = self.run
        stem = str(run.folder / "videos" / f"{run.env_steps:09d}-{run.updates:09d}")
        labels: dict[str, Any] = {"task": run.config.task, "env_steps": run.env_steps}
        imagined = film_imagination(run.model, sequence, CONTEXT, Path(f"{stem}-imagined.mp4"), **labels)
        dream = film_dream(run.model, run.agent, sequence, CONTEXT, HORIZON, Path(f"{stem}-dream.mp4"), **labels)
        for name, film in (("imagined", imagined), ("dream", dream)):
            self.metrics_log.video(name, film.frames, run.env_steps, run.updates, film.path)
            self.metrics_log.log(film.metrics, run.env_steps, run.updates)
        return imagined.path

    def close(self) -> None:
        self.progress.close()
        self.metrics_log.close()


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, now]; never if ``every`` is 0."""
    return bool(every) and now // every > before // every


def not_finite(metrics: dict[str, float]) -> list[str]:
    """Names of the metrics that are not numbers."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]
