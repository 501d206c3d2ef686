"""What world models imagine: films by checkpoint, errors against the horizon, and single sequences."""

import base64
import io
import json
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents.training.imagined import mean_compared
from agents.training.report.elements import Section, details, download, figure, grid, legend, plural
from agents.training.report.look import Look
from agents.training.report.runs import Film, Group, RunData
from agents.training.report.svg import Line, bars, colour, line_chart, number, scatter
from agents.training.video import error_image

EMBEDDED = 16_000_000  # bytes of films in all that the page carries itself; more lie in a folder beside it
MEDIA = {".mp4": "video/mp4", ".gif": "image/gif"}
STEPS = (1, 5, 15, 30, 45)  # imagined steps that a strip shows
POINTS = 400  # of a scatter plot
SMALL = (420, 250)
LAST_FRAME = ("last frame repeated", "ink dash")


def films(groups: Sequence[Group], page: Path) -> Section | None:
    """A viewer with a slider over checkpoints; None without films. May write the folder ``PAGE-films``."""
    runs = [run for group in groups for run in group.runs if run.films]
    if not runs:
        return None
    every = [film for run in runs for film in run.films]
    folder = None
    if sum(film.path.stat().st_size for film in every) > EMBEDDED:
        folder = page.with_name(f"{page.stem}-films")
        folder.mkdir(exist_ok=True)
    shown = [
        {"run": run.name, "films": [viewed(film, f"{i:02d}", folder) for film in run.films]}
        for i, run in enumerate(runs)
    ]
    data = json.dumps(shown).replace("<", "\\u003c")
    where = f" The films lie in the folder {folder.name} beside this page." if folder else ""
    how = (
        "Rows are truth, reconstruction, imagination and error (grey is right); a green border means that the model "
        f"sees frames, a red one that it imagines: slide to see how the dreams grew better.{where}"
    )
    controls = (
        '<div class="controls"><label>run <select class="run"></select></label>'
        '<label>beside <select class="other"></select></label>'
        '<label>film <select class="kind"><option value="imagined">imagined from recorded actions</option>'
        '<option value="policy">the policy\'s own mind</option></select></label></div>'
        '<label class="slide">checkpoint <input type="range" class="age" min="0" max="0" value="0" step="1">'
        "<output></output></label>"
        '<div class="screens"><div class="screen"></div><div class="screen"></div></div>'
        '<label class="slide"><button type="button" class="play">pause</button>'
        '<input type="range" class="time" min="0" max="1" value="0" step="0.001" aria-label="time"></label>'
        "<noscript><p>The films need JavaScript, which the page carries itself.</p></noscript>"
    )
    viewer = f'<div class="viewer">{controls}<script type="application/json">{data}</script></div>'
    return Section("films", "Imagined rollouts", figure("By checkpoint", how, viewer, wide=True))


def viewed(film: Film, number_of_run: str, folder: Path | None) -> dict[str, Any]:
    """A film as the page's script needs it, its bytes or where they lie."""
    if folder is None:
        source = f"data:{MEDIA[film.path.suffix]};base64,{base64.b64encode(film.path.read_bytes()).decode()}"
    else:
        name = f"{number_of_run}-{film.env_steps:09d}-{film.updates:09d}-{film.kind}{film.path.suffix}"
        shutil.copyfile(film.path, folder / name)
        source = f"{folder.name}/{name}"
    curve = floats(film.numbers.get("psnr"))
    said = f", PSNR {np.nanmean(curve):.1f} dB" if np.isfinite(curve).any() else ""
    about = f"{film.env_steps:,} env steps, {film.updates:,} updates".replace(",", " ").replace("  ", ", ")
    return {"kind": film.kind, "at": [film.env_steps, film.updates], "about": about + said, "source": source}


def floats(values: Any) -> np.ndarray:
    """Numbers of a JSON list, NaN where there is none; empty for anything else."""
    listed = values if isinstance(values, list) else []
    return np.array([float(v) if isinstance(v, int | float) else np.nan for v in listed])


CURVES = {
    "psnr": ("PSNR", "dB", "dB of likeness to the truth at each imagined step, higher is better"),
    "ssim": ("Structural similarity", "", "likeness of structures, 1 is equal, higher is better"),
    "reward_error": ("Reward error", "", "absolute error of the predicted reward in the task's units, lower is better"),
}


