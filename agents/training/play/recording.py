"""Recording what is shown as a film: tiles side by side, green borders what is real, red ones what is dreamt."""

import math
from pathlib import Path

import numpy as np

from agents.training.video import BORDER, GAP, IMAGINES, PAPER, SEES, write_video

MAX_BYTES = 128_000_000  # of a film before it is encoded: about 40 s of one tile at 15 frames/s
MAX_WIDTH, TILE = 640, 256  # pixels


class Recording:
    """The tiles of every step since it began, and the film of them. All steps have the same tiles."""

    def __init__(self, real: bool, num_tiles: int, height: int, width: int):
        self.colours = [SEES] * real + [IMAGINES] * (num_tiles - real)
        self.columns = math.ceil(math.sqrt(num_tiles))
        self.scale = max(1, min(TILE // width, MAX_WIDTH // (width * self.columns)))
        self.cell = (height * self.scale + 2 * BORDER, width * self.scale + 2 * BORDER)
        rows = math.ceil(num_tiles / self.columns)
        self.size = rows * (self.cell[0] + GAP) - GAP, self.columns * (self.cell[1] + GAP) - GAP
        self.limit = max(1, MAX_BYTES // (3 * math.prod(self.size)))  # frames
        self.frames: list[np.ndarray] = []

    @property
    def full(self) -> bool:
        """Whether no more fits."""
        return len(self.frames) >= self.limit

    def add(self, tiles: list[np.ndarray]) -> None:
        """One step, a uint8 [h, w, 3] for each tile; nothing where it is full."""
        assert len(tiles) == len(self.colours)
        if not self.full:
            self.frames.append(np.stack(tiles))

    def film(self) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        film = np.empty((len(self.frames), *self.size, 3), np.uint8)
        film[:] = PAPER
        for i, colour in enumerate(self.colours):
            top, left = ((i // self.columns) * (self.cell[0] + GAP), (i % self.columns) * (self.cell[1] + GAP))
            film[:, top : top + self.cell[0], left : left + self.cell[1]] = colour
            inner = np.s_[top + BORDER : top + self.cell[0] - BORDER, left + BORDER : left + self.cell[1] - BORDER]
            for page, tiles in zip(film, self.frames, strict=True):
                page[inner] = tiles[i].repeat(self.scale, 0).repeat(self.scale, 1)
        return film

    def save(self, folder: Path, fps: float) -> Path:
        """``play-000.mp4``, or the next number that is free. Raises ``OSError`` where it cannot be written."""
        taken = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
        name = next(name for name in (f"play-{i:03d}" for i in range(len(taken) + 1)) if name not in taken)
        return write_video(self.film(), folder / f"{name}.mp4", fps)
