"""Experience in memory: one ring of rows per environment, and windows drawn uniformly from all of them.

A stream is the unbroken list of steps of one environment; its episodes follow one another, and a window may cross
from one into the next, since ``is_first`` resets every model. Step number ``counter`` of a stream is in row
``stream * ring + counter % ring``; a stream holds the steps ``begin <= counter < end``. Not safe to share between
threads: sample and add from the same one.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from worldmodels.base import Sequence, Spaces
from worldmodels.envs.base import Step

FIELDS = ("obs", "action", "reward", "is_first", "is_last", "is_terminal")
LOG_PROB = "log_prob"  # a further field, which rows may lack: see ``Sequence.log_prob``


class Sample(NamedTuple):
    """A batch of windows, and which steps they are (for ``Replay.write_back``)."""

    sequence: Sequence
    index: Int64[Tensor, "B T"]  # on the CPU; counter * num_streams + stream


class Replay:
    """The last ``capacity // num_streams`` steps of each stream, preallocated on ``device``.

    ``packed_bytes`` is the length of a packed latent (``Storing.packed_bytes``), 0 for a model that stores none.
    Raises ``ValueError`` where the capacity cannot be held: memory is claimed now and not in the middle of a run.
    """

    def __init__(
        self,
        spaces: Spaces,
        capacity: int,
        num_streams: int,
        packed_bytes: int = 0,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        if num_streams < 1 or capacity < 2 * num_streams:
            raise ValueError(f"a replay of {capacity} steps is less than 2 for each of {num_streams} streams")
        self.spaces, self.num_streams, self.packed_bytes = spaces, num_streams, packed_bytes
        self.ring = capacity // num_streams
        self.device = torch.device(device)
        rows = num_streams * self.ring
        needed, available = self.bytes_needed(spaces, rows, packed_bytes), available_bytes(self.device)
        if needed > available:
            raise ValueError(
                f"a replay of {capacity} steps needs {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free on "
                f"{self.device}: lower its capacity to at most {capacity * available // needed} steps"
            )

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self._rows = {
            "obs": zeros(rows, *spaces.image, dtype=torch.uint8),
            "action": zeros(rows, spaces.action_dim, dtype=torch.float32),
            "reward": zeros(rows, dtype=torch.float32),
            "is_first": zeros(rows, dtype=torch.bool),
            "is_last": zeros(rows, dtype=torch.bool),
            "is_terminal": zeros(rows, dtype=torch.bool),
            LOG_PROB: zeros(rows, dtype=torch.float32),
        }
        self._packed = zeros(rows, packed_bytes, dtype=torch.uint8)
        self._has_packed = zeros(rows if packed_bytes else 0, dtype=torch.bool)
        self.begin: Int64[Tensor, " streams"] = torch.zeros(num_streams, dtype=torch.int64)
        self.end: Int64[Tensor, " streams"] = torch.zeros(num_streams, dtype=torch.int64)
        self._streams = torch.arange(num_streams)
        self._generator = torch.Generator().manual_seed(seed)

    @staticmethod
    def bytes_needed(spaces: Spaces, capacity: int, packed_bytes: int = 0) -> int:
        """Bytes that ``capacity`` steps take on the device."""
        per_step = int(np.prod(spaces.image)) + 4 * spaces.action_dim + 2 * 4 + 3
        return capacity * (per_step + (packed_bytes + 1 if packed_bytes else 0))

    def __len__(self) -> int:
        """Steps held, over all streams."""
        return int((self.end - self.begin).sum())

    @property
    def full(self) -> bool:
        """Whether every further step overwrites one."""
        return bool((self.end - self.begin == self.ring).all())

    @property
    def num_episodes(self) -> int:
        """Episodes of which at least one step is held."""
        beheaded = (self.end > self.begin) & ~self._rows["is_first"][self._at(self._streams, self.begin)].cpu()
        return int(self._rows["is_first"].sum()) + int(beheaded.sum())

    def add(
        self,
        step: Step,
        action: Float[Tensor, "B A"] | np.ndarray,
        packed: UInt8[Tensor, "B L"] | None = None,
        log_prob: Float[Tensor, " B"] | None = None,
    ) -> None:
        """Append to every stream what arrived, ``step`` with leading axis B = ``num_streams``, and what left after it.

        ``packed`` is the latent AFTER seeing ``step``; ``log_prob`` is that of the action, where it is known. An
        episode that stops without ``is_last`` (a worker that died) gets it on its final step as soon as the next
        ``is_first`` arrives.
        """
        rows = self._at(self._streams, self.end).to(self.device)
        values: dict[str, Any] = {field: getattr(step, field) for field in FIELDS if field != "action"}
        values["action"] = action
        values[LOG_PROB] = torch.full((self.num_streams,), math.nan) if log_prob is None else log_prob
        for field, column in self._rows.items():
            value = torch.as_tensor(values[field])
            assert value.shape == (self.num_streams, *column.shape[1:]), (field, value.shape)
            column.index_copy_(0, rows, value.to(self.device, column.dtype))
        if self.packed_bytes:
            self._has_packed[rows] = packed is not None
            if packed is not None:
                self._packed.index_copy_(0, rows, packed.to(self.device))
        starts = torch.as_tensor(step.is_first).cpu() & (self.end > self.begin)
        if starts.any():
            self._rows["is_last"][self._at(self._streams[starts], self.end[starts] - 1)] = True
        self.end += 1
        self.begin = torch.maximum(self.begin, self.end - self.ring)

    def extend(self, stream: int, rows: Mapping[str, np.ndarray | Tensor]) -> None:
        """Append rows, ``FIELDS`` each [n, ...], to one stream; they have no packed latents and may lack log_prob."""
        end, length = int(self.end[stream]), len(rows["reward"])
        if length and rows["is_first"][0] and end > int(self.begin[stream]):
            self._rows["is_last"][self._at(torch.tensor(stream), self.end[stream] - 1)] = True
        self.place(stream, end, rows)
        self.end[stream] = end + length
        self.begin[stream] = max(int(self.begin[stream]), end + length - self.ring)

    def place(self, stream: int, counter: int, rows: Mapping[str, np.ndarray | Tensor]) -> None:
        """Write rows as the steps ``counter, counter + 1, ...`` of a stream and leave its extent as it is."""
        skipped = max(0, len(rows["reward"]) - self.ring)  # only the newest of what exceeds the ring
        counters = torch.arange(counter + skipped, counter + len(rows["reward"]))
        at = self._at(torch.tensor(stream), counters).to(self.device)
        for field, column in self._rows.items():
            if field == LOG_PROB and field not in rows:
                column[at] = math.nan
            else:
                column.index_copy_(0, at, torch.as_tensor(rows[field][skipped:]).to(self.device, column.dtype))
        if self.packed_bytes:
            self._has_packed[at] = False

    def num_starts(self, length: int) -> int:
        """Windows of ``length`` steps that can be drawn now; 0 means that ``sample`` would refuse."""
        return int((self.end - self.begin - length + 1).clamp(min=0).sum())

    def sample(self, batch: int, length: int, newest: int = 0) -> Sample:
        """Draw windows uniformly over every start of every stream, on the replay's device.

        A start is valid if the ``length`` steps from it are held. Where the step before a window is held with its
        latent, ``context`` is that latent; where it is not, ``is_first[:, 0]`` is forced True, so that a window that
        begins mid-episode starts from the initial latent. ``newest`` of the windows end at the newest step of as many
        different streams (at most one per stream): DreamerV3's online queue in spirit (arXiv 2301.04104, Methods).

        Raises ``ValueError`` when no stream holds ``length`` steps yet.
        """
        counts = (self.end - self.begin - length + 1).clamp(min=0)
        total = int(counts.sum())
        if not total:
            longest = int((self.end - self.begin).max())
            raise ValueError(f"no stream holds {length} steps yet, the longest {longest}: collect more")
        eligible = counts.nonzero()[:, 0]
        fresh = eligible[torch.randperm(len(eligible), generator=self._generator)[: min(newest, batch)]]
        drawn = torch.randint(total, (batch - len(fresh),), generator=self._generator)
        cumulative = counts.cumsum(0)
        uniform = torch.searchsorted(cumulative, drawn, right=True)
        stream = torch.cat([fresh, uniform])
        offset = drawn - (cumulative - counts)[uniform]
        start = torch.cat([self.end[fresh] - length, self.begin[uniform] + offset])
        return self.gather(stream, start, length)

    def gather(self, stream: Int64[Tensor, " B"], start: Int64[Tensor, " B"], length: int) -> Sample:
        """The windows of ``length`` steps from the counters ``start``, which the caller knows to be held."""
        counter = start[:, None] + torch.arange(length)
        at = self._at(stream[:, None], counter)
        # index_select copies whole rows: ten times faster than an advanced index for images on a CPU.
        columns = {name: self._select(column, at) for name, column in self._rows.items()}
        before = self._at(stream, start - 1)
        known = (start > self.begin[stream]).to(self.device)
        prev_action = self._select(self._rows["action"], before) * known[:, None]
        context = None
        if self.packed_bytes:
            known = known & self._select(self._has_packed, before)
            context = self._select(self._packed, before) * known[:, None]
        else:
            known = torch.zeros_like(known)
        columns["is_first"][:, 0] |= ~known
        index = counter * self.num_streams + stream[:, None]
        step = index.to(self.device)
        return Sample(Sequence(**columns, prev_action=prev_action, context=context, step=step), index)

    def first_images(self, count: int, generator: Generator) -> UInt8[Tensor, "N h w c"]:
        """The first images of episodes held, drawn with replacement. Raises ``ValueError`` where none is held."""
        held = self._held()
        firsts = held[self._rows["is_first"].index_select(0, held.to(self.device)).cpu()]
        if not len(firsts):
            raise ValueError("no episode's beginning is in the replay: raise replay.capacity, or collect more")
        drawn = torch.randint(len(firsts), (count,), generator=generator, device=generator.device).cpu()
        return self._select(self._rows["obs"], firsts[drawn])

    def write_back(self, index: Int64[Tensor, "B T"], packed: UInt8[Tensor, "B T L"]) -> None:
        """Refresh the latents of a sampled batch; steps that were overwritten since are skipped.

        Where windows overlap, the step's last occurrence in the batch counts, so that the result is repeatable.
        """
        assert self.packed_bytes, "this replay keeps no latents"
        index = index.flatten().cpu()
        stream, counter = index % self.num_streams, index // self.num_streams
        held = (counter >= self.begin[stream]) & (counter < self.end[stream])
        at = self._at(stream, counter).masked_fill(~held, -1)
        rows, reverse = np.unique(at.numpy()[::-1], return_index=True)
        kept = rows >= 0
        target = torch.from_numpy(rows[kept]).to(self.device)
        source = torch.from_numpy(len(at) - 1 - reverse[kept]).to(packed.device)
        self._packed.index_copy_(0, target, packed.flatten(0, 1).index_select(0, source).to(self.device))
        self._has_packed[target] = True

    def export_latents(self) -> UInt8[Tensor, "rows bytes"]:
        """The latents of the steps held, stream by stream and oldest first, on the CPU: ``[len(self), 1 + L]``.

        The first byte is 1 where a latent was kept for the step.
        """
        at = self._held().to(self.device)
        kept = self._has_packed[at].to(torch.uint8)[:, None]
        return torch.cat([kept, self._packed.index_select(0, at) * kept], 1).cpu()

    def import_latents(self, latents: UInt8[Tensor, "rows bytes"]) -> None:
        """Undo ``export_latents``; raises ``ValueError`` where it was made by another replay."""
        if latents.shape != (len(self), 1 + self.packed_bytes):
            raise ValueError(
                f"stored latents are {tuple(latents.shape)}, this replay holds {len(self)} steps of "
                f"1 + {self.packed_bytes} bytes: they belong to another checkpoint, capacity or world model"
            )
        at = self._held().to(self.device)
        self._has_packed[at] = latents[:, 0].to(self.device) != 0
        self._packed.index_copy_(0, at, latents[:, 1:].to(self.device))

    def state_dict(self) -> dict[str, Tensor]:
        """Extents of the streams and the sampler's state. The rows come back by ``restore``, from episode files."""
        return {"begin": self.begin.clone(), "end": self.end.clone(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over extents and sampler; nothing may be sampled before ``restore`` has filled in the rows."""
        if len(state["end"]) != self.num_streams:
            raise ValueError(f"the saved replay has {len(state['end'])} streams, this run has {self.num_streams}")
        self.end = state["end"].clone()
        self.begin = torch.maximum(state["begin"], self.end - self.ring)  # a smaller ring keeps the newest
        self._generator.set_state(state["generator"])
        self._rows["is_first"].zero_()
        self._has_packed.zero_()

    def _at(self, stream: Tensor, counter: Tensor) -> Tensor:
        return stream * self.ring + counter % self.ring

    def _held(self) -> Tensor:
        extents = zip(self.begin.tolist(), self.end.tolist(), strict=True)
        return torch.cat([self._at(torch.tensor(s), torch.arange(b, e)) for s, (b, e) in enumerate(extents)])

    def _select(self, column: Tensor, at: Tensor) -> Tensor:
        flat = column.flatten(1) if column.dim() > 1 else column
        return flat.index_select(0, at.flatten().to(self.device)).view(*at.shape, *column.shape[1:])


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be claimed on a device; on the CPU the kernel's own estimate where it gives one."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")  # counts the page cache as free, which SC_AVPHYS_PAGES does not
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


__all__ = ["FIELDS", "LOG_PROB", "Replay", "Sample", "available_bytes"]
