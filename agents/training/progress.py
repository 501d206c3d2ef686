"""What a run says while it runs: the progress line."""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO


class Progress:
    """How far the run is: one live line on a terminal, otherwise a plain line every ``every`` seconds.

    Rates are means over the last ``window`` seconds that were not paused. What is left is reckoned from
    ``total_env_steps``, or from ``total_updates`` where that is 0 (a run that touches no environment). ``env_steps``
    and ``updates`` are where a resumed run starts.
    """

    def __init__(
        self,
        total_env_steps: int,
        *,
        total_updates: int = 0,
        env_steps: int = 0,
        updates: int = 0,
        every: float = 10.0,
        window: float = 60.0,
        stream: TextIO | TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._totals, self._counts = (total_env_steps, total_updates), (env_steps, updates)
        self._window, self._stream, self._clock = window, stream or sys.stdout, clock
        self._return: float | None = None
        self._about = ""
        self._lost, self._paused_at = 0.0, None
        self._samples = deque([(clock(), *self._counts)])
        self._live = _LiveLine(self._stream) if self._stream.isatty() else None
        self._every = 0.2 if self._live else every
        self._printed_at, self._printed = clock(), None

    def update(self, env_steps: int, updates: int, episode_return: float | None = None, about: str = "") -> None:
        """Call as often as you like; ``episode_return`` when an episode has ended, ``about`` what is being done."""
        self._counts, self._about = (env_steps, updates), about
        self._return = self._return if episode_return is None else episode_return
        now = self._running_time()
        if now - self._samples[-1][0] >= self._window / 60:
            self._samples.append((now, env_steps, updates))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()
        if self._clock() - self._printed_at >= self._every:
            self._show()

    def pause(self) -> None:
        """What happens until ``resume`` (compiling, evaluation) takes no time, as far as rates are concerned."""
        assert self._paused_at is None, "paused twice"
        self._paused_at = self._clock()

    def resume(self) -> None:
        assert self._paused_at is not None, "resumed without a pause"
        self._lost += self._clock() - self._paused_at
        self._paused_at = None

    def evaluation(
        self,
        env_steps: int,
        return_mean: float,
        return_std: float,
        episodes: int,
        baselines: Mapping[str, float] | None = None,
        video: str | Path | None = None,
    ) -> None:
        """Print a line that stays; ``baselines`` are returns to compare with, such as that of random actions."""
        compare = ", ".join(f"{name} {value:.1f}" for name, value in (baselines or {}).items())
        self.note(
            f"eval at {_count(env_steps)} env steps: return {return_mean:.1f} +- {return_std:.1f} over {episodes} "
            f"episode{'s' * (episodes != 1)}{f' ({compare})' if compare else ''}{f' video {video}' if video else ''}"
        )

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if self._live:
            self._live.print(text)
        else:
            encoding = self._stream.encoding or "utf-8"  # a log in ASCII must not end a run
            self._stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()

    def line(self) -> str:
        """``env 12 400/100 000 · updates 2 050 · return 312.4 · 58 env steps/s · 9.1 updates/s · 25 min left``."""
        counts = [
            f"{name} {_count(count)}{f'/{_count(total)}' if total else ''}"
            for name, count, total in zip(("env", "updates"), self._counts, self._totals, strict=True)
        ]
        shown = [self._about] if self._about else []
        shown += [] if self._return is None else [f"return {self._return:.1f}"]
        rates = self._rates()
        if rates is not None:
            shown += [f"{_rate(rates[0])} env steps/s", f"{_rate(rates[1])} updates/s"]
            goal = self._goal()
            if rates[goal] > 0:
                shown.append(f"{_duration(max(0, self._totals[goal] - self._counts[goal]) / rates[goal])} left")
        return " · ".join(counts + shown)

    def close(self) -> None:
        """Print where it ended."""
        if self._printed != self._counts:
            self._show()
        if self._live:
            self._live.close()

    def _show(self) -> None:
        self._printed_at, self._printed = self._clock(), self._counts
        if self._live:
            goal = self._goal()
            self._live.show(self.line(), self._counts[goal], self._totals[goal])
        else:
            self.note(self.line())

    def _goal(self) -> int:
        """Which of the two counts there is most to wait for: env steps, then updates where they have a total too."""
        return 0 if self._totals[0] and (self._counts[0] < self._totals[0] or not self._totals[1]) else 1

    def _running_time(self) -> float:
        return (self._clock() if self._paused_at is None else self._paused_at) - self._lost

    def _rates(self) -> tuple[float, float] | None:
        """Env steps and updates per second; None in the first second."""
        then, env_steps, updates = self._samples[0]
        seconds = self._running_time() - then
        if seconds < 1:
            return None
        return (self._counts[0] - env_steps) / seconds, (self._counts[1] - updates) / seconds


class _LiveLine:
    """A line that is drawn over, with a bar."""

    def __init__(self, stream: Any):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._bar = Progress(BarColumn(20), text, console=Console(file=stream), auto_refresh=False)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, line: str, count: int, total: int) -> None:
        self._bar.update(self._task, description=line, completed=count, total=total or None, refresh=True)

    def print(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _rate(rate: float) -> str:
    return _count(round(rate)) if rate >= 10 else f"{rate:.1f}" if rate >= 1 or rate == 0 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    if minutes < 1:
        return f"{round(seconds)} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{int(hours // 24)} d {int(hours % 24)} h"
