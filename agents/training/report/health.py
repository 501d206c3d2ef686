"""How training went: warnings, gradient norms, losses, speed, and what differs between the configs."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from agents.training.report.elements import Section, details, download, figure, grid, legend, swatch, table
from agents.training.report.runs import Alarm, Group, RunData, differences, metric_names, show
from agents.training.report.svg import Line, colour, line_chart

SEEN, KEYS = 6, 30  # warnings and keys of configs that are not folded away
MOST = 300  # points of a curve; beyond them, means of neighbours
SMALL = (420, 230)
ROOMS = {  # by the beginning of a metric's name; what is in none of them is not shown
    "Gradient norms": ("gradient_norm",),
    "World model": ("total", "model/"),
    "Agent": ("agent/",),
    "Playing": ("train/", "eval/length", "eval/terminal"),
}


def warnings(found: Sequence[Alarm]) -> Section:
    """What is wrong, grave things first; of many the rest is folded away."""
    lines = [
        f'<li class="{"grave" if alarm.grave else "mild"}"><b>{escape(alarm.who)}</b> {escape(alarm.what)}</li>'
        for alarm in found
    ]
    first, rest = (f'<ul class="warnings">{"".join(part)}</ul>' for part in (lines[:SEEN], lines[SEEN:]))
    more = details(f"{len(lines) - SEEN} more", rest) if len(lines) > SEEN else ""
    none = "Nothing to warn of: runs are finished, numbers finite, latents in use, versions the same."
    return Section("warnings", "Warnings", first + more if lines else f'<p class="how">{none}</p>')


def training(groups: Sequence[Group]) -> Section:
    """Small charts of all that was logged, folded by what they are of."""
    runs = [run for group in groups for run in group.runs]
    names = metric_names(runs)
    key = legend(dict.fromkeys((group.label, colour(group.colour)) for group in groups))
    parts = [key, details("Speed", grid(speeds(groups)), opened=True)]
    for title, begins in ROOMS.items():
        inside = [small(groups, name) for name in names if name.startswith(begins)]
        if inside:
            parts.append(details(f"{title} ({len(inside)})", grid(inside), opened=title == "Gradient norms"))
    rows = [(run.name, name, x, y) for run in runs for name in names for x, y in zip(*run.metric(name), strict=True)]
    how = (
        '<p class="how">Each line is a run in its agent\'s colour; axes are logarithmic where values are far apart, '
        f"and of more than {MOST} points neighbours are averaged. Everything that was logged: "
        f"{download('metrics.csv', ('run', 'metric', 'env steps or updates', 'value'), rows)}</p>"
    )
    return Section("training", "Training", how + "".join(parts))


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MOST`` points: means of equally many neighbours."""
    if len(x) <= MOST:
        return x, y
    return tuple(np.array([part.mean() for part in np.array_split(v, MOST)]) for v in (x, y))  # pyright: ignore


READ = {
    "gradient_norm": "Norm of the gradient before clipping: spikes mean unstable learning, zero means nothing learns.",
    "gradient_norm_clipped": "Norm of the gradient that was applied: flat at the limit means always clipped.",
    "total": "Sum of all weighted losses: it should fall, then level off.",
    "kl": "Nats that the image tells the latent beyond the dynamics: near zero is posterior collapse.",
    "image": "Loss of drawing the image from the latent: lower draws better.",
    "reward": "Loss of predicting rewards: lower predicts better.",
    "prior_entropy": "Nats of doubt before the image is seen: falling means that the dynamics are foreseen.",
    "posterior_entropy": "Nats of doubt after the image is seen.",
    "entropy": "Randomness of the actions: falling means that the agent commits itself.",
    "return": "Return of episodes played to collect data, exploration included: higher is better.",
}


def run_lines(groups: Sequence[Group], curve: Callable[[RunData], tuple[np.ndarray, np.ndarray]]) -> list[Line]:
    """A thin line for each run whose curve has points."""
    found = ((group, run, *thinned(*curve(run))) for group in groups for run in group.runs)
    return [Line(run.name, f"{colour(group.colour)} thin", x, y) for group, run, x, y in found if len(x)]


def small_chart(groups: Sequence[Group], lines: list[Line]) -> str:
    return line_chart(lines, groups[0].runs[0].axis.replace("_", " "), "", size=SMALL, log=True)


def small(groups: Sequence[Group], name: str) -> str:
    """One metric of all runs."""
    room, _, term = name.partition("/")
    how = READ.get(room if room.startswith("gradient") or not term else term, f"{name} as the run logged it.")
    return figure(name, how, small_chart(groups, run_lines(groups, lambda run: run.metric(name))))


def speeds(groups: Sequence[Group]) -> list[str]:
    found = []
    for count, what in (("env_steps", "env steps"), ("updates", "updates")):
        if lines := run_lines(groups, lambda run, count=count: speed(run, count)):
            how = f"How many {what} a second, evaluations and films included: dips are those, a slope is a slowdown."
            found.append(figure(f"{what} per second", how, small_chart(groups, lines)))
    return found


def speed(run: RunData, count: str) -> tuple[np.ndarray, np.ndarray]:
    """Counts per second between lines of the log that lie some seconds apart, on the run's axis."""
    counted = [(entry[run.axis], entry[count], entry.get("time", np.nan)) for entry in run.history]
    kept: list[tuple[float, float, float]] = []
    for row in counted:
        if np.isfinite(row[2]) and (not kept or row[2] - kept[-1][2] >= 5.0):
            kept.append(row)
    x, n, seconds = np.array(kept, float).reshape(-1, 3).T
    rate = np.diff(n) / np.maximum(np.diff(seconds), 1e-9)
    good = rate > 0
    return x[1:][good], rate[good]


def configs(groups: Sequence[Group]) -> Section | None:
    """A row for each key of the configs that is not the same everywhere; None for a single group."""
    if len(groups) < 2:
        return None
    rows = differences([group.runs[0].config for group in groups])
    several = len({group.task for group in groups}) > 1
    heads = [f"{group.label} on {group.task}" if several else group.label for group in groups]
    marked = [swatch(head, colour(group.colour)) for head, group in zip(heads, groups, strict=True)]
    shared_first = sorted(rows.items(), key=lambda row: None in row[1])
    cells = [(key, *map(show, values)) for key, values in shared_first]
    tables = table(("key", *marked), cells[:KEYS], "config")
    if len(cells) > KEYS:
        tables += details(f"{len(cells) - KEYS} more keys", table(("key", *marked), cells[KEYS:], "config"))
    how = '<p class="how">Only the keys whose values differ; seeds, and how a run is watched, are left out.</p>'
    return Section("configs", "Configs", how + (tables if rows else '<p class="how">No key differs.</p>'))
