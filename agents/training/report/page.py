"""The page: one HTML file with its style, its script and its data, which opens from disk without a network."""

from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from agents.training.report import dreams, health, learning
from agents.training.report.alarms import alarms
from agents.training.report.elements import Section, plural
from agents.training.report.look import Look, look
from agents.training.report.runs import Alarm, Group, group_runs, read_runs
from agents.training.video import replacing


def build(
    folders: Sequence[Path], out: Path, *, episodes: int, play: bool, note: Callable[[str], None]
) -> tuple[Path, int]:
    """Write the page about all runs among ``folders`` to ``out``; the page, and how many runs are on it.

    The world model of each run imagines ``episodes`` recorded episodes, or ones that are played now; 0 for none.
    ``note`` is told every problem in a line. Raises ``ValueError`` where none of the folders is a run.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: {'it is a folder' if out.is_dir() else 'there is no such folder'}")
    runs, problems = read_runs(folders)
    if not runs:
        raise ValueError(f"none of these is a run: {'; '.join(problem.line for problem in problems)}")
    groups = group_runs(runs)
    looks: list[Look] = []
    for run in [run for group in groups for run in group.runs if run.understood] if episodes else []:
        try:
            looks.append(look(run, episodes, play=play))
        except (ValueError, OSError) as error:
            problems.append(Alarm(False, run.name, f"not looked at: {' '.join(str(error).split())}"))
    for problem in problems:
        note(problem.line)
    recorded = "the newest episodes of each run's replay, which it has learned from"
    source = "the seeds of evaluation, played just now" if play else recorded
    sections = [
        health.warnings(alarms(groups, problems)),
        learning.overview(groups),
        learning.learning(groups),
        learning.comparison(groups),
        dreams.films(groups, out),
        dreams.horizons(groups),
        dreams.sequences(looks, groups, source),
        health.training(groups),
        health.configs(groups),
    ]
    text = document(groups, [section for section in sections if section is not None])
    with replacing(out) as partial:
        partial.write_bytes(text.encode("utf-8", "replace"))  # names of folders may be no text
    return out, len(runs)


def document(groups: Sequence[Group], sections: Sequence[Section]) -> str:
    """The whole HTML."""
    runs = [run for group in groups for run in group.runs]
    agents, tasks = ({getattr(run, what) for run in runs} for what in ("agent", "task"))
    title = f"{', '.join(sorted(agents))} on {', '.join(sorted(tasks))}"
    title = title if len(title) <= 80 else f"{plural(len(agents), 'agent')} on {plural(len(tasks), 'task')}"
    links = "".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.id}"><h2>{escape(section.title)}</h2>{section.html}</section>' for section in sections
    )
    made = f"{plural(len(runs), 'run')}, {plural(len(groups), 'group')} · {datetime.now():%d %B %Y, %H:%M}"
    style, script = (files(__package__ or "").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{made}</p></header><nav>{links}</nav><main>{body}</main>"
        f'<div id="tip" hidden></div><script>{script}</script></body></html>\n'
    )
