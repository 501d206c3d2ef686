"""The page about runs: its statistics, its grouping and warnings, what it says of damaged runs, and that it is safe."""

import base64
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from browser import CHROMIUM, needs_browser

from agents.training.cli import parse
from agents.training.config import save_config
from agents.training.report import dreams, statistics, svg
from agents.training.report.alarms import alarms
from agents.training.report.page import build
from agents.training.report.runs import Alarm, group_runs, read_runs, short_names, told_apart
from agents.training.report.usage import usage
from agents.training.run import train
from worldmodels.latents import Categorical, Gaussian

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert('x')</script>&\"'"
RETURNS = (1.0, 2.0, 4.0)


def write_run(
    folder: Path, agent: str = "dreamer", *words: str, seed: int = 0, returns: Any = RETURNS, **metrics: float | None
) -> Path:
    """A run's folder without checkpoints: an evaluation every 100 env steps, and what ``metrics`` say of each."""
    argv = ["--agent", agent, "--task", "toy:reach", "--preset", "debug", "--seed", str(seed), *words]
    folder.mkdir(parents=True)
    save_config(parse([*argv, "--env-steps", "300"]).config, folder / "config.yaml")
    lines = [
        {"env_steps": 100 * i, "updates": 10 * i, "time": 6.0 * i, "eval/return_mean": value, **metrics}
        for i, value in enumerate(returns, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "baselines.json").write_text(json.dumps({"random": {"return_mean": 0.5}, "zero": {"return_mean": 0.25}}))
    prints = {"env": {"toy": "reach 1"}, "versions": {"torch": torch.__version__}}
    (folder / "fingerprint.json").write_text(json.dumps(prints))
    return folder


def write_film(run: Path, env_steps: int, kind: str = "imagined", data: bytes = b"film", **numbers: Any) -> Path:
    path = run / "videos" / f"{env_steps:09d}-{env_steps // 10:09d}-{kind}.mp4"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    if numbers:
        path.with_suffix(".json").write_text(json.dumps({"env_steps": env_steps, **numbers}))
    return path


class Page(HTMLParser):
    """The text and the elements of a page; every element that is opened is closed where it should be."""

    EMPTY = {"meta", "link", "img", "input", "br"}

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1:] not in (["script"], ["style"]) else ""

    def files(self) -> dict[str, str]:
        """What the page offers to save, by name; the last one of a name."""
        links = [a for tag, a in self.tags if tag == "a" and "download" in a]
        return {str(a["download"]): base64.b64decode(str(a["href"]).partition(",")[2]).decode() for a in links}


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., tuple[Page, list[str]]]:
    """Write a page about runs and read it; with what was noted."""

    def make(*runs: Path, episodes: int = 0) -> tuple[Page, list[str]]:
        notes: list[str] = []
        path, count = build(runs, tmp_path / "report.html", episodes=episodes, play=False, note=notes.append)
        assert count >= 1
        return Page(path.read_text(encoding="utf-8")), notes

    return make


def test_the_interquartile_mean_cuts_a_quarter_of_each_side() -> None:
    assert statistics.iqm(np.array([100.0, 0, 1, 2, 3, 4, 5, -9])) == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert statistics.iqm(np.array([1.0, 2, 9])) == 4, "of three nothing is cut"
    rng = np.random.default_rng(0)
    for count in (2, 4, 5, 10, 15, 50):
        scores = rng.normal(size=(3, count))
        assert statistics.iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=-1))


def test_student_intervals_are_those_of_the_tables() -> None:
    for freedom in (*range(1, 31), 31, 40, 100, 1000):
        assert statistics.t975(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), abs=1e-4)
    mean, low, high = statistics.t_interval([1.0, 2, 3])
    assert (mean, high - mean) == (2, pytest.approx(4.302653 / math.sqrt(3))) and mean - low == pytest.approx(
        high - mean
    )
    assert statistics.t_interval([5.0])[0] == 5 and math.isnan(statistics.t_interval([5.0]).low)


def test_the_bootstrap_resamples_within_each_task() -> None:
    apart = statistics.bootstrap([np.zeros(3), np.ones(3)], lambda x: x.mean(-1))
    assert apart == (0.5, 0.5, 0.5), "drawn without strata it would vary"
    coin = statistics.bootstrap([np.array([0.0, 1])], lambda x: x.mean(-1))
    assert coin == (0.5, 0, 1), "each half of the draws is one value twice, in a quarter of all"
    sample = np.random.default_rng(1).normal(size=40)
    own = statistics.bootstrap([sample], lambda x: x.mean(-1))
    known = scipy.stats.bootstrap((sample,), np.mean, method="percentile", rng=0).confidence_interval
    assert (own.low, own.high) == pytest.approx((known.low, known.high), abs=0.03)
    assert math.isnan(statistics.bootstrap([np.ones(1), np.zeros(1)], statistics.iqm).low), "one run for each task"


