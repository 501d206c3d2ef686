"""Draw what was imagined, and write films that play in a browser.

A film is uint8 ``[T, H, W, 3]``. Columns are sequences; the border of a tile is green while the model sees frames and
red once it imagines. ``docs/videos.md`` says how to read one.
"""

import io
import json
import logging
import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agents.training.imagined import Dream, Imagined, mean_compared

Colour = tuple[int, int, int]
INK, DIM, PAPER, PANEL = (232, 234, 238), (142, 148, 160), (16, 18, 23), (27, 30, 38)
SEES, IMAGINES, NEUTRAL = (52, 199, 108), (242, 71, 74), (64, 69, 82)
TRUE, PREDICTED, CONTINUES = (255, 255, 255), (255, 159, 28), (90, 178, 255)
MARGIN, LABELS, TITLE, GAP, BORDER = 12, 116, 40, 2, 2  # pixels
PLOT, SMOOTH = 68, 3  # height of a plot; lines are drawn this many times larger and shrunk, Pillow has no other way

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of tiles."""

    label: str
    images: np.ndarray  # uint8 [B, T, h, w, c]
    sees: np.ndarray | None = None  # bool [T]: green or red border, grey without
    shown: np.ndarray | None = None  # bool [B, T]: tiles that mean something, all without
    notes: list[str] | None = None  # [T], below the label


@dataclass(frozen=True)
class Plot:
    """One row of small plots that grow with time."""

    lines: dict[str, tuple[Colour, np.ndarray]]  # name: colour, float [B, T], not drawn where NaN
    switch: int  # first imagined index, gets a marker
    limits: tuple[float, float] | None = None  # of the y axis, else those of the data


def draw_rollouts(imagined: Imagined, *, task: str, env_steps: int, columns: int = 6) -> np.ndarray:
    """Truth, reconstruction, imagination and error of up to ``columns`` sequences: uint8 [T, H, W, 3].

    Error is (imagination - truth) / 2 + mid-grey. The PSNR beside the imagination is the mean of the columns drawn,
    with that of repeating the last frame seen ("copy") to compare. Tiles after an episode boundary are dimmed.
    """
    film = Imagined(*(x[:columns] for x in imagined[:-1]), context=imagined.context)
    num_steps, context = film.truth.shape[1], film.context
    sees = np.arange(num_steps) < context
    shown = np.concatenate((np.ones_like(film.compared, shape=(len(film.truth), context)), film.compared), axis=1)
    error = error_image(film.imagination, film.truth)
    model, copy = (mean_compared(x, film.compared, axis=0) for x in (film.psnr, film.psnr_copy_last_frame))
    notes = [""] * context + [f"PSNR {m:.1f}\ncopy {c:.1f}" for m, c in zip(model, copy, strict=True)]
    rows = [
        Row("truth", film.truth),
        Row("reconstruction", film.reconstruction, sees | True),
        Row("imagination", film.imagination, sees, shown, notes),
        Row("error", error, sees, shown),
    ]
    predicted = np.where(shown, film.reward_imagination, math.nan)
    plots = [Plot({"true reward": (TRUE, film.reward), "predicted": (PREDICTED, predicted)}, context)]
    return _draw(rows, plots, context, task, env_steps)


def draw_dream(dream: Dream, *, task: str, env_steps: int, columns: int = 6) -> np.ndarray:
    """The policy's own dream of up to ``columns`` latents: uint8 [H + 1, H, W, 3]. No truth row: there is none."""
    image, reward, continues = (x[:columns] for x in dream)
    plots = [
        Plot({"reward": (PREDICTED, reward)}, switch=1),
        Plot({"continue": (CONTINUES, continues)}, switch=1, limits=(0.0, 1.0)),
    ]
    rows = [Row("dream", image, np.arange(image.shape[1]) < 1)]
    return _draw(rows, plots, 1, f"{task}, dreamt by the policy", env_steps)


