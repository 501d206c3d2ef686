"""Pieces of the page. What comes from a run is escaped here or where it is put in; nothing else escapes it later."""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple


class Section(NamedTuple):
    """A part of the page with its own heading."""

    id: str
    title: str
    html: str


def figure(title: str, how: str, *inside: str, data: str = "", wide: bool = False) -> str:
    """A chart under its title, with one sentence that says how to read it and a link to its numbers."""
    foot = f"<figcaption>{escape(how)}{f' {data}' if data else ''}</figcaption>"
    return f"<figure{' class=wide' if wide else ''}><h3>{escape(title)}</h3>{''.join(inside)}{foot}</figure>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Names (name, classes) beside a stroke in their colours."""
    keys = "".join(
        f'<span><svg viewBox="0 0 22 8"><path class="line {style}" d="M1 4H21"/></svg>{escape(name)}</span>'
        for name, style in entries
    )
    return f'<p class="legend">{keys}</p>'


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], classes: str = "") -> str:
    """Cells are text, or ``Raw`` HTML; numbers stand right."""
    top = "".join(f"<th>{cell(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{classes}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


class Raw(NamedTuple):
    """HTML that this package made."""

    html: str


def cell(value: Any) -> str:
    return value.html if isinstance(value, Raw) else escape(str(value))


def swatch(name: str, style: str) -> Raw:
    """A name behind a dot in its colour."""
    return Raw(f'<svg class="swatch" viewBox="0 0 10 10"><circle class="{style}" cx="5" cy="5" r="4.5"/></svg>'
               f"{escape(name)}")  # fmt: skip


def download(name: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A link that saves a CSV, which the page carries itself."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([guarded(value) for value in row] for row in rows)
    data = base64.b64encode(text.getvalue().encode("utf-8", "replace")).decode()
    return f'<a class="data" download="{escape(name)}" href="data:text/csv;base64,{data}">{escape(name)}</a>'


def guarded(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def details(title: str, inside: str, *, opened: bool = False) -> str:
    """A part that can be folded away."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{inside}</details>"


def grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'


def plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
