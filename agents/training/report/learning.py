"""How well agents play: the runs at a glance, learning curves, and agents compared over seeds and tasks."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from agents.training.report import statistics
from agents.training.report.elements import Raw, Section, download, figure, legend, plural, swatch, table
from agents.training.report.runs import Group
from agents.training.report.statistics import Interval
from agents.training.report.svg import Line, colour, interval_chart, line_chart, number

CROWDED = 5  # agents in one chart, beyond which bands hide the lines
Strata = dict[str, dict[str, np.ndarray]]  # normalised scores by label and task


def overview(groups: Sequence[Group]) -> Section:
    """A row for each run."""
    rows = []
    for group in groups:
        for run in group.runs:
            asked = run.config.get("training.env_steps", 0)
            done = run.total("env_steps")
            steps = number(done, 4) + (f" of {number(asked, 4)}" if isinstance(asked, int) and done < asked else "")
            baselines = [number(run.baselines.get(who, math.nan)) for who in ("random", "zero")]
            numbers = [number(run.last_return), *baselines, steps, number(run.total("updates"), 4)]
            cells = [Raw(f'<span class="n">{value}</span>') for value in (*numbers, clock(run.total("time")))]
            rows.append([run.name, swatch(group.label, colour(group.colour)), run.task, run.seed, *cells])
    head = ("run", "agent", "task", "seed", "last return", "random", "no action", "env steps", "updates", "time")
    how = '<p class="how">One row is one run; the returns are means of its last evaluation and of the baselines.</p>'
    return Section("runs", "Runs", how + table(head, rows))


def clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"


def by_task(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups with evaluations, by task."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.evaluated:
            found.setdefault(group.task, []).append(group)
    return found


def learning(groups: Sequence[Group]) -> Section:
    """A chart of evaluation returns for each task."""
    figures = [curves(task, same) for task, same in by_task(groups).items()]
    return Section("learning", "Learning", "".join(figures) or '<p class="how">No run has been evaluated yet.</p>')


def curves(task: str, groups: Sequence[Group]) -> str:
    lines, rows, entries = [], [], []
    axis = groups[0].evaluated[0].axis
    for group in groups:
        x, intervals = statistics.mean_curve([run.evaluations for run in group.evaluated])
        mean, low, high = np.array(intervals).T
        style = colour(group.colour)
        seeds = plural(len(group.evaluated), "seed")
        if len(groups) > CROWDED:
            low = high = np.full(len(x), math.nan)
        elif len(group.evaluated) > 1:
            lines += [Line(run.name, f"{style} faint", *run.evaluations, told=False) for run in group.evaluated]
        lines.append(Line(group.label, style, x, mean, low, high, dots=len(x) <= 60))
        entries.append((f"{group.label} · {seeds}", style))
        for run in group.evaluated:
            rows += [(group.label, run.name, run.seed, s, r) for s, r in zip(*run.evaluations, strict=True)]
    end = np.array([0.0, max(1.0, *(float(line.x[-1]) for line in lines))])
    for who, name, style in (("random", "random play", "ink dash"), ("zero", "no action", "ink dot")):
        known = [run.baselines[who] for group in groups for run in group.evaluated if who in run.baselines]
        if known:
            lines.append(Line(name, style, end, np.full(2, np.mean(known)), told=False))
            entries.append((name, style))
    data = download("evaluations.csv", ("agent", "run", "seed", axis, "return"), rows)
    how = (
        "Return of evaluation episodes, higher is better: the thick line is the mean over seeds, the band its 95 % "
        "interval (Student's t over seeds, wide for few seeds and cut at the chart's edge), thin lines are single runs."
    )
    if len(groups) > CROWDED:
        how = (
            f"Return of evaluation episodes, higher is better: means over seeds. With more than {CROWDED} agents there "
            "are no bands here; the table below has the intervals."
        )
    charts = [  # the style sheet shows the one that fits the window
        f'<div class="{fits}">'
        + line_chart(lines, axis.replace("_", " "), "return", size=size, x_limits=(0, float(end[1])))
        + "</div>"
        for fits, size in (("roomy", (960, 420)), ("narrow", (440, 330)))
    ]
    return figure(task, how, legend(entries), *charts, data=data, wide=True)


def comparison(groups: Sequence[Group]) -> Section | None:
    """Agents against each other; None where there is nothing to compare."""
    tasks = {task: same for task, same in by_task(groups).items() if len(same) > 1}
    if not tasks:
        return None
    parts = [score_table(task, same) for task, same in tasks.items()]
    scores, left_out = normalised(tasks)
    parts += [f'<p class="how">{escape(line)}</p>' for line in left_out]
    if scores:
        among = ", ".join(next(iter(scores.values())))
        score, pairs, shares = aggregate(scores, groups, among), duels(scores), profiles(scores, groups)
        few = len(scores) <= 3  # so that the table fits below the scores
        left, below = (score + pairs, "") if few else (score, pairs)
        parts.append(f'<div class="grid"><div>{left}</div><div>{shares}</div></div>{below}')
    return Section("comparison", "Comparison", "".join(parts))


def score_table(task: str, groups: Sequence[Group]) -> str:
    """Returns of each agent on one task: at the end, and over the whole of learning."""
    rows = []
    for group in groups:
        last = np.array([run.last_return for run in group.evaluated])
        whole = np.array([run.evaluations[1].mean() for run in group.evaluated])
        cells = [
            spread(statistics.t_interval(last)),
            spread(statistics.bootstrap([last], statistics.iqm)),
            spread(statistics.t_interval(whole)),
        ]
        rows.append([swatch(group.label, colour(group.colour)), len(last), *cells])
    how = (
        "Last: mean of the last evaluations with its t interval. IQM: their interquartile mean (of three seeds the "
        "mean) with its bootstrap interval. Whole curve: mean of all evaluations, so that learning sooner counts."
    )
    head = ("agent", "seeds", "last return", "IQM of last returns", "whole curve")
    return figure(f"Returns on {task}", how, table(head, rows), wide=True)


def spread(interval: Interval) -> Raw:
    """An estimate with its interval."""
    value, low, high = interval
    ends = f" <small>[{number(low)}, {number(high)}]</small>" if math.isfinite(low) else ""
    return Raw(f'<span class="n">{number(value, 4)}{ends}</span>')


def normalised(tasks: dict[str, list[Group]]) -> tuple[Strata, list[str]]:
    """Last returns by label and task, 0 for random play and 1 for the best run here; a line for what is left out."""
    labels = list(dict.fromkeys(group.label for same in tasks.values() for group in same))
    scores: Strata = {label: {} for label in labels}
    left_out = []
    for task, same in tasks.items():
        if {group.label for group in same} != set(labels):
            left_out.append(f"{task} is not among the comparisons below: not every agent has played there.")
            continue
        runs = [run for group in same for run in group.evaluated]
        random = [run.baselines["random"] for run in runs if "random" in run.baselines]
        best = max(run.last_return for run in runs)
        if not random or best <= np.mean(random):
            left_out.append(f"{task} is not among the comparisons below: no run is known to beat random play.")
            continue
        low = float(np.mean(random))
        for group in same:
            scores[group.label][task] = np.array([(r.last_return - low) / (best - low) for r in group.evaluated])
    return (scores if any(scores.values()) else {}), left_out


def colours_of(groups: Sequence[Group]) -> dict[str, str]:
    return {group.label: colour(group.colour) for group in groups}


def aggregate(scores: Strata, groups: Sequence[Group], tasks: str) -> str:
    styles = colours_of(groups)
    rows = [
        (label, styles[label], statistics.bootstrap(list(strata.values()), statistics.iqm))
        for label, strata in scores.items()
    ]
    data = download(
        "scores.csv",
        ("agent", "task", "normalised last return"),
        [(label, task, score) for label, s in scores.items() for task, values in s.items() for score in values],
    )
    how = (
        "Interquartile mean of the runs' last returns (0 is random play, 1 the best run on this page) with its 95 % "
        f"stratified bootstrap interval: bars that overlap are not told apart. Tasks: {tasks}."
    )
    return figure("Score of all runs", how, interval_chart(rows, "normalised return", width=440), data=data)


def profiles(scores: Strata, groups: Sequence[Group]) -> str:
    """Performance profiles with pointwise bands."""
    styles, lines, rows = colours_of(groups), [], []
    everything = np.concatenate([v for strata in scores.values() for v in strata.values()])
    thresholds = np.linspace(min(0.0, float(everything.min())), max(1.0, float(everything.max())), 201)
    for label, strata in scores.items():
        drawn = np.concatenate(statistics.resampled(list(strata.values())), axis=-1)
        low, high = statistics.bounds(statistics.profile(drawn, thresholds))
        share = statistics.profile(np.concatenate(list(strata.values())), thresholds)
        banded = (low, high) if len(scores) <= CROWDED else (None, None)
        lines.append(Line(label, styles[label], thresholds, share, *banded))
        rows += [(label, t, s) for t, s in zip(thresholds, share, strict=True)]
    chart = line_chart(lines, "normalised return", "share of runs above", size=(440, 280), limits=(0, 1.02))
    data = download("profiles.csv", ("agent", "threshold", "share of runs above"), rows)
    how = "For each score, the share of runs that are above it: a higher line is better, a steep one means equal seeds."
    return figure("Performance profiles", how, legend([(line.name, line.style) for line in lines]), chart, data=data)


def duels(scores: Strata) -> str:
    """Who beats whom how often."""
    rows = []
    for ours, a in scores.items():
        cells: list[object] = [ours]
        for theirs, b in scores.items():
            if ours == theirs:
                cells.append("")
                continue
            pair = statistics.improvement(list(a.values()), list(b.values()))
            ends = f" <small>[{100 * pair.low:.0f}, {100 * pair.high:.0f}]</small>" if math.isfinite(pair.low) else ""
            cells.append(Raw(f'<span class="n">{100 * pair.value:.0f}{ends}</span>'))
        rows.append(cells)
    how = (
        "Chance in % that a run of the row's agent ends better than one of the column's on the same task, with its "
        "95 % bootstrap interval: 50 is even."
    )
    return figure("Who beats whom", how, table(("", *scores), rows))