def test_profiles_and_chances_of_improvement() -> None:
    scores = np.array([0.2, 0.4, 0.4, 0.9])
    assert statistics.profile(scores, np.array([0, 0.2, 0.3, 0.4, 0.9])).tolist() == [1, 0.75, 0.75, 0.25, 0]
    ours, theirs = [np.array([1.0, 3]), np.array([5.0, 5])], [np.array([2.0, 2]), np.array([5.0, 4])]
    forth, back = statistics.improvement(ours, theirs), statistics.improvement(theirs, ours)
    assert forth.value == pytest.approx((0.5 + 0.75) / 2), "two of four pairs won; two of four won and two even"
    assert forth.value + back.value == pytest.approx(1) and forth.low <= forth.value <= forth.high
    assert math.isnan(statistics.improvement([np.ones(1)], [np.zeros(3)]).low)


def test_a_mean_curve_counts_each_run_as_far_as_it_goes() -> None:
    x, intervals = statistics.mean_curve(
        [(np.array([0.0, 10]), np.array([0.0, 10])), (np.array([5.0]), np.array([9.0]))]
    )
    assert x.tolist() == [0, 5, 10] and [i.value for i in intervals] == [0, (5 + 9) / 2, 10]
    assert [math.isfinite(i.low) for i in intervals] == [False, True, False]


def test_axes_have_round_ticks_and_numbers_are_short() -> None:
    assert svg.round_ticks(0.3, 41, 5) == [10, 20, 30, 40] and svg.round_ticks(-1, 1, 4) == [-1, -0.5, 0, 0.5, 1]
    assert svg.Axis(0.5, 2000, 0, 100, log=True).ticks(4) == [1, 10, 100, 1000]
    assert svg.Axis(9, 60, 0, 100, log=True).ticks(4) == [10, 20, 50]
    axis = svg.Axis(1, 100, 0, 100, log=True)
    assert axis(10) == pytest.approx(50)
    shown = [svg.number(v) for v in (0, 12.345, 1000, 1234, 40_000, 1_500_000, 2e-6, -0.5, math.nan)]
    assert shown == ["0", "12.3", "1k", "1234", "40k", "1.5M", "2e-06", "-0.5", "–"]
    line = svg.Line("a", "c0", np.arange(4.0), np.array([1, math.nan, 3, 4]))
    drawn = svg.line_chart([line], "x", "y")
    assert len(re.findall("M", re.search(r'class="line c0" d="([^"]*)"', drawn)[1])) == 2, "NaN breaks a line"  # pyright: ignore


def test_runs_are_grouped_by_everything_but_seed_and_how_they_are_watched(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "b", seed=1),
        write_run(tmp_path / "a", "dreamer", "--training.log-every-s", "3", seed=0),
        write_run(tmp_path / "c", "dreamer", "--agent.imagination-horizon", "7"),
        write_run(tmp_path / "d", "sac"),
        write_run(tmp_path / "e", "dreamer", "--task", "toy:catch"),
    ]
    runs, problems = read_runs(folders)
    groups = group_runs(runs)
    assert not problems
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"]]
    labels = [group.label for group in groups]
    assert labels[0].startswith("dreamer, imagination_horizon ") and labels[1] == "dreamer, imagination_horizon 7"
    assert labels[2:] == ["sac", "dreamer"] and len({group.colour for group in groups}) == 4
    assert [group.task for group in groups] == ["toy:reach"] * 3 + ["toy:catch"]


def test_runs_that_began_otherwise_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    """By the recipe of a transfer; its numbers count only where there was one."""
    plain = [write_run(tmp_path / name) for name in ("a", "b")]
    config = plain[1] / "config.yaml"
    config.write_text(config.read_text().replace("omega: 0.2", "omega: 1.0"))
    began = [write_run(tmp_path / name) for name in ("c", "d")]
    for folder, recipe in zip(began, ("fractional", "same-task"), strict=True):
        (folder / "transfer.txt").write_text(f"transfer {recipe}: when: this; from there\nmore\n")
    groups = group_runs(read_runs([*plain, *began])[0])
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c"], ["d"]]
    assert [group.label for group in groups] == [
        f"dreamer, transfer {name}" for name in ("–", "fractional", "same-task")
    ]


