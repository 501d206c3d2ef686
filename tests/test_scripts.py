"""The scripts as they are called: what they print, write and exit with."""

import json
import math
import runpy
import shutil
import sys
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import pytest

from agents.training import checkpoint
from agents.training.cli import parse
from agents.training.run import train

ROOT = Path(__file__).parents[1]
BASE = "--agent dreamer --preset debug --training.eval-every 0 --collect.num-envs 1"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call a script as the shell would."""

    def call(name: str, *argv: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        return Result(int(caught.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="module", params=["reach", "catch"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(parse(f"{BASE} --task {request.param} --env-steps 120 --run-dir {folder}".split()))
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    train(parse(f"{BASE} --task catch --env-steps 110 --run-dir {folder}".split()))
    return folder


def test_evaluate_gives_every_return_beside_the_baselines_as_json(
    trained: Path, script: Callable[..., Result], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    code, out, err = script("evaluate.py", trained, "--episodes", "3", "--json", "--video", tmp_path / "film.mp4")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report.keys() == {"run", "task", "env_steps", "agent", "random", "zero", "video"}
    task = trained.parent.name.rstrip("0")
    assert (report["run"], report["task"], report["env_steps"]) == (str(trained), f"toy:{task}", 120)
    for who in ("agent", "random", "zero"):
        result = report[who]
        assert result.keys() == {"return_mean", "return_std", "length_mean", "terminal_share", "returns", "lengths"}
        assert result["lengths"] == [50 if task == "reach" else 9] * 3
        mean = sum(result["returns"]) / 3
        deviation = math.sqrt(sum((value - mean) ** 2 for value in result["returns"]) / 3)
        assert result["return_mean"] == pytest.approx(mean) and result["return_std"] == pytest.approx(deviation)
    assert len(set(report["random"]["returns"])) > 1 or task == "catch"
    assert len(iio.imread(report["video"])) == report["agent"]["lengths"][0] + 1
    assert json.loads(script("evaluate.py", trained, "--episodes", "3", "--json").out)["agent"] == report["agent"]
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before, "the run is only read"
    assert not active_children()


def test_evaluate_prints_a_table_for_people(run_dir: Path, script: Callable[..., Result]) -> None:
    code, out, _ = script("evaluate.py", run_dir, "--episodes", "2")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "toy:catch, 110 env steps, 2 episodes on the same seeds"
    assert [line.split()[0] for line in lines[1:]] == ["agent", "random", "zero"]
    assert all("length    9.0" in line for line in lines[1:])


def test_any_planner_plays_on_a_model_that_another_agent_trained(
    trained: Path, script: Callable[..., Result], tmp_path: Path
) -> None:
    asked = ("--episodes", "2", "--json", "--agent", "planet", "--preset", "debug")
    code, out, _ = script("evaluate.py", trained, *asked)
    report = json.loads(out)
    assert code == 0 and report["env_steps"] == 120 and len(report["agent"]["returns"]) == 2
    taken = tmp_path / "taken"
    line = ("--agent", "planet", "--world-model", trained, "--preset", "debug", "--run-dir", taken, "--env-steps", "0")
    code, _, err = script("train.py", *line)
    assert code == 0 and err.splitlines()[-1].endswith(f"nothing learned: python scripts/evaluate.py {taken}")
    again = json.loads(script("evaluate.py", taken, "--episodes", "2", "--json").out)
    assert again["agent"] == report["agent"] and again["env_steps"] == 0, "the same model, agent, seeds and noise"
    film = script(
        "imagine.py", taken, "--horizon", "2", "--context", "2", "--sequences", "1", "--out", tmp_path / "x.mp4"
    )
    assert film.code == 0 and len(iio.imread(tmp_path / "x-policy.mp4")) == 4, "what was planned beside what happened"
    code, _, err = script("train.py", "--resume", taken)
    assert code == 0 and "nothing to do" in err
    code, _, err = script("train.py", "--resume", taken, "--env-steps", "120", "--training.eval-every", "0")
    assert code == 0, err
    assert json.loads(script("evaluate.py", taken, "--episodes", "1", "--json").out)["env_steps"] >= 120


def test_an_agent_with_networks_to_train_is_not_played_untrained(run_dir: Path, script: Callable[..., Result]) -> None:
    untrained = script("evaluate.py", run_dir, "--agent", "dreamer-v2", "--preset", "debug")
    one_line(untrained, "networks of its own", "--world-model")
    one_line(script("evaluate.py", run_dir, "--agent", "planett"), "planet")


def test_benchmarks_of_acting(run_dir: Path, script: Callable[..., Result]) -> None:
    line = ("act", "--agent", "planet,sac", "--task", "toy:reach", "--preset", "debug", "--turns", "3", "--envs", "1,2")
    report = json.loads(script("benchmark.py", *line, "--json").out)
    assert (report["task"], report["preset"]) == ("toy:reach", ["debug"])
    rows = report["act"]
    assert [(row["agent"], row["envs"]) for row in rows] == [("planet", 1), ("planet", 2), ("sac", 1), ("sac", 2)]
    for row in rows:
        assert row["actions_per_s"] == pytest.approx(1e3 * row["envs"] / row["ms"]) and row["ms"] > 0
        assert row["gflop_per_s"] == pytest.approx(1e3 * row["gflop"] / row["ms"])
    compared = ("--against", "--agent.planner.candidates 12", "--clock", "cpu")
    rows = json.loads(script("benchmark.py", *line[:2], "planet", *line[3:], *compared, "--json").out)["act"]
    assert [(row["case"][-2:], row["envs"]) for row in rows] == [("-", 1), ("-", 2), ("12", 1), ("12", 2)]
    assert 1.5 < rows[2]["gflop"] / rows[0]["gflop"] < 2, "twice the candidates, and one image"
    assert rows[3]["times_without"] == pytest.approx(rows[3]["ms"] / rows[1]["ms"])
    line = ("uses", run_dir, "--agent", "icem,rs", "--preset", "debug", "--episodes", "3")
    rows = json.loads(script("benchmark.py", *line, "--json").out)["uses"]
    assert [row["agent"] for row in rows] == ["own (dreamer)", "icem", "rs", "random"]
    for row in rows:
        assert len(row["returns"]) == 3 and row["low"] <= row["mean"] == pytest.approx(sum(row["returns"]) / 3)
        assert row["mean"] <= row["high"]
    table = script("benchmark.py", *line).out.splitlines()[2:]
    assert [row.split()[0] for row in table] == ["own", "icem", "rs", "random"]
    one_line(script("benchmark.py", "uses", run_dir, "--agent", "icem", "--episodes", "1"), "2 or more")
    one_line(script("benchmark.py", "nonsense"), "unknown verb")
    assert "act " in script("benchmark.py").out


UPDATE = ("update", "--agent", "dreamer", "--task", "toy:reach", "--preset", "debug", "--turns", "2")


def test_benchmark_of_an_update_counts_its_arithmetic_and_splits_its_time(script: Callable[..., Result]) -> None:
    report = json.loads(script("benchmark.py", *UPDATE, "--json").out)
    (row,) = report["update"]
    assert report["clock"] == "wall" and (row["batch"], row["length"], row["precision"]) == (2, 8, "fp32")
    assert row["updates_per_s"] == pytest.approx(1e3 / row["ms"])
    assert row["env_steps_per_s"] == pytest.approx(row["updates_per_s"] / 0.05)
    assert row["matmul_share"] == pytest.approx(row["gflop_per_s"] / row["matmul_gflop_per_s"])
    parts = [row[f"{part}_ms"] for part in ("sample", "model", "agent", "backward", "optimizer", "write_back")]
    assert all(part > 0 for part in parts) and len(row["seconds"]) == 2
    assert row["weights"] * 4 * 3 < 1e6 * row["peak_mb"], "weights and two moments of each, at the least"
    table = script("benchmark.py", *UPDATE, "--clock", "cpu").out.splitlines()
    assert "clock cpu" in table[0] and ["precision", "fp32"] in [line.split() for line in table]


def test_benchmark_of_an_update_grows_with_what_is_varied_and_compares_two(script: Callable[..., Result]) -> None:
    rows = json.loads(script("benchmark.py", *UPDATE, "--vary", "length=8,16", "--json").out)["update"]
    assert [(row["case"], row["length"]) for row in rows] == [("length=8", 8), ("length=16", 16)]
    # twice the steps and twice the dreams, but for the replayed step in each window that has none after it
    assert rows[1]["gflop"] / rows[0]["gflop"] == pytest.approx(2, rel=0.02)
    assert rows[0]["times_the_first"] == 1 and rows[1]["weights"] == rows[0]["weights"]
    against = ("--against", "--replay.batch 4 --training.precision bf16")
    rows = json.loads(script("benchmark.py", *UPDATE, *against, "--json").out)["update"]
    assert [(row["batch"], row["precision"]) for row in rows] == [(2, "fp32"), (4, "bf16")]
    assert rows[1]["times_the_first"] == pytest.approx(rows[1]["ms"] / rows[0]["ms"]) and rows[1]["ratio_spread"] >= 0
    one_line(script("benchmark.py", *UPDATE, "--vary", "colour=red"), "--vary", "length", "horizon")
    one_line(script("benchmark.py", *UPDATE, "--vary", "length=8", *against), "--against", "--vary")


def test_benchmark_of_environments_and_of_their_workers(script: Callable[..., Result]) -> None:
    line = ("env", "--task", "reach,catch", "--quality", "lean", "--workers", "0,1", "--turns", "2", "--steps", "3")
    rows = json.loads(script("benchmark.py", *line, "--env.action-repeat", "2", "--json").out)["env"]
    assert [(row["task"], row["workers"]) for row in rows] == [
        ("toy:reach", 0), ("toy:reach", 1), ("toy:catch", 0), ("toy:catch", 1)
    ]  # fmt: skip
    for row in rows:
        assert row["images_per_s"] == pytest.approx(1e3 * row["envs"] / row["ms"]) and row["envs"] == 1
        assert row["env_steps_per_s"] == pytest.approx(2 * row["images_per_s"])
    assert rows[1]["times_the_first"] == pytest.approx(rows[1]["images_per_s"] / rows[0]["images_per_s"])
    assert rows[0]["times_the_first"] == rows[2]["times_the_first"] == 1 and not active_children()
    one_line(script("benchmark.py", *line[:3], "--quality", "nice"), "env.quality", "nice")


def test_benchmark_of_the_replay_counts_its_bytes(script: Callable[..., Result]) -> None:
    line = ("replay", "--agent", "dreamer", "--task", "toy:reach", "--preset", "debug", "--turns", "2")
    rows = json.loads(script("benchmark.py", *line, "--sizes", "100,200", "--json").out)["replay"]
    for row in rows:
        known = row["latent_bytes_per_step"]
        assert row["memory_bytes_per_step"] == 3 * 64**2 + 2 * 4 + 2 * 4 + 3 + known + 1 and known == 2 * 32 + 4
        assert 0 < row["disk_bytes_per_step"] < 3 * 64**2, "compressed"
        assert row["sequences_per_s"] == pytest.approx(1e3 * 2 / row["sample_ms"]) and row["write_back_ms"] > 0
    assert rows[1]["memory_mb"] == 2 * rows[0]["memory_mb"]
    without = json.loads(script("benchmark.py", *line, "--replay.latents", "false", "--sizes", "50", "--json").out)
    assert without["replay"][0]["memory_bytes_per_step"] == rows[0]["memory_bytes_per_step"] - 2 * 32 - 5
    one_line(script("benchmark.py", *line, "--sizes", "4"), "no stream holds 8 steps")


def test_benchmark_of_a_run_says_who_waits_for_whom(script: Callable[..., Result]) -> None:
    line = ("run", "--agent", "dreamer", "--task", "toy:catch", "--preset", "debug", "--collect.num-envs", "1")
    (row,) = json.loads(script("benchmark.py", *line, "--env-steps", "140", "--json").out)["run"]
    assert row["env_steps"] == 140 and row["updates"] == 3, "one, and one for each 20 env steps after 100"
    assert 0 < row["startup_s"] < row["first_update_s"] and row["env_steps_per_s"] == pytest.approx(
        140 / row["seconds"]
    )
    shares = row["wait_share"], row["update_share"]
    assert all(0 < share < 1 for share in shares) and sum(shares) <= 1
    one_line(script("benchmark.py", *line, "--env-steps", "20"), "no update in 20 env steps", "prefill")


def test_imagine_films_truth_and_dream_with_numbers_beside_them(
    trained: Path, script: Callable[..., Result], tmp_path: Path
) -> None:
    out = tmp_path / "dream.mp4"
    code, text, _ = script("imagine.py", trained, "--context", "2", "--horizon", "4", "--sequences", "2", "--out", out)
    assert code == 0
    numbers = json.loads((tmp_path / "dream.json").read_text())
    assert (numbers["env_steps"], numbers["context"], numbers["horizon"], numbers["sequences"]) == (120, 2, 4, 2)
    assert len(numbers["psnr"]) == 4 and all(0 < value < 100 for value in numbers["psnr"])
    assert len(iio.imread(out)) == 6 and len(iio.imread(tmp_path / "dream-policy.mp4")) >= 4
    assert text.splitlines()[-3:] == [str(out), str(tmp_path / "dream.json"), str(tmp_path / "dream-policy.mp4")]


def test_imagine_goes_as_far_as_the_episodes_do(run_dir: Path, script: Callable[..., Result], tmp_path: Path) -> None:
    code, _, _ = script("imagine.py", run_dir, "--sequences", "1", "--out", tmp_path / "x.gif")
    assert code == 0
    numbers = json.loads((tmp_path / "x.json").read_text())
    assert numbers["context"] + numbers["horizon"] == 10, "an episode of catch"


def one_line(result: Result, *words: str) -> None:
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line


@pytest.mark.parametrize("name", ["evaluate.py", "imagine.py"])
def test_what_is_no_run_is_one_line(name: str, script: Callable[..., Result], tmp_path: Path) -> None:
    one_line(script(name, tmp_path / "nowhere"), "nowhere", "no config.yaml")
    one_line(script(name, tmp_path), str(tmp_path), "no config.yaml")


@pytest.mark.parametrize("name", ["evaluate.py", "imagine.py"])
@pytest.mark.parametrize("damage", ["none there", "truncated", "foreign"])
def test_a_run_without_a_good_checkpoint_is_one_line(
    name: str, damage: str, run_dir: Path, script: Callable[..., Result], tmp_path: Path
) -> None:
    folder = shutil.copytree(run_dir, tmp_path / "run")
    *others, last = checkpoint.checkpoints(folder / "checkpoints")
    for path in others:
        path.unlink()
    if damage == "none there":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:5000] if damage == "truncated" else b"PK\x03\x04")
    word = "no checkpoints there" if damage == "none there" else f"{last}: damaged, or no checkpoint of this project"
    one_line(script(name, folder), word)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("evaluate.py", "--episodes", "0"), ("--episodes must be 1 or more, not 0",)),
        (("imagine.py", "--horizon", "-1"), ("--horizon must be 1 or more, not -1",)),
        (("evaluate.py", "--episodes", "1", "--video", f"{__file__}/film.mp4"), (__file__,)),
        (("evaluate.py", "--video", "film.avi"), ("film.avi", ".mp4 or .gif")),
        (("imagine.py", "--out", "film"), ("film", ".mp4 or .gif")),
    ],
)
def test_wrong_values_are_one_line(
    argv: tuple[str, ...], words: tuple[str, ...], run_dir: Path, script: Callable[..., Result]
) -> None:
    one_line(script(argv[0], run_dir, *argv[1:]), *words)


def test_train_trains_resumes_and_has_nothing_to_do(script: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = [*BASE.split(), "--task", "catch", "--env-steps", "110", "--run-dir", folder]
    assert script("train.py", *argv).code == 0
    one_line(script("train.py", *argv), f"there is a run already; --resume {folder}")
    assert script("train.py", "--resume", folder, "--env-steps", "120").code == 0
    result = script("train.py", "--resume", folder)
    assert result.code == 0 and "nothing to do" in result.err


def test_train_says_in_one_line_what_went_wrong(run_dir: Path, script: Callable[..., Result], tmp_path: Path) -> None:
    one_line(script("train.py", "--resume", tmp_path), "no config.yaml there")
    argv = [*BASE.split(), "--task", "catch", "--run-dir", tmp_path / "run"]
    one_line(script("train.py", *argv, "--data", tmp_path / "none"), "no such folder")
    offline = ["--data", run_dir / "replay", "--training.offline-updates", "5"]
    argv[argv.index("catch")] = "reach"
    result = script("train.py", *argv, *offline, "--env-steps", "0")
    one_line(result, "holds episodes of toy:catch, and the task is toy:reach")
    argv += ["--optimizers.all.lr", "1e30", "--training.log-every-s", "1000"]
    result = script("train.py", *argv)
    assert result.code == 2 and "Traceback" not in result.err
    assert "error: " in result.err.splitlines()[-1] and "resume with a lower learning rate" in result.err
