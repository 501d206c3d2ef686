"""Episodes on their way to disk: the open one of every stream in memory, the finished ones in files."""

from collections import deque
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodels.base import Spaces
from worldmodels.envs.base import Step
from worldmodels.replay.episodes import Episode, EpisodeInfo, parse_name, write_episode
from worldmodels.replay.memory import FIELDS, LOG_PROB


@dataclass
class Tail:
    """The open episode of one stream."""

    position: int  # counter of its first row in the stream
    env_steps: int = 0
    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in (*FIELDS, LOG_PROB)})

    def __len__(self) -> int:
        return len(self.rows["reward"])


class EpisodeStore:
    """Fed with the same steps as the replay; writes ``<directory>/<name>.wme`` when an episode ends.

    Files are written by a background thread unless ``background`` is False. A write that fails is raised by the next
    call of ``add`` or ``flush``, its episode is kept, and the call after that tries again.
    """

    def __init__(
        self,
        directory: Path,
        spaces: Spaces,
        num_streams: int,
        *,
        task: str,
        fingerprint: dict[str, str],
        seed: int,
        background: bool = True,
    ):
        self.directory, self.spaces, self.num_streams = directory, spaces, num_streams
        self.task, self.fingerprint, self.seed = task, fingerprint, seed
        self.env_steps = 0  # of the run, as far as this store was fed
        self.names: list[str] = []  # finished episodes of this run's history, oldest first
        self.tails = [Tail(position=0) for _ in range(num_streams)]
        self._pending: deque[Episode] = deque()
        self._executor = ThreadPoolExecutor(1, "episodes") if background else None
        self._writing: Future[None] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, step: Step, action: torch.Tensor | np.ndarray, log_prob: torch.Tensor | None = None) -> None:
        """Take what arrived at every stream, ``step`` with a leading axis ``num_streams``, and the action after it.

        ``log_prob`` [num_streams] is that of the action, where it is known.
        Raises ``ValueError`` where a stream goes on after ``is_last`` without ``is_first``, and ``EpisodeError`` where
        an earlier file could not be written.
        """
        self._advance(wait=False)
        actions = np.asarray(action, np.float32)
        chances = np.full(self.num_streams, np.nan) if log_prob is None else np.asarray(log_prob, np.float32)
        self.env_steps += int(np.sum(step.env_steps))
        for stream, tail in enumerate(self.tails):
            if step.is_first[stream] and len(tail):
                tail = self._finish(stream, cut=True)
            elif not step.is_first[stream] and not len(tail):
                raise ValueError(f"stream {stream} goes on after its episode has ended: reset its environment first")
            for name in FIELDS:
                value = actions[stream] if name == "action" else getattr(step, name)[stream]
                tail.rows[name].append(np.array(value))  # a copy: workers reuse their buffers
            tail.rows[LOG_PROB].append(chances[stream])
            tail.env_steps += int(step.env_steps[stream])
            if step.is_last[stream]:  # a pool closes the episode of a dead worker with a step that took no env steps
                self._finish(stream, cut=not step.env_steps[stream])
        self._advance(wait=False)

    def flush(self) -> None:
        """Wait until every finished episode is on disk; raises ``EpisodeError`` for one that cannot be written."""
        while self._pending or self._writing:
            self._advance(wait=True)

    def close(self) -> None:
        """Write the open episodes too, as cut, but those without a step; all is on disk when this returns."""
        for stream, tail in enumerate(self.tails):
            if tail.env_steps:
                self._finish(stream, cut=True)
        self.flush()

    def manifest(self) -> list[str]:
        """Names of the finished episodes up to now, all on disk when this returns: what a checkpoint refers to."""
        self.flush()
        return list(self.names)

    def open_tails(self) -> dict[str, Any]:
        """The open episodes and counters for a checkpoint: tensors, numbers, dicts and lists only."""
        tails = [
            {"position": tail.position, "env_steps": tail.env_steps}
            | {name: torch.from_numpy(values) for name, values in self.tail_rows(stream).items()}
            for stream, tail in enumerate(self.tails)
        ]
        return {"env_steps": self.env_steps, "streams": tails}

    def load_open_tails(self, tails: dict[str, Any]) -> None:
        """Undo ``open_tails``. Raises ``ValueError`` where they were saved with other streams or spaces."""
        streams = tails["streams"]
        if len(streams) != self.num_streams:
            raise ValueError(f"the checkpoint has {len(streams)} streams, this run has {self.num_streams}")
        found = (*streams[0]["obs"].shape[1:], streams[0]["action"].shape[1])
        if found != (*self.spaces.image, self.spaces.action_dim):
            raise ValueError(f"the checkpoint's open episodes have image and action sizes {found}, not {self.spaces}")
        self.env_steps = tails["env_steps"]
        self.tails = []
        for saved in streams:
            rows = {name: list(saved[name].numpy()) for name in FIELDS}
            unknown = torch.full((len(rows["reward"]),), torch.nan)
            rows[LOG_PROB] = list(saved.get(LOG_PROB, unknown).numpy())
            self.tails.append(Tail(saved["position"], saved["env_steps"], rows))

    def tail_rows(self, stream: int) -> dict[str, np.ndarray]:
        """The rows of a stream's open episode, N of them, possibly 0; log_prob where any of it is known."""
        shapes = {"obs": self.spaces.image, "action": (self.spaces.action_dim,)}
        dtypes = {"obs": np.uint8, "action": np.float32, "reward": np.float32}
        rows = self.tails[stream].rows
        tail = {
            name: np.array(rows[name], dtypes.get(name, np.bool_)).reshape(-1, *shapes.get(name, ())) for name in FIELDS
        }
        chances = np.array(rows[LOG_PROB], np.float32)
        return tail if np.isnan(chances).all() else tail | {LOG_PROB: chances}

    def supersede(self, info: EpisodeInfo) -> None:
        """Take a finished file of the same stream, from the open episode's position on, in place of the latter."""
        tail = self.tails[info.stream]
        assert info.position == tail.position, (info, tail.position)
        self.env_steps += info.episode_env_steps - tail.env_steps
        self.names.append(info.name)
        self.tails[info.stream] = Tail(position=info.position + info.length)

    def files_of(self, stream: int) -> list[tuple[str, int]]:
        """Name and length of each finished episode of a stream, newest first."""
        parsed = [(parse_name(name), name) for name in self.names]
        return [(name, length) for (owner, _, length), name in sorted(parsed, reverse=True) if owner == stream]

    def prune(self, held: Items[int], limit_bytes: int) -> list[str]:
        """Delete the oldest files, until the folder's episodes take at most ``limit_bytes``; returns their names.

        ``held`` is the number of steps that the replay holds of each stream: a file with one of them stays, whatever
        the limit. Checkpoints older than this moment may refer to files that go.
        """
        self.flush()
        needed: set[str] = set()
        for stream, steps in enumerate(held):
            newest = steps - len(self.tails[stream])
            for name, length in self.files_of(stream):
                if newest <= 0:
                    break
                needed.add(name)
                newest -= length
        sizes = {name: (self.directory / name).stat().st_size for name in self.names}
        total, deleted = sum(sizes.values()), []
        for name in self.names:
            if total > limit_bytes and name not in needed:
                (self.directory / name).unlink()
                total -= sizes[name]
                deleted.append(name)
        self.names = [name for name in self.names if name not in deleted]
        return deleted

    def _finish(self, stream: int, cut: bool) -> Tail:
        """Queue the open episode of a stream for writing and open the next."""
        tail, rows = self.tails[stream], self.tail_rows(stream)
        rows["is_last"][-1] = True
        info = EpisodeInfo(
            task=self.task,
            fingerprint=self.fingerprint,
            seed=self.seed,
            stream=stream,
            position=tail.position,
            length=len(tail),
            episode_return=float(rows["reward"].sum(dtype=np.float64)),
            env_steps=self.env_steps,
            episode_env_steps=tail.env_steps,
            cut=cut,
            spaces=self.spaces,
        )
        self.names.append(info.name)
        self._pending.append(Episode(info, **rows))
        self.tails[stream] = Tail(position=tail.position + len(tail))
        return self.tails[stream]

    def _advance(self, wait: bool) -> None:
        """Raise what the last write raised, then see that the next one is under way."""
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()
        if self._pending and self._writing is None:
            if self._executor is None:
                self._write_pending()
            else:
                self._writing = self._executor.submit(self._write_pending)

    def _write_pending(self) -> None:
        while self._pending:
            write_episode(self.directory, self._pending[0])
            self._pending.popleft()