def test_runs_on_other_data_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "b", "c")]
    for folder, data in zip(folders, ("random", "expert", "expert"), strict=True):
        (folder / "data.txt").write_text(f"data/{data}\n")
    groups = group_runs(read_runs(folders)[0])
    assert [[run.name for run in group.runs] for group in groups] == [["a"], ["b", "c"]]
    assert [group.label for group in groups] == ["dreamer, data data/random", "dreamer, data data/expert"]


def test_groups_of_one_agent_are_told_apart() -> None:
    model = {"world_model_name": "v1", "world_model.units": 3, "agent.lr": 1}
    other = {"world_model_name": "v3", "world_model.units": 4, "agent.lr": 1}
    assert told_apart("maac", [model]) == ["maac"]
    assert told_apart("maac", [model, other]) == ["maac on v1", "maac on v3"]
    faster = other | {"agent.lr": 2.5}
    assert told_apart("maac", [model, other, faster]) == ["maac on v1, lr 1", "maac on v3, lr 1", "maac on v3, lr 2.5"]
    deep = [{f"k{i}": int(i == j) for i in range(5)} for j in (3, 4)]
    assert len(set(told_apart("x", deep))) == 2, "numbered where the first values do not do"


def test_names_are_as_long_as_they_have_to_be() -> None:
    assert short_names([Path("/r/sac/0"), Path("/r/maac/0")]) == ["sac/0", "maac/0"]
    assert short_names([Path("/r/x"), Path("/r/y")]) == ["x", "y"]


def alarms_of(*folders: Path) -> list[Alarm]:
    runs, problems = read_runs(folders)
    return alarms(group_runs(runs), problems)


def said(found: list[Alarm], words: str) -> Alarm:
    (one,) = [alarm for alarm in found if words in alarm.what]
    return one


@pytest.mark.parametrize(
    ("metrics", "words", "grave"),
    [
        ({"model/kl": 0.02, "model/dyn": 1.0}, "posterior collapse: the KL is 0.02 nats", True),
        ({"model/kl": 0.9, "model/dyn": 1.004}, "floor of 1 free nats (0.9)", False),
        ({"model/kl": 3.0, "agent/penalty_to_reward": 3.86}, "doubt costs 3.9 times what is earned", False),
        ({"model/kl": 3.0, "total": None}, "not a number: total from 100 env steps on", True),
        ({"model/kl": 3.0, "agent/odd": None}, "not a number: agent/odd", False),
    ],
)
def test_warnings_of_metrics(metrics: dict[str, float | None], words: str, grave: bool, tmp_path: Path) -> None:
    assert not alarms_of(write_run(tmp_path / "good", **{"model/kl": 3.0, "model/dyn": 3.0}))
    assert not alarms_of(write_run(tmp_path / "cheap", **{"model/kl": 3.0, "agent/penalty_to_reward": 0.9}))
    (alarm,) = alarms_of(write_run(tmp_path / "bad", **metrics))
    assert words in alarm.what and alarm.grave == grave and alarm.who == "bad"


