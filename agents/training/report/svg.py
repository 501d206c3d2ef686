"""Charts as SVG, drawn without a library: lines with bands, intervals, points, bars.

Colours are classes (``c0`` to ``c7``, ``ink``), so that the page's style sheet decides them in light and in dark. A
chart carries what a pointer is to be told in ``data-tip``: a list of [x in the drawing, title, [[class, name, text]]].
"""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from agents.training.report.statistics import Interval

COLOURS = 8
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 40  # margins, for axes and their names
LOG_FROM = 50.0  # ratio of the greatest to the smallest value, both positive, from which an axis is logarithmic


class Line(NamedTuple):
    """A curve; NaN breaks it. ``low`` and ``high`` are its band."""

    name: str
    style: str  # classes: cN for the colour, and faint or dash
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    told: bool = True  # whether the pointer is told its values
    dots: bool = False


class Axis(NamedTuple):
    """Maps values to the drawing, from ``begin`` to ``end`` in its units."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: Any) -> Any:
        low, high, value = (np.log10(v) if self.log else v for v in (self.low, self.high, np.asarray(value, float)))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def ticks(self, about: int) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for digits, apart in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), n) for n in range(1, last - first + 2))):
                marks = [d * 10.0**p for p in range(first, last + 1, apart) for d in digits]
                marks = [mark for mark in marks if self.low <= mark <= self.high]
                if len(marks) <= about + 1:
                    return marks
        return round_ticks(self.low, self.high, about)


def colour(index: int) -> str:
    """The classes of a group's colour; with more groups than colours they begin again, with broken lines."""
    return f"c{index % COLOURS}" + (" again" if index >= COLOURS else "")


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in [low, high], about so many."""
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float, digits: int = 3) -> str:
    """A number for people: ``12.3``, ``40k``, ``1.5M``, ``2e-06``; whole ones keep all digits before the point."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 1e-12:
        return "0"
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and value % (unit / 10) == 0):
            value, unit_name = value / unit, name
            break
    else:
        unit_name = ""
    return f"{value:.{max(digits, len(str(int(abs(value)))))}g}{unit_name}"


def spans(values: Sequence[np.ndarray], pad: float = 0.06) -> tuple[float, float]:
    """The range of all finite values, with some room; never empty."""
    flat = np.concatenate([np.ravel(v) for v in values]) if values else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if len(flat) else (0.0, 1.0)
    room = (high - low) * pad
    return (low - room, high + room) if high - low > 1e-9 * max(1.0, abs(low)) else (low - 0.5, high + 0.5)


def line_chart(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    size: tuple[int, int] = (640, 340),
    limits: tuple[float, float] | None = None,
    log: bool = False,
    x_limits: tuple[float, float] | None = None,
) -> str:
    """Curves over one another. Without ``limits`` the curves, not their bands, decide what is seen of y.

    ``log`` allows a logarithmic axis where values are positive and far apart.
    """
    width, height = size
    values = [line.y for line in lines]
    finite = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.zeros(0)
    log = log and len(finite) > 0 and finite.min() > 0 and bool(finite.max() / finite.min() >= LOG_FROM)
    low, high = limits or ((float(finite.min()) / 1.2, float(finite.max()) * 1.2) if log else spans(values))
    x = Axis(*(x_limits or spans([line.x for line in lines], 0.0)), LEFT, width - RIGHT)
    y = Axis(low, high, height - BOTTOM, TOP, log)
    parts = [frame(x, y, x_name, y_name, size)]
    parts += [band(line, x, y) for line in lines if line.low is not None]
    parts += [curve(line, x, y) for line in sorted(lines, key=lambda line: line.told)]
    return chart("".join(parts), size, f"{y_name} against {x_name}", tips(lines, x, x_name), (y.end, y.begin))


def chart(
    inside: str, size: tuple[int, int], label: str, tip: list[Any] | None = None, span: tuple[float, float] = (0, 0)
) -> str:
    """An SVG as wide as there is room for; ``span`` is from where to where the pointer's line goes."""
    name = f' aria-label="{escape(label)}"'
    told = f' data-tip="{escape(json.dumps(tip, separators=(",", ":")))}"' if tip else ""
    cross = f'<line class="cross" y1="{span[0]:g}" y2="{span[1]:g}"/>' if tip else ""
    return f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img"{name}{told}>{inside}{cross}</svg>'


def frame(x: Axis, y: Axis, x_name: str, y_name: str, size: tuple[int, int]) -> str:
    """Grid, ticks and names of both axes."""
    width, height = size
    many = 6 if width > 500 else 4
    rows = [
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{number(t)}</text>'
        for t in y.ticks(5 if height > 250 else 4)
    ]
    columns = [
        f'<text class="tick" x="{x(t):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{number(t)}</text>'
        for t in x.ticks(many)
    ]
    names = (
        f'<text class="axis" x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 4}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
        f'<text class="axis" x="14" y="{(TOP + height - BOTTOM) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + height - BOTTOM) / 2:.0f})">{escape(y_name)}</text>'
    )
    base = f'<line class="base" x1="{LEFT}" x2="{width - RIGHT}" y1="{height - BOTTOM}" y2="{height - BOTTOM}"/>'
    return "".join((*rows, *columns, base, names))


