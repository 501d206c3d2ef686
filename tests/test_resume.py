"""A run that was ended, by itself or from outside, goes on as if it had not been, and loses nothing that counts."""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.training import checkpoint
from agents.training.cli import parse
from agents.training.logging import read_metrics
from agents.training.run import train
from worldmodels.envs import EnvPool
from worldmodels.replay.episodes import parse_name, read_episode, read_info

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}
DEBUG = "--preset debug --training.eval-every 0 --training.updates-per-env-step 0.1"
ONE = f"{DEBUG} --collect.num-envs 1"
SHORT = f"{ONE} --collect.prefill 20 --training.block-env-steps 30"
EXACT = {  # a run, its length, the length of its first part, and the whole
    "reach": (f"{SHORT} --agent dreamer --task reach", "--env-steps", 65, 130),
    "catch": (f"{SHORT} --agent dreamer --task catch", "--env-steps", 60, 120),  # where a block ends
    "targets": (f"{SHORT} --agent dreamer-v2 --task catch --agent.slow-every 3", "--env-steps", 65, 130),
    "densities": (f"{SHORT} --agent svg --task reach", "--env-steps", 65, 130),
    "walker": (f"{SHORT} --agent dreamer --task walker-walk --env.quality lean", "--env-steps", 40, 80),
    "thawed": (  # in its second half
        f"{SHORT} --agent dreamer --world-model REACH --transfer new-dynamics --transfer.frozen-updates 7",
        "--env-steps",
        65,
        130,
    ),
    "offline": (
        f"{SHORT} --agent none --task catch --training.video-every 0 --data DATA --training.env-steps 0",
        "--training.offline-updates",
        5,
        10,
    ),
    "then-online": (
        f"{SHORT} --agent none --task catch --training.video-every 0 --data DATA --training.offline-updates 5",
        "--env-steps",
        0,
        60,
    ),
}
SEEN = "--training.eval-every 60 --training.video-every 1000 --training.block-env-steps 25"
FRESH = """
import sys
from agents.training import watch
from agents.training.cli import parse
from agents.training.run import train
watch.COLUMNS, watch.HORIZON = 2, 6  # small films
for line in sys.argv[1:]:
    train(parse(line.split()))
"""


def fresh(*lines: str) -> None:
    """Make runs, one after the other, in a process of their own, where nobody checks types: that draws numbers too."""
    subprocess.run([sys.executable, "-c", FRESH, *lines], env=ENVIRONMENT, cwd=ROOT, check=True, timeout=300)


def run(line: str) -> int:
    return train(parse(shlex.split(line)))


def state_of(folder: Path) -> dict[str, Any]:
    return checkpoint.load_newest(folder)[1]