def test_warnings_of_runs(tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", seed=1, returns=(1.0, 0.1))
    twin = shutil.copytree(short, tmp_path / "twin")
    prints = json.loads((short / "fingerprint.json").read_text())
    prints["env"]["toy"], prints["versions"]["torch"] = "reach 2", "0.1"
    (short / "fingerprint.json").write_text(json.dumps(prints))
    found = alarms_of(short, twin)
    assert said(found, "not finished: 200 of 300 env steps").who == "short, twin", "said once of both"
    assert said(found, "no better than random: 0.1 against 0.5")
    assert said(found, "seed 1 is there more than once").grave
    longer = write_run(tmp_path / "longer", seed=2)
    assert not said(alarms_of(short, longer), "last evaluations at 200, 300").grave, "one group all the same"
    assert said(found, "fingerprints differ in toy: reach 2 in short; reach 1 in twin").grave
    assert not said(found, "fingerprints differ in torch").grave
    assert said(found, f"torch 0.1 -> {torch.__version__}").who == "short"
    assert [alarm.grave for alarm in found] == sorted((alarm.grave for alarm in found), reverse=True)


def test_the_page_holds_every_run_and_its_numbers(report: Callable[..., Any], tmp_path: Path) -> None:
    grid = {"dreamer": (0.0, 1.0), "sac": (2.0, 3.0)}
    folders = [
        write_run(tmp_path / f"{agent}-{seed}", agent, seed=seed, returns=(1.0, 2.0, 4.0 + last), **{"model/kl": 2.0})
        for agent, ends in grid.items()
        for seed, last in enumerate(ends)
    ]
    page, notes = report(*folders)
    assert not notes and all(folder.name in page.text for folder in folders)
    ids = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert ids == ["warnings", "runs", "learning", "comparison", "training", "configs"]
    assert "Nothing to warn of" in page.text and "agent.discount" in page.text
    files = page.files()
    assert files["evaluations.csv"].splitlines()[:2] == [
        "agent,run,seed,env_steps,return",
        "dreamer,dreamer-0,0,100.0,1.0",
    ]
    scores = [line.split(",") for line in files["scores.csv"].splitlines()[1:]]
    assert [float(score) for *_, score in scores] == pytest.approx([3.5 / 6.5, 4.5 / 6.5, 5.5 / 6.5, 1]), "random 0.5"
    assert len(files["metrics.csv"].splitlines()) == 1 + 4 * 3 * 2
    tips = [json.loads(str(a["data-tip"])) for tag, a in page.tags if tag == "svg" and "data-tip" in a]
    assert tips[0][-1][1] == "300 env steps" and tips[0][-1][2][1] == ["c1", "sac", "6.5 [0.147, 12.9]"]
    captions = sum(tag == "figcaption" for tag, _ in page.tags)
    assert captions == sum(tag == "figure" for tag, _ in page.tags) >= 6, "every figure says how to read it"


def test_nothing_of_a_run_becomes_markup(report: Callable[..., Any], tmp_path: Path) -> None:
    """Names of folders, agents, tasks and metrics, and values of configs, are whatever a stranger wrote."""
    folder = write_run(tmp_path / HOSTILE.replace("/", "|"), **{"model/kl": 3.0, f"model/{HOSTILE}": 1.0})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config | {"agent_name": HOSTILE, "agent_type": "x", "task": HOSTILE})
    )
    write_film(folder, 100, psnr=[20.0], data=b"</script><script>")
    plain = write_run(tmp_path / "=1+1")
    page, notes = report(folder, plain)
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json", None], "ours alone"
    assert HOSTILE in page.text and not any(name.startswith("on") for _, a in page.tags for name in a)
    assert any("of another version" in note and "\n" not in note for note in notes)
    assert "'=1+1" in page.files()["evaluations.csv"], "no formula in a spreadsheet"
    outside = [value for _, a in page.tags for key, value in a.items() if key in ("src", "href") and value]
    assert outside and all(value.startswith(("data:", "#")) for value in outside), "no network"


def test_films_are_carried_or_lie_beside_the_page(
    report: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    for age, psnr in ((100, [10.0, 12.0]), (200, [20.0, None])):
        write_film(run, age, psnr=psnr, psnr_copy_last_frame=[9.0, 8.0], ssim=[0.5, 0.4], reward_error=[0.1, 0.2])
        write_film(run, age, kind="policy")
    (run / "videos" / "imagined.mp4").write_bytes(b"made by hand")

    def shown() -> list[dict[str, Any]]:
        text = (tmp_path / "report.html").read_text()
        return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])[0]["films"]  # pyright: ignore

    page, _ = report(run)
    films = shown()
    assert [(film["kind"], film["at"]) for film in films] == [
        ("imagined", [100, 10]), ("policy", [100, 10]), ("imagined", [200, 20]), ("policy", [200, 20])
    ]  # fmt: skip
    assert films[0]["source"] == f"data:video/mp4;base64,{base64.b64encode(b'film').decode()}"
    assert films[0]["about"] == "100 env steps, 10 updates, PSNR 11.0 dB" and "20.0 dB" in films[2]["about"]
    assert "PSNR by age, run" in page.text and page.files()["psnr.csv"].splitlines()[1:] == [
        "run,200,1.0,20.0",
        "run,200,2.0,nan",
    ]
    monkeypatch.setattr(dreams, "EMBEDDED", 10)
    page, _ = report(run)
    assert "The films lie in the folder report-films" in page.text
    assert all((tmp_path / film["source"]).read_bytes() == b"film" for film in shown())