def _draw(rows: list[Row], plots: list[Plot], context: int, task: str, env_steps: int) -> np.ndarray:
    """Lay out rows of tiles above rows of plots."""
    num_columns, num_steps, height, width, channels = rows[0].images.shape
    if channels not in (1, 3):
        raise ValueError(f"cannot draw images of {channels} channels; give 1 (grey) or 3 (RGB)")
    scale = min(4, max(1, round(192 / max(height, width))))
    tile_h, tile_w = height * scale + 2 * BORDER, width * scale + 2 * BORDER
    lefts = [MARGIN + LABELS + i * (tile_w + GAP) for i in range(num_columns)]
    tops = [TITLE + i * (tile_h + GAP) for i in range(len(rows))]
    plot_tops = [tops[-1] + tile_h + GAP + i * (PLOT + GAP) for i in range(len(plots))]
    size = (max(lefts[-1] + tile_w + MARGIN, 460), plot_tops[-1] + PLOT + MARGIN)  # the title wants its width
    strip = lefts[-1] + tile_w - lefts[0]
    limits = [plot.limits or _limits(plot) for plot in plots]

    film = []
    for t in range(num_steps):
        canvas = np.full((size[1], size[0], 3), PAPER, np.uint8)
        for row, top in zip(rows, tops, strict=True):
            for column, left in enumerate(lefts):
                canvas[top : top + tile_h, left : left + tile_w] = _tile(row, column, t, scale)
        page = Image.fromarray(canvas)
        draw = ImageDraw.Draw(page)
        _write_title(draw, size[0], task, env_steps, t, num_steps, context)
        for row, top in zip(rows, tops, strict=True):
            _write_label(draw, row, top, tile_h, t)
            for left in (x for i, x in enumerate(lefts) if row.shown is not None and not row.shown[i, t]):
                middle = (left + tile_w / 2, top + tile_h / 2)
                draw.text(middle, "new episode", fill=DIM, font=_font(13), anchor="mm")
        for plot, limit, top in zip(plots, limits, plot_tops, strict=True):
            _write_axis(draw, plot, limit, top)
            page.paste(_plot(plot, limit, t, num_steps, [x - lefts[0] for x in lefts], tile_w, strip), (lefts[0], top))
        film.append(np.asarray(page))
    return np.stack(film)


def _tile(row: Row, column: int, t: int, scale: int) -> np.ndarray:
    """One image, enlarged without smoothing, in its border."""
    shown = row.shown is None or row.shown[column, t]
    colour = NEUTRAL if row.sees is None or not shown else SEES if row.sees[t] else IMAGINES
    image = np.broadcast_to(row.images[column, t], (*row.images.shape[2:4], 3)).repeat(scale, 0).repeat(scale, 1)
    tile = np.full((image.shape[0] + 2 * BORDER, image.shape[1] + 2 * BORDER, 3), colour, np.uint8)
    tile[BORDER:-BORDER, BORDER:-BORDER] = image if shown else image // 6 + np.array(PANEL, np.uint8)
    return tile


def _write_title(
    draw: ImageDraw.ImageDraw, width: int, task: str, env_steps: int, t: int, num_steps: int, context: int
) -> None:
    left, base = MARGIN, TITLE - 14
    draw.text((left, base), task, fill=INK, font=_font(18), anchor="ls")
    left += round(draw.textlength(task, font=_font(18))) + 12
    draw.text((left, base), f"{env_steps:,} env steps".replace(",", " "), fill=DIM, font=_font(13), anchor="ls")
    sees = t < context
    state = f"sees {t + 1}/{context}" if sees else f"imagines {t + 1 - context}/{num_steps - context}"
    draw.text((width - MARGIN, base), state, fill=SEES if sees else IMAGINES, font=_font(15), anchor="rs")
    right = width - MARGIN - round(draw.textlength(state, font=_font(15))) - 12
    draw.text((right, base), f"frame {t + 1}/{num_steps}", fill=DIM, font=_font(13), anchor="rs")


def _write_label(draw: ImageDraw.ImageDraw, row: Row, top: int, height: int, t: int) -> None:
    right, middle = MARGIN + LABELS - 10, top + height // 2
    draw.text((right, middle), row.label, fill=INK, font=_font(14), anchor="rs")
    if row.notes is not None and row.notes[t]:
        draw.multiline_text((right, middle + 6), row.notes[t], fill=DIM, font=_font(12), anchor="ra", align="right")