def parts(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, tensor and str of a state by its path."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from parts(part, f"{name}/{key}")
    else:
        yield name, value


def newest(folder: Path) -> list[Path]:
    return checkpoint.checkpoints(folder / "checkpoints")[::-1]


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Paths of what is not equal bit for bit."""
    first, second = dict(parts(one)), dict(parts(other))
    assert first.keys() == second.keys()
    return [
        name
        for name, value in first.items()
        if not (torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name])
    ]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each run of ``EXACT`` twice: ``<name>-2n`` in one go, ``<name>-n`` in two, the second half in a fresh process."""
    folder = tmp_path_factory.mktemp("halves")
    first, second = [], []
    for name, (line, count, part, whole) in EXACT.items():
        line = line.replace("DATA", str(folder / "catch-2n" / "replay")).replace("REACH", str(folder / "reach-2n"))
        first.append(f"{line} {count} {whole} --run-dir {folder}/{name}-2n")
        first.append(f"{line} {count} {part} --run-dir {folder}/{name}-n")
        second.append(f"--resume {folder}/{name}-n {count} {whole}")
    line, count, _, whole = EXACT["reach"]
    fresh(*first, f"{line} {count} {whole} {SEEN} --run-dir {folder}/seen")
    for name in EXACT:
        shutil.copy(newest(folder / f"{name}-n")[0], folder / f"{name}-middle.ckpt")
    fresh(*second)
    return folder


@pytest.mark.parametrize("name", EXACT)
def test_n_and_n_updates_in_two_processes_equal_2n_in_one_bit_for_bit(halves: Path, name: str) -> None:
    whole, resumed = halves / f"{name}-2n", halves / f"{name}-n"
    states = state_of(whole), state_of(resumed)
    assert states[0]["updates"] > 4 and states[0]["optimizers"][0]["state"]
    # weights, optimisers, targets, normalisers, counters, generators, latents, open episodes, environments, the sampler
    assert differences(*states) == []
    if states[0]["collector"] is not None:
        assert states[0]["collector"]["envs"][0] is not None, "the environment's state was saved"
        for episode in states[0]["collector"]["manifest"]:
            one, other = (read_episode(folder / "replay" / episode) for folder in (whole, resumed))
            assert all(np.array_equal(one.rows()[column], other.rows()[column]) for column in one.rows()), episode
    histories = []
    for folder in (whole, resumed):
        entries = [entry for entry in read_metrics(folder / "metrics.jsonl") if "total" in entry]
        # what ended after the last update of the first half was logged at its end, not with the next update
        ignored = {"time", "train/return", "train/length", "train/episodes"}
        histories.append([{key: value for key, value in entry.items() if key not in ignored} for entry in entries])
    assert histories[0] == histories[1] and len(histories[0]) == states[0]["updates"]


def test_the_first_half_ended_in_the_middle_of_an_episode(halves: Path) -> None:
    for name in ("reach", "walker"):
        middle = checkpoint.load(halves / f"{name}-middle.ckpt")
        assert len(middle["collector"]["open_tails"]["streams"][0]["reward"]) > 5


def test_densities_of_actions_survive(halves: Path) -> None:
    """Random actions of the prefill, uniform on [-1, 1]^2, and those of the policy; other agents' runs keep none."""
    collector = state_of(halves / "densities-n")["collector"]
    chances = [read_episode(halves / "densities-n" / "replay" / name).log_prob for name in collector["manifest"]]
    assert chances and all(part is not None and np.isfinite(part).all() for part in chances)
    chances = np.concatenate([*chances, collector["open_tails"]["streams"][0]["log_prob"]])
    uniform = chances == np.float32(-2 * np.log(2))
    assert 5 < uniform.sum() < len(chances) - 20 and uniform[: uniform.sum()].all()
    assert "log_prob" not in state_of(halves / "reach-n")["collector"]["open_tails"]["streams"][0]


def test_evaluating_and_filming_change_nothing_that_is_learned(halves: Path) -> None:
    seen, unseen = state_of(halves / "seen"), state_of(halves / "reach-2n")
    evaluated = [entry for entry in read_metrics(halves / "seen" / "metrics.jsonl") if "eval/return_mean" in entry]
    assert len(evaluated) == 3 and len(list((halves / "seen" / "videos").glob("*.mp4"))) == 2
    assert seen.pop("evaluated_at") == 130 and seen.pop("filmed_at") == 75
    del unseen["evaluated_at"], unseen["filmed_at"]
    assert differences(seen, unseen) == []


def consistent(folder: Path, state: dict[str, Any]) -> None:
    """Counters, episode files and open episodes tell the same story."""
    collector = state["collector"]
    infos = [read_info(folder / "replay" / name) for name in collector["manifest"]]
    tails = collector["open_tails"]["streams"]
    assert state["env_steps"] == collector["env_steps"] == collector["open_tails"]["env_steps"]
    assert state["env_steps"] == sum(i.episode_env_steps for i in infos) + sum(t["env_steps"] for t in tails)
    assert len({(i.stream, i.position) for i in infos}) == len(infos)
    for stream, tail in enumerate(tails):
        lengths = sum(i.length for i in infos if i.stream == stream)
        assert lengths == tail["position"], "episodes of a stream follow one another without a gap"
        assert collector["replay"]["end"][stream] == lengths + len(tail["reward"])


def start(line: str, **popen: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "scripts/train.py", *shlex.split(line)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def wait_for(process: "subprocess.Popen[str]", condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    time.sleep(random.Random().uniform(0, 0.3))  # any moment will do


def any_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def lines_of(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


ENDLESS = f"{DEBUG} --agent dreamer --task reach --env-steps 1000000"


def test_sigterm_saves_and_says_how_to_go_on_and_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    process = start(f"{ENDLESS} --run-dir {shlex.quote(str(folder))}")
    wait_for(process, lambda: lines_of(folder / "metrics.jsonl") > 3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    said = re.search(r"^saved (.*\.ckpt); go on with: (python .*)$", out, re.MULTILINE)
    assert said is not None, out
    saved = checkpoint.load(Path(said[1]))
    assert saved["updates"] > 0
    consistent(folder, saved)
    assert sorted(os.listdir(folder / "replay")) == sorted(saved["collector"]["manifest"]), "nothing newer"
    assert "Traceback" not in err and "ightning" not in err + out
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    more = f" --env-steps {saved['env_steps'] + 20} --training.log-every-s 0"
    went_on = subprocess.run(
        said[2] + more, shell=True, env={**ENVIRONMENT, "PATH": path}, cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert went_on.returncode == 0, went_on.stderr
    assert "new episode" not in went_on.stderr and "warning" not in went_on.stderr
    assert state_of(folder)["env_steps"] >= saved["env_steps"] + 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_to_the_whole_group_saves_and_ends_the_workers(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    process = start(f"{ENDLESS} --collect.workers process --run-dir {folder}", start_new_session=True)
    wait_for(process, lambda: lines_of(folder / "metrics.jsonl") > 3)
    os.killpg(process.pid, number)  # as a terminal or a scheduler sends it, to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "go on with: python scripts/train.py --resume" in out and "Traceback" not in err
    saved = state_of(folder)
    consistent(folder, saved)
    assert all(env is not None for env in saved["collector"]["envs"]), "they can go on in mid-episode"
    deadline = time.monotonic() + 20
    while any_alive(process.pid):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def test_kill_9_loses_no_finished_episode_and_adopts_none_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    process = start(f"{ENDLESS} --training.checkpoint-every-s 100000 --run-dir {folder}")
    replay = folder / "replay"
    wait_for(process, lambda: replay.is_dir() and len(list(replay.glob("*.wme"))) >= 5)
    process.kill()
    process.communicate(timeout=60)
    before = state_of(folder)
    finished = [read_info(path) for path in sorted(replay.glob("*.wme"))]
    gained = sum(info.episode_env_steps for info in finished)
    assert before["env_steps"] == 0 and not before["collector"]["manifest"], "only the checkpoint before everything"
    run(f"--resume {folder} --env-steps {gained}")
    out, err = capfd.readouterr()
    assert f"{len(finished)} episodes ({gained} env steps) were finished after the checkpoint" in err
    after = state_of(folder)
    consistent(folder, after)
    assert after["env_steps"] == gained and after["collector"]["episodes"] == len(finished)
    assert set(after["collector"]["manifest"]) == {info.name for info in finished}
    config = after["updates"], 1 + int((gained - 100) * 0.1)
    assert config[0] == config[1], "the updates that they are due were made"
    run(f"--resume {folder} --env-steps {gained + 110}")
    final = state_of(folder)
    consistent(folder, final)
    new = [name for name in final["collector"]["manifest"] if name not in after["collector"]["manifest"]]
    starts = [read_episode(replay / name).obs[0].tobytes() for name in final["collector"]["manifest"]]
    assert new and len(set(starts)) == len(starts), "environments that begin anew do not repeat episodes"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two environments with checkpoints at 200 and 300 env steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(f"{DEBUG} --agent dreamer --task reach --run-dir {folder}")
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_kill_in_the_middle_of_writing_a_checkpoint_is_harmless(copied: Path) -> None:
    torn = copied / "checkpoints" / "000000310-000000025.tmp"
    torn.write_bytes(newest(copied)[0].read_bytes()[:1000])
    run(f"--resume {copied} --env-steps 310")
    assert state_of(copied)["env_steps"] == 310 and not torn.exists()


def test_a_truncated_checkpoint_falls_back_to_the_one_before(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    last, before = newest(copied)
    episodes = {path.name for path in (copied / "replay").glob("*.wme")}
    later = episodes - set(checkpoint.load(before)["collector"]["manifest"])
    assert later
    truncate(last)
    run(f"--resume {copied} --env-steps 340")
    err = capfd.readouterr().err
    assert f"warning: {last}: damaged" in err and "going back to the one before" in err
    assert f"{len(later)} episodes" in err and "were finished after the checkpoint" in err
    state = state_of(copied)
    consistent(copied, state)
    assert state["env_steps"] >= 340 and episodes <= set(state["collector"]["manifest"])
    assert last.with_suffix(".damaged").exists() and last not in newest(copied), "kept, and out of the way"


def test_a_damaged_newer_episode_is_named_and_moved_out_of_the_way(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last, before = newest(copied)
    older = set(checkpoint.load(before)["collector"]["manifest"])
    last.unlink()
    damaged = sorted({path.name for path in (copied / "replay").glob("s000*")} - older)[0]
    truncate(copied / "replay" / damaged)
    run(f"--resume {copied} --env-steps 400")  # as far as a new episode at the same place
    err = capfd.readouterr().err
    assert re.search(rf"warning: .*{damaged}.*left out", err) and "set aside" in err
    assert (copied / "replay" / "set_aside" / damaged).exists()
    consistent(copied, state_of(copied))


def test_a_run_without_a_readable_checkpoint_is_one_line_and_stays_as_it_is(copied: Path) -> None:
    for path in newest(copied):
        truncate(path)
    names = sorted(path.name for path in copied.rglob("*"))
    with pytest.raises(checkpoint.CheckpointError, match="damaged, or no checkpoint of this project"):
        run(f"--resume {copied} --env-steps 310")
    assert sorted(path.name for path in copied.rglob("*")) == names


def test_a_run_that_was_ended_before_its_first_checkpoint_begins_anew(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in [*newest(copied), *(copied / "replay").iterdir()]:
        path.unlink()
    run(f"--resume {copied} --env-steps 120")
    assert "begins anew" in capfd.readouterr().err
    assert state_of(copied)["env_steps"] == 120


def test_a_run_with_episodes_and_no_checkpoint_is_not_begun_anew(copied: Path) -> None:
    for path in newest(copied):
        path.unlink()
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoints there"):
        run(f"--resume {copied}")


@pytest.mark.parametrize("more", ["", "--env-steps 120", "--env-steps 300"])
def test_a_finished_run_says_that_there_is_nothing_to_do(
    finished: Path, capfd: pytest.CaptureFixture[str], more: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert run(f"--resume {finished} {more}") == 0
    err = capfd.readouterr().err
    assert re.search(r"nothing to do: .* made 300 env steps and 21 updates, and \d+ are asked for; .*--env-steps", err)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_another_simulator_is_said_in_one_line_and_begins_new_episodes(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = newest(copied)[0]
    state = checkpoint.load(path)
    state["fingerprint"]["toy"] = "reach 0"
    torch.save(state, path)
    run(f"--resume {copied} --env-steps 320")
    err = capfd.readouterr().err.splitlines()
    assert "warning: the checkpoint came from another environment: toy reach 0 -> reach 1" in err
    assert "2 of 2 environments begin a new episode" in err
    consistent(copied, state_of(copied))


@pytest.mark.parametrize("ended", [False, True])
def test_an_environment_without_a_state_begins_a_new_episode(
    copied: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Gymnasium's, and those of workers that were lost; ``ended``: their last step was the last of its episode."""
    steps = 398 if ended else 320  # episodes have 50 env steps: at 398 both environments' fourth ones have just ended
    monkeypatch.setattr(EnvPool, "get_state", lambda pool: [None] * pool.num_envs)
    run(f"--resume {copied} --env-steps {steps}")
    arrived = state_of(copied)["collector"]["arrived"]
    assert bool(arrived[3].all()) is ended, "the moment that this test is about"
    capfd.readouterr()
    run(f"--resume {copied} --env-steps 440")
    assert ("2 of 2 environments begin a new episode" in capfd.readouterr().err) is not ended
    state = state_of(copied)
    consistent(copied, state)
    cut = [read_info(copied / "replay" / name).cut for name in state["collector"]["manifest"]]
    assert any(cut) is not ended
    rows = [read_episode(copied / "replay" / name) for name in state["collector"]["manifest"]]
    assert all(row.is_last[-1] for row in rows) and (not ended or {row.info.length for row in rows} == {51})


def test_two_worker_processes_go_on_as_two_environments_in_one_process_would(tmp_path: Path) -> None:
    line = f"{DEBUG} --agent dreamer --task catch"
    run(f"{line} --env-steps 240 --run-dir {tmp_path}/whole")
    run(f"{line} --env-steps 120 --collect.workers process --run-dir {tmp_path}/run")
    run(f"--resume {tmp_path}/run --env-steps 240")
    whole, resumed = state_of(tmp_path / "whole"), state_of(tmp_path / "run")
    consistent(tmp_path / "run", resumed)
    del whole["rng"]["python"], resumed["rng"]["python"]  # the type checks of tests draw from it
    assert differences(whole, resumed) == []
    assert {parse_name(name)[0] for name in resumed["collector"]["manifest"]} == {0, 1}