def test_what_is_damaged_is_one_line_and_the_rest_is_shown(report: Callable[..., Any], tmp_path: Path) -> None:
    good = write_run(tmp_path / "good")
    torn = write_run(tmp_path / "torn", seed=1)
    lines = (torn / "metrics.jsonl").read_text().splitlines()
    (torn / "metrics.jsonl").write_text("\n".join([lines[0], '{"env_steps": "x"', *lines[1:]]) + "\n")
    (torn / "baselines.json").write_text("[")
    unseen = write_run(tmp_path / "unseen", seed=2, returns=())
    no_run = tmp_path / "nothing"
    no_run.mkdir()
    page, notes = report(good, torn, unseen, no_run, tmp_path / "nowhere")
    assert len(notes) == 5 and all("\n" not in note for note in notes)
    for who, words in (
        ("torn", "metrics.jsonl line 2 is not a line of metrics"), ("torn", "baselines.json: not JSON"),
        ("unseen", "no metrics there"), ("nothing", "no config.yaml there"), ("nowhere", "no config.yaml there"),
    ):  # fmt: skip
        assert any(note.startswith(f"{who}: ") and words in note for note in notes), words
        assert words in page.text
    rows = page.files()["evaluations.csv"]
    assert rows.count("torn") == 3 and rows.count("good") == 3 and "unseen" not in rows
    with pytest.raises(ValueError, match="none of these is a run: nothing"):
        report(no_run)