def curve(line: Line, x: Axis, y: Axis) -> str:
    """One or several strokes, as NaN breaks them, and dots."""
    px, py = x(line.x), np.clip(y(line.y), y.end - 2, y.begin + 2)
    good = np.isfinite(py)
    starts = good & ~np.concatenate(([False], good[:-1]))
    path = "".join(
        f"{'M' if start else 'L'}{a:.1f} {b:.1f}" for a, b, ok, start in zip(px, py, good, starts, strict=True) if ok
    )
    dots = [(a, b) for a, b, ok in zip(px, py, good, strict=True) if ok] if line.dots or good.sum() == 1 else []
    round_ones = "".join(f'<circle class="{line.style}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in dots)
    return f'<path class="line {line.style}" d="{path}"/>{round_ones}'


def band(line: Line, x: Axis, y: Axis) -> str:
    """What lies between ``low`` and ``high``, cut off at the edge of the chart."""
    assert line.low is not None and line.high is not None
    good = np.isfinite(line.low) & np.isfinite(line.high)
    if good.sum() < 2:
        return ""
    px = x(line.x[good])
    up, down = (np.clip(y(v[good]), y.end, y.begin) for v in (line.high, line.low))
    corners = [*zip(px, up, strict=True), *zip(px[::-1], down[::-1], strict=True)]
    return f'<path class="band {line.style}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in corners)}Z"/>'


def tips(lines: Sequence[Line], x: Axis, x_name: str) -> list[Any]:
    """At every x that a told line has a value at: what they say there."""
    told = [line for line in lines if line.told]
    found: dict[float, list[list[str]]] = {}
    for line in told:
        for i in np.flatnonzero(np.isfinite(line.y)):
            text = number(float(line.y[i]), 4)
            if line.low is not None and line.high is not None and math.isfinite(line.low[i]):
                text += f" [{number(float(line.low[i]))}, {number(float(line.high[i]))}]"
            found.setdefault(float(line.x[i]), []).append([line.style, line.name, text])
    return [[round(float(x(at)), 1), f"{number(at, 6)} {x_name}", found[at]] for at in sorted(found)]


def interval_chart(rows: Sequence[tuple[str, str, Interval]], x_name: str, *, width: int) -> str:
    """A row for each (name, class, interval): its name, below it a dot for the estimate and a bar for the interval."""
    row = 46
    height = TOP + row * len(rows) + BOTTOM
    x = Axis(*spans([np.array([interval for _, _, interval in rows])], 0.08), RIGHT, width - RIGHT)
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{number(t)}</text>'
        for t in x.ticks(5)
    ]
    for i, (name, style, (value, low, high)) in enumerate(rows):
        top = TOP + row * i
        text = f"{name}: {number(value, 4)} [{number(low)}, {number(high)}]"
        bar = f'<rect class="bar {style}" x="{x(low):.1f}" width="{x(high) - x(low):.1f}" y="{top + 22}" height="14"/>'
        dot = f'<circle class="{style}" cx="{x(value):.1f}" cy="{top + 29}" r="5"/>'
        label = f'<text class="name" x="0" y="{top + 14}">{escape(name)}</text>'
        parts.append(f"<g><title>{escape(text)}</title>{label}{bar if math.isfinite(low) else ''}{dot}</g>")
    axis = f'<text class="axis" x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(x_name)}</text>'
    return chart("".join(parts) + axis, (width, height), x_name)


def scatter(x: np.ndarray, y: np.ndarray, style: str, x_name: str, y_name: str, size: tuple[int, int]) -> str:
    """Points beside the diagonal on which both are equal; one scale for both axes."""
    low, high = spans([x, y])
    across, up = Axis(low, high, LEFT, size[0] - RIGHT), Axis(low, high, size[1] - BOTTOM, TOP)
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(across(x), up(y), strict=True))
    diagonal = f'<path class="line ink dash" d="M{LEFT} {size[1] - BOTTOM}L{size[0] - RIGHT} {TOP}"/>'
    return chart(
        f'{frame(across, up, x_name, y_name, size)}{diagonal}<path class="dots {style}" d="{dots}"/>',
        size,
        f"{y_name} against {x_name}",
    )


def bars(values: np.ndarray, dim: np.ndarray, style: str, x_name: str, y_name: str, size: tuple[int, int]) -> str:
    """A bar for each value from zero up; those that ``dim`` says are grey."""
    x = Axis(0, len(values), LEFT, size[0] - RIGHT)
    y = Axis(0, spans([values, np.zeros(1)])[1], size[1] - BOTTOM, TOP)
    width = max(0.8, (x(1) - x(0)) * 0.78)
    drawn = "".join(
        f'<rect class="bar {"off" if off else style}" x="{x(i + 0.11):.1f}" width="{width:.1f}" y="{y(value):.1f}" '
        f'height="{max(0.6, y.begin - y(value)):.1f}"/>'
        for i, (value, off) in enumerate(zip(values, dim, strict=True))
    )
    return chart(frame(x, y, x_name, y_name, size) + drawn, size, f"{y_name} by {x_name}")