def horizons(groups: Sequence[Group]) -> Section | None:
    """Numbers of the newest films against the imagined step, and PSNR by age; None without any."""
    newest = [
        (group, run, film)
        for group in groups
        for run in group.runs
        if (film := next((f for f in reversed(run.films) if len(floats(f.numbers.get("psnr")))), None))
    ]
    if not newest:
        return None
    tasks = list(dict.fromkeys(run.task for _, run, _ in newest))
    parts = []
    for task in tasks:
        here = [entry for entry in newest if entry[1].task == task]
        figures = [horizon(here, key) for key in CURVES]
        figures += [by_age(group, group.runs[0]) for group in groups if group.task == task]
        title = f"<h3 class=part>{escape(task)}</h3>" if len(tasks) > 1 else ""
        parts.append(title + grid(filter(None, figures)))
    key = legend([*dict.fromkeys((group.label, colour(group.colour)) for group, _, _ in newest), LAST_FRAME])
    return Section("horizon", "Error against horizon", key + "".join(parts))


def horizon(newest: Sequence[tuple[Group, RunData, Film]], key: str) -> str:
    title, y_name, how = CURVES[key]
    lines, rows = [], []
    copies: dict[int, list[np.ndarray]] = {}  # by length
    for group, run, film in newest:
        y = floats(film.numbers.get(key))
        x = np.arange(1.0, len(y) + 1)
        lines.append(Line(run.name, f"{colour(group.colour)} thin", x, y))
        rows += [(run.name, film.env_steps, step, value) for step, value in zip(x, y, strict=True)]
        copy = floats(film.numbers.get("psnr_copy_last_frame"))
        copies.setdefault(len(copy), []).append(copy)
    for length, curves in copies.items() if key == "psnr" else ():
        lines.append(Line(*LAST_FRAME, np.arange(1.0, length + 1), np.mean(curves, axis=0)))
    data = download(f"{key}.csv", ("run", "env steps", "imagined step", key), rows)
    more = "; below the dashed line a model knows less than the last frame repeated" if key == "psnr" else ""
    chart = line_chart(lines, "imagined step", y_name, size=SMALL)
    return figure(f"{title}, newest film", f"Mean over the film's sequences: {how}{more}.", chart, data=data)


def by_age(group: Group, run: RunData) -> str:
    """PSNR against the horizon, a line for each checkpoint, old ones pale; empty where there is only one."""
    aged = [(film, floats(film.numbers.get("psnr"))) for film in run.films]
    aged = [(film, y) for film, y in aged if len(y)]
    if len(aged) < 2:
        return ""
    keep = np.unique(np.linspace(0, len(aged) - 1, min(5, len(aged))).round().astype(int))
    lines = []
    for rank, (film, y) in enumerate(aged[i] for i in keep):
        style = f"{colour(group.colour)} thin age{4 - (len(keep) - 1 - rank)}"
        lines.append(Line(f"{number(film.env_steps)} env steps", style, np.arange(1.0, len(y) + 1), y))
    how = "A line for each checkpoint, the newest strongest; each is on episodes of its own time, maybe harder ones."
    return figure(f"PSNR by age, {run.name}", how, line_chart(lines, "imagined step", "dB", size=SMALL))


def sequences(looks: Sequence[Look], groups: Sequence[Group], source: str) -> Section | None:
    """Best, median and worst sequence of each run that was looked at, its rewards and its latent; None without any."""
    if not looks:
        return None
    styles = {run.name: colour(group.colour) for group in groups for run in group.runs}
    first = {group.runs[0].name for group in groups}
    strips = "".join(strip(shown) for shown in looks if shown.run.name in first)
    others = [strip(shown) for shown in looks if shown.run.name not in first]
    strips += details(plural(len(others), "other seed"), "".join(others)) if others else ""
    rewards = grid(foretold(shown, styles[shown.run.name]) for shown in looks)
    used = grid(variables(shown, styles[shown.run.name]) for shown in looks if shown.usage is not None)
    without = [shown.run.name for shown in looks if shown.usage is None]
    note = f'<p class="how">No latent with a prior to compare: {escape(", ".join(without))}.</p>' if without else ""
    how = f'<p class="how">Newest checkpoints, open loop after {looks[0].imagined.context} frames, on {source}.</p>'
    heads = ("Best, median and worst", strips), ("Predicted against true reward", rewards), ("Use of the latent", used)
    inside = "".join(f"<h3 class=part>{title}</h3>{html}" for title, html in heads if html)
    return Section("sequences", "Sequences", how + inside + note)