def odd(env_steps: Any, value: Any, **more: Any) -> str:
    line = {"env_steps": env_steps, "updates": 0, "eval/return_mean": value, **more}
    return json.dumps(line)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", odd(0, 1.0)),
        ("metrics.jsonl", odd(10, 1e308) + "\n" + odd(20, -1e308)),
        ("metrics.jsonl", odd(10, None) + "\n" + odd(20, None, time=None)),
        ("metrics.jsonl", odd(-5, True) + "\n" + odd(20, "x", total=[1])),
        ("metrics.jsonl", "[" * 5000 + "\n" + odd(10, 1.0)),
        ("metrics.jsonl", "\udcff"),
        ("baselines.json", '{"random": {"return_mean": NaN}, "zero": 3}'),
        ("fingerprint.json", '{"env": {"a": 3}, "versions": {"torch": null, "no such": []}}'),
        ("videos/000000100-000000010-imagined.json", '{"psnr": {"a": 1}, "ssim": "x"}'),
        ("videos/000000100-000000010-imagined.json", '{"psnr": [1, null, "x", 1e400], "psnr_copy_last_frame": [1]}'),
        ("videos/oddly-named-film.mp4", ""),
    ],
)
def test_odd_values_do_not_break_the_page(file: str, content: str, report: Callable[..., Any], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_film(run, 100, psnr=[1.0])
    (run / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    page, notes = report(run, write_run(tmp_path / "good", "sac"))
    assert "run" in page.text and len(notes) <= 2 and "nan" not in json.dumps([a for _, a in page.tags if "d" in a])


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_use_of_a_latent_by_variable(kind: str) -> None:
    """Of three variables one follows the step, one is always the same, one is only foretold wrongly."""
    steps = torch.linspace(-3, 3, 40).view(1, 40)
    still, away = torch.zeros_like(steps), torch.full_like(steps, 2.0)
    if kind == "categorical":
        latent: Any = Categorical(type="categorical", variables=3, classes=2, unimix=0.01)
        zeros = torch.zeros(1, 40, 3)
        posterior = torch.cat([torch.stack([steps, still, away], -1), zeros], -1)
        prior = torch.cat([zeros, zeros], -1)
    else:
        latent = Gaussian(type="gaussian", variables=3, min_std=0.1)
        deviation = torch.full((1, 40, 3), 0.3)
        posterior = torch.cat([torch.stack([steps, still, away], -1), deviation], -1)
        prior = torch.cat([torch.zeros(1, 40, 3), deviation], -1)
    kl, dead = usage(latent, posterior, prior)
    assert kl.sum().item() == pytest.approx(latent.kl(posterior, prior).mean().item(), rel=1e-5)
    assert dead.tolist() == [False, True, True], "a KL alone does not make a variable useful"
    assert kl[1].item() == pytest.approx(0, abs=1e-6) and kl[2] > 0.1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    short = "--env-steps 150 --training.eval-every 50 --training.eval-episodes 2 --training.video-every 50"
    train(parse(f"--agent dreamer --task catch --preset debug {short} --run-dir {folder}".split()))
    return folder


def call(*argv: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["report.py", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "scripts" / "report.py"), run_name="__main__")
    return int(caught.value.code or 0)


@pytest.mark.parametrize("played", [False, True])
def test_a_trained_world_model_is_looked_at(
    played: bool, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    out = tmp_path / "out.html"
    assert call(trained, "--look", "2", *(["--play"] if played else []), "--out", out, monkeypatch=monkeypatch) == 0
    printed, noted = capsys.readouterr()
    assert printed.startswith(f"{out}: 1 run, ") and not noted
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before, "the run is only read"
    page = Page(out.read_text())
    ids = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert {"films", "horizon", "sequences"} <= set(ids) and "comparison" not in ids
    assert ("played just now" if played else "has learned from") in page.text
    assert page.text.count("truth") >= 3 and "Of 2 sequences" in page.text
    strips = [a for tag, a in page.tags if tag == "img"]
    assert len(strips) == 3 and all(str(a["src"]).startswith("data:image/png;base64,iVBOR") for a in strips)
    rewards = page.files()["rewards.csv"].splitlines()
    assert len(rewards) == 1 + 2 * 5 and re.search(r"\d+ of \d+ are dead", page.text)


def test_wrong_calls_are_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, words in (
        ((tmp_path,), "none of these is a run"),
        ((trained, "--look", "-1"), "--look must be 0 or more, not -1"),
        ((trained, "--out", tmp_path / "page.pdf"), "ends in .html"),
        ((trained, "--out", tmp_path / "no" / "page.html"), "no such folder"),
    ):
        assert call(*argv, monkeypatch=monkeypatch) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and words in line


TOUCH = """
<script>
addEventListener("error", event => errors.push(event.message));
addEventListener("load", () => {
  const result = {errors}, viewer = document.querySelector(".viewer"), age = viewer.querySelector(".age");
  const chart = [...document.querySelectorAll("#learning svg[data-tip]")].find(svg => svg.clientWidth);
  const box = chart.getBoundingClientRect(), tip = document.getElementById("tip");
  chart.dispatchEvent(new PointerEvent("pointermove", {clientX: box.right - 15, clientY: box.top + 20}));
  result.tip = [tip.hidden, tip.textContent];
  chart.dispatchEvent(new PointerEvent("pointerleave"));
  result.gone = tip.hidden;
  result.newest = [age.max, age.value, viewer.querySelector("output").textContent];
  age.value = 0;
  age.dispatchEvent(new Event("input"));
  result.oldest = [viewer.querySelector("output").textContent, viewer.querySelectorAll("video").length];
  const other = viewer.querySelector(".other");
  other.value = 1;
  other.dispatchEvent(new Event("change"));
  result.both = viewer.querySelectorAll("video").length;
  viewer.querySelector(".play").click();
  result.paused = [...viewer.querySelectorAll("video")].map(video => video.paused);
  result.overflow = document.documentElement.scrollWidth - innerWidth;
  document.documentElement.dataset.result = JSON.stringify(result);
});
</script></body>"""


@needs_browser
@pytest.mark.parametrize("width", [500, 1300])
def test_the_page_in_a_browser(width: int, trained: Path, report: Callable[..., Any], tmp_path: Path) -> None:
    """Pointers are told values, the slider moves through the films, nothing is wider than the window."""
    other = shutil.copytree(trained, tmp_path / HOSTILE.replace("/", "|"))
    report(trained, other, episodes=1)
    page = tmp_path / "report.html"
    text = page.read_text().replace("<head>", "<head><script>const errors = []</script>", 1)
    page.write_text(text.replace("</body>", TOUCH))
    flags = "--headless=new --no-sandbox --disable-gpu --mute-audio --hide-scrollbars --virtual-time-budget=4000"
    where = [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run([str(CHROMIUM), *flags.split(), *where], capture_output=True, text=True, timeout=300)
    root = Page(done.stdout).tags[0]
    assert root[0] == "html", done.stderr[-2000:]
    result = json.loads(str(root[1]["data-result"]))
    assert result["errors"] == [] and result["gone"] and not result["tip"][0]
    assert "150 env steps" in result["tip"][1] and "dreamer" in result["tip"][1]
    assert result["newest"][:2] == ["1", "1"] and result["newest"][2].startswith("150 env steps")
    assert result["oldest"][0].startswith("100 env steps") and result["oldest"][1] == 1
    assert result["both"] == 2 and result["paused"] == [True, True] and result["overflow"] <= 0