def _write_axis(draw: ImageDraw.ImageDraw, plot: Plot, limits: tuple[float, float], top: int) -> None:
    """The names of the lines in their colours, between the ends of the y axis."""
    right = MARGIN + LABELS - 10
    low, high = (f"{x:.2f}".rstrip("0").rstrip(".") for x in limits)
    draw.text((right, top + 2), high, fill=DIM, font=_font(11), anchor="ra")
    draw.text((right, top + PLOT - 2), low, fill=DIM, font=_font(11), anchor="rs")
    first = top + PLOT // 2 - 8 * (len(plot.lines) - 1)
    for i, (name, (colour, _)) in enumerate(plot.lines.items()):
        draw.text((right, first + 16 * i), name, fill=colour, font=_font(13), anchor="rm")


def _plot(
    plot: Plot, limits: tuple[float, float], t: int, num_steps: int, lefts: list[int], width: int, strip: int
) -> Image.Image:
    """The plots of all columns up to index t, ``strip`` pixels wide."""
    image = Image.new("RGB", (strip * SMOOTH, PLOT * SMOOTH), PAPER)
    draw = ImageDraw.Draw(image)
    pad = 6 * SMOOTH
    for column, left in enumerate(x * SMOOTH for x in lefts):
        right, bottom = left + width * SMOOTH, PLOT * SMOOTH
        draw.rectangle((left, 0, right - 1, bottom), fill=PANEL)
        x = np.linspace(left + pad, right - pad, num_steps)
        marker = (x[plot.switch - 1] + x[plot.switch]) / 2
        draw.line((marker, 0, marker, bottom), fill=IMAGINES, width=SMOOTH)
        for colour, values in plot.lines.values():
            share = (values[column, : t + 1] - limits[0]) / (limits[1] - limits[0])
            y = bottom - pad - share * (bottom - 2 * pad)
            drawn = np.isfinite(y)
            draw.line([*zip(x[: t + 1][drawn], y[drawn], strict=True)], fill=colour, width=2 * SMOOTH, joint="curve")
            if drawn[t]:
                r = 2.5 * SMOOTH
                draw.ellipse((x[t] - r, y[t] - r, x[t] + r, y[t] + r), fill=colour)
    return image.resize((strip, PLOT), Image.Resampling.BOX)


def _limits(plot: Plot) -> tuple[float, float]:
    """Shared by the columns, so that they can be compared; never empty."""
    values = np.concatenate([values.ravel() for _, values in plot.lines.values()])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (low, high) if high - low > 1e-3 else ((low + high) / 2 - 0.5, (low + high) / 2 + 0.5)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def write_video(film: np.ndarray, path: str | Path, fps: float | int = 15) -> Path:
    """Write a film uint8 [T, H, W, 3] as H.264 MP4 that browsers play, or as GIF where ``path`` ends in ``.gif``.

    Returns where it lies: without an ffmpeg that is a GIF of the same name, and one warning says so. Odd sizes get
    one more row or column of the same colour. The file appears whole or not at all. ``ValueError`` for anything but
    a film, ``OSError`` where ffmpeg fails, with what it said.
    """
    path = Path(path)
    _check_film(film, fps)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"cannot write {path.name}: a video ends in .mp4 or .gif")
    ffmpeg = _find_ffmpeg() if path.suffix == ".mp4" else None
    if path.suffix == ".mp4" and ffmpeg is None:
        path = path.with_suffix(".gif")
        log.warning("no ffmpeg here, writing %s instead of an MP4: pip install imageio-ffmpeg", path.name)
    with replacing(path) as temporary:
        if ffmpeg is None:
            temporary.write_bytes(gif_bytes(film, fps))
        else:
            _encode_h264(ffmpeg, film, temporary, fps)
    return path