def strip(shown: Look) -> str:
    """Truth, imagination and error of three sequences as still pictures."""
    compared = np.flatnonzero(np.isfinite(shown.error))
    if not len(compared):
        return ""
    order = compared[np.argsort(-shown.error[compared])]
    picks = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    context, length = shown.imagined.context, shown.imagined.truth.shape[1]
    at = [context - 1] + [context - 1 + step for step in STEPS if context - 1 + step < length]
    heads = "".join(f"<span>{'seen' if i < context else f'+{i - context + 1}'}</span>" for i in at)
    parts = []
    for name, b in picks.items():
        truth, imagination = shown.imagined.truth[b, at], shown.imagined.imagination[b, at]
        picture = png(tiled([truth, imagination, error_image(imagination, truth)]))
        alt = f"{name}: truth, imagination and error at steps {', '.join(str(i - context + 1) for i in at)}"
        parts.append(
            f'<div class="strip"><p><b>{name}</b><small>{shown.error[b]:.1f} dB</small></p>'
            f'<div class="heads" style="--n:{len(at)}">{heads}</div>'
            f'<div class="rows"><span>truth</span><span>dream</span><span>error</span></div>'
            f'<img alt="{alt}" src="data:image/png;base64,{picture}"></div>'
        )
    how = (
        f"Of {plural(len(compared), 'sequence')} the best, the median and the worst by mean PSNR: columns are imagined "
        "steps, error is grey where the dream is right; the worst one shows what the model does not know."
    )
    return figure(
        f"{shown.run.name}, {number(shown.env_steps)} env steps",
        how,
        f'<div class="strips">{"".join(parts)}</div>',
        wide=True,
    )


def tiled(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Images uint8 [N, h, w, c] in rows: uint8 [H, W, 4], gaps of two pixels see-through."""
    count, height, width = rows[0].shape[:3]
    canvas = np.zeros((len(rows) * (height + 2) - 2, count * (width + 2) - 2, 4), np.uint8)
    for r, row in enumerate(rows):
        for n, image in enumerate(row):
            spot = canvas[r * (height + 2) :][:height, n * (width + 2) :][:, :width]
            spot[..., :3], spot[..., 3] = image, 255  # grey images are spread over the colours
    return canvas


def png(canvas: np.ndarray) -> str:
    """Base64 of a picture uint8 [H, W, 4]."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def foretold(shown: Look, style: str) -> str:
    """Imagined rewards against those that came."""
    seen, context = shown.imagined.compared, shown.imagined.context
    true = shown.imagined.reward[:, context:][seen]
    told = shown.imagined.reward_imagination[:, context:][seen]
    pick = np.linspace(0, len(true) - 1, min(POINTS, len(true))).round().astype(int)
    varied = len(true) > 1 and true.std() > 0 and told.std() > 0
    alike = f" Their correlation is {np.corrcoef(true, told)[0, 1]:.2f}." if varied else ""
    data = download("rewards.csv", ("true", "predicted"), zip(true.tolist(), told.tolist(), strict=True))
    error = float(mean_compared(shown.imagined.reward_error, seen))
    how = f"A point is one imagined step; on the dashed line it is right. Mean absolute error {error:.3g}.{alike}"
    chart = scatter(true[pick], told[pick], style, "true reward", "predicted", SMALL)
    return figure(shown.run.name, how, chart, data=data)


def variables(shown: Look, style: str) -> str:
    """KL of every variable of the latent, greatest first, dead ones grey."""
    assert shown.usage is not None
    order = np.argsort(-shown.usage.kl)
    kl, dead = shown.usage.kl[order], shown.usage.dead[order]
    how = (
        f"KL of each variable's posterior from its prior, greatest first: {int(dead.sum())} of {len(dead)} are dead "
        "(grey), which means that they hardly depend on what is seen."
    )
    return figure(f"{shown.run.name}, {kl.sum():.3g} nats", how, bars(kl, dead, style, "variable", "nats", SMALL))
