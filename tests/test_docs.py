"""The pages for people: every command on them runs or parses, every name and link on them is there.

Fenced blocks say how they are tested by the word after the language: ``bash run`` is executed, ``bash parse`` is read
by the script's command line and not carried out, ``bash setup`` installs, ``python run`` is executed. ``bash debug`` is
executed with training's debug preset on top and with few steps and updates: what a person would wait minutes for. A
page's blocks run in order in one folder that holds a trained run (of the debug preset) as ``RUN``.
"""

import argparse
import contextlib
import importlib
import inspect
import io
import re
import runpy
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from agents.base import Agent
from agents.pretrained import export
from agents.training import cli
from agents.training.config import shipped
from worldmodels.pretrained import read_card

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PAGE_IDS = [page.name for page in PAGES]
FENCE = re.compile(r"^```(?P<language>\w*) ?(?P<how>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TAGS = {"bash": {"run", "debug", "parse", "setup"}, "python": {"run", ""}}
EXECUTED = ("run", "debug")
STAND_INS = (
    "runs/first",
    "RUN",
    "RUN_OR_DIR",
    "runs/dreamer/walker-walk/20260101-120000-seed0",
)  # what pages call a run
FIRST = "python scripts/train.py --agent dreamer --task toy:reach --preset debug --run-dir runs/first"


class Block(NamedTuple):
    language: str
    how: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks(page: Path) -> list[Block]:
    return [Block(*match.groups()) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


def inline_commands(page: Path) -> list[str]:
    """Commands in the middle of sentences."""
    return re.findall(r"`(python scripts/[^`]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))


def script_and_arguments(command: str) -> tuple[Path, list[str]]:
    program, script, *arguments = shlex.split(command, comments=True)
    assert program == "python" and (ROOT / script).is_file(), f"no such script: {command}"
    return ROOT / script, arguments


# What makes a command short, by what it is.
TAKES_PRESETS = r"train\.py(?!.*--(config|resume))|benchmark\.py (?!env)|evaluate\.py.*--agent"
SHORTER = {
    r"train\.py": "--training.video-every 0",
    r"(train|benchmark)\.py(?!.*--(config|resume)).*(walker|finger|cartpole)": "--env.time-limit 60",
    r"train\.py.*--data data/": "--env.size 32",  # what the preset toy says, and those data are
    r"benchmark\.py (act|env|replay|update)": "--turns 2",
    r"benchmark\.py env": "--steps 10 --quality lean",
    r"benchmark\.py uses": "--episodes 2",
    r"evaluate\.py": "--episodes 1",
}
SIZES = r"paper|cpu|toy|debug|\d+m"


def small(command: str) -> str:
    """The same command over in seconds: the debug preset last, no films, short episodes, and few of all that counts."""
    if re.search(TAKES_PRESETS, command):
        asked = re.search(r" --preset ([\w,]+)", command)
        kept = [name for name in (asked[1].split(",") if asked else []) if not re.fullmatch(SIZES, name)]
        command = command.replace(asked[0], "") if asked else command
        command += " --preset " + ",".join([*kept, "debug"])
    for kind, words in SHORTER.items():
        command += f" {words}" if re.search(kind, command) else ""
    most = 340 if re.search(r"--(config|resume)|benchmark\.py run", command) else 60  # a debug run has 300 env steps
    counts = r"(--(?:env-steps|sizes|training\.offline-updates|training\.phases\.\d\.updates) )([\de.,]+)"
    few = partial(re.sub, r"[\de.]+", lambda number: f"{min(float(number[0]), most):.0f}")
    return re.sub(counts, lambda match: match[1] + few(match[2]), command)


class Parsed(Exception):
    """The command line was understood; what follows is not wanted."""


def execute(command: str) -> str:
    """Run a script in this process, which has paid for its imports, and return what it printed."""
    script, arguments = script_and_arguments(command)
    before, handlers = sys.argv, [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    printed = io.StringIO()
    sys.argv = [str(script), *arguments]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(Parsed):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stopped:
        assert not stopped.code, f"{command}: exit code {stopped.code}"
    finally:
        sys.argv = before
        for number, handler in handlers:
            signal.signal(number, handler)
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first run, really trained."""
    folder = tmp_path_factory.mktemp("first")
    with contextlib.chdir(folder):
        torch.set_num_threads(1)
        printed = execute(FIRST)
    assert "eval at" in printed, printed
    return folder / "runs" / "first"


@pytest.fixture
def desk(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a trained run under the names that the pages use, and what is exported of it."""
    for name in STAND_INS:
        shutil.copytree(trained, tmp_path / name)
    export(trained, tmp_path / "DIR")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "accelerator", lambda: False)
    return tmp_path


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every script stops when its command line has been understood."""

    def stop(parse: Any) -> Any:
        def parse_and_stop(*arguments: Any, **keywords: Any) -> None:
            parse(*arguments, **keywords)
            raise Parsed

        return parse_and_stop

    monkeypatch.setattr(cli, "parse", stop(cli.parse))
    parse_known = argparse.ArgumentParser.parse_known_args

    def parse_known_and_stop(*arguments: Any, **keywords: Any) -> Any:
        known, rest = parse_known(*arguments, **keywords)
        if not rest:  # else they are refused, or settings that ``cli.parse`` is to read
            raise Parsed
        return known, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_and_stop)
    yield


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_block_with_a_command_says_how_it_is_tested(page: Path) -> None:
    for block in blocks(page):
        if block.language in TAGS:
            assert block.how in TAGS[block.language], f"{page.name}: {block}"
        else:
            found = re.search(r"^ *(python|pip|pytest) ", block.text, re.MULTILINE)
            assert not found, f"{page.name}: a command in a block that no test reads: {block}"


def test_all_that_the_readme_shows_is_tested() -> None:
    assert all(block.how for block in blocks(ROOT / "README.md") if block.language in TAGS)
    assert FIRST in [line for block in blocks(ROOT / "README.md") for line in block.lines], "what `trained` runs"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_command_that_is_not_run_parses(page: Path, desk: Path, parse_only: None) -> None:
    commands = inline_commands(page)
    for block in blocks(page):
        if block.how == "parse":
            commands += block.lines
        elif block.how == "setup":
            commands += [part for line in block.lines for part in line.split(" && ") if part.startswith("python")]
    for command in commands:
        execute(command)


RUN_PAGES = [page for page in PAGES if any(block.how in EXECUTED for block in blocks(page))]


@pytest.mark.parametrize("page", RUN_PAGES, ids=[page.name for page in RUN_PAGES])
def test_every_command_that_is_run_succeeds(page: Path, desk: Path) -> None:
    example: dict[str, Any] = {"np": np, "obs": np.zeros((1, 64, 64, 3), np.uint8), "is_first": np.array([True])}
    example["card"] = replace(read_card(desk / "DIR"), agent=None)
    for block in blocks(page):
        if block.how not in EXECUTED:
            continue
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), example)
            continue
        for line in block.lines:
            if line != FIRST:  # which made the run that is there
                execute(small(line) if block.how == "debug" else line)
    if "action" in example:
        assert example["action"].shape == (1, 2) and example["action"].dtype == np.float32


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_every_page_that_a_file_speaks_of_exists() -> None:
    files = [path for folder in ("agents", "configs", "scripts", "tests", "worldmodels") for path in
             (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]  # fmt: skip
    for file in [*files, *PAGES]:
        for name in re.findall(r"\bdocs/[\w-]+\.md\b", file.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{file.relative_to(ROOT)} speaks of {name}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["index.md"]


@pytest.mark.parametrize("page", ["README.md", "docs/agents.md"])
def test_the_tables_of_agents_are_complete(page: str) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(shipped().names("agents"))


def test_the_table_of_agents_names_the_right_files_needs_and_models() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", (ROOT / "docs/agents.md").read_text(encoding="utf-8"), re.MULTILINE)
    for name, rest in rows:
        entry = shipped().entry("agents", name)
        file, needs, model, _, presets = (cell.strip() for cell in rest.split("|"))
        module = importlib.import_module(f"agents.{entry.type}")
        own = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__]
        (agent,) = [cls for cls in own if issubclass(cls, Agent) and not inspect.isabstract(cls)]
        assert file == f"`agents/{entry.type}.py`" and model == f"`{entry.world_model}`"
        assert needs == (", ".join(f"`{need.__name__}`" for need in agent.needs) or "nothing")
        known = {*entry.presets, *shipped().entry("worldmodels", entry.world_model).presets, "paper"}
        assert ("200m" in entry.presets) == ("200m" in presets), name
        assert set(re.findall(r"`(\w+)`", presets)) <= known, name


def test_the_table_of_world_models_is_complete_and_names_the_right_files() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `(.+?)` \|", (ROOT / "docs/worldmodels.md").read_text("utf-8"), re.MULTILINE)
    shown = shipped()
    files = {name: f"worldmodels/{shown.entry('worldmodels', name).type}.py" for name in shown.names("worldmodels")}
    assert dict(rows) == files and len(rows) == len(files)


def test_commands_fit_on_a_line_of_a_terminal() -> None:
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.splitlines() if block.how in (*EXECUTED, "parse") else []:
                assert len(line) <= 120, f"{page.name}: {line}"