def _encode_h264(ffmpeg: str, film: np.ndarray, path: Path, fps: float | int) -> None:
    film = np.pad(film, ((0, 0), (0, film.shape[1] % 2), (0, film.shape[2] % 2), (0, 0)), mode="edge")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{film.shape[2]}x{film.shape[1]}", "-r", str(fps)]
    # What browsers ask for: 4:2:0, the index in front, and colours that say which matrix they are in.
    tags = "-vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709"
    target = f"-c:v libx264 -pix_fmt yuv420p -crf 18 {tags} -movflags +faststart -f mp4".split()
    command = [ffmpeg, "-v", "error", "-y", *source, "-i", "-", *target, str(path)]
    result = subprocess.run(command, input=np.ascontiguousarray(film).data.cast("B"), capture_output=True, check=False)
    if result.returncode:
        raise OSError(f"ffmpeg could not encode the video: {result.stderr.decode(errors='replace').strip()}")


def _find_ffmpeg() -> str | None:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # not installed; installed without a binary, and none on the machine
        return None


def gif_bytes(film: np.ndarray, fps: float | int = 15, max_width: int | None = None, colours: int = 256) -> bytes:
    """A film as an endless GIF with one palette, shrunk to ``max_width`` pixels where it is wider."""
    _check_film(film, fps)
    pages = [Image.fromarray(frame) for frame in film]
    if max_width is not None and pages[0].width > max_width:
        size = (max_width, max(1, round(pages[0].height * max_width / pages[0].width)))
        pages = [page.resize(size, Image.Resampling.LANCZOS) for page in pages]
    palette = _palette(pages, colours)
    pages = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]  # dither would flicker
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "GIF", save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0, optimize=True
    )
    return buffer.getvalue()


def _palette(pages: list[Image.Image], colours: int) -> Image.Image:
    """The commonest colours, and those of lines and letters, which are too few pixels to be among them."""
    sample = np.concatenate([np.asarray(page)[::3, ::3] for page in pages[:: max(1, len(pages) // 8)]])
    fixed = np.array([PAPER, PANEL, INK, DIM, SEES, IMAGINES, PREDICTED, CONTINUES])
    fixed = np.concatenate((fixed, (fixed[2:] + PAPER) // 2))  # and halfway to the paper, for their smooth edges
    median_cut = Image.fromarray(sample).quantize(colours - len(fixed), kmeans=1).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*median_cut, *map(int, fixed.flat)])
    return palette


def summary_gif(film: np.ndarray, path: str | Path, fps: float | int = 15, max_bytes: int = 2_000_000) -> Path:
    """A GIF for a README: the widest of a few that stays below ``max_bytes``; ``ValueError`` where none does."""
    for max_width, colours, stride in ((800, 256, 1), (640, 192, 1), (640, 192, 2), (480, 128, 2), (320, 96, 3)):
        data = gif_bytes(film[::stride], fps / stride, max_width, colours)
        if len(data) <= max_bytes:
            with replacing(Path(path)) as temporary:
                temporary.write_bytes(data)
            return Path(path)
    raise ValueError(f"{len(film)} frames do not fit into a GIF of {max_bytes} bytes; give fewer frames or columns")


def write_episode_video(images: np.ndarray, path: str | Path, fps: float = 30.0) -> Path:
    """Write the images uint8 [T, h, w, c] of one episode, enlarged to about 256 pixels."""
    scale = max(1, 256 // images.shape[1])
    film = images.repeat(scale, axis=1).repeat(scale, axis=2)
    return write_video(np.broadcast_to(film, (*film.shape[:3], 3)), path, fps)


def write_json(metrics: dict[str, Any], path: str | Path) -> Path:
    """Write metrics beside a video, whole or not at all; what is not finite becomes null."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(_finite(metrics), indent=1, allow_nan=False) + "\n")
    return Path(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error_image(imagination: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(imagination - truth) / 2 + mid-grey, uint8 of any shape."""
    return ((imagination.astype(np.int16) - truth) // 2 + 128).astype(np.uint8)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which it replaces if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_film(film: np.ndarray, fps: float | int) -> None:
    if film.dtype != np.uint8 or film.ndim != 4 or film.shape[-1] != 3 or 0 in film.shape:
        raise ValueError(f"a film is uint8 [T, H, W, 3] with a frame at least, this is {film.dtype} {film.shape}")
    if not fps > 0:
        raise ValueError(f"fps is {fps}, it must be positive")
