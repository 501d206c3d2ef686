"""Readers of other people's recordings, their conversion, and recording: nothing lost, nothing half-imported."""

import csv
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from worldmodels.base import Spaces
from worldmodels.replay import load_dataset, read_episode, scan
from worldmodels.replay.convert import convert
from worldmodels.replay.datasets import find_episodes

ROOT = Path(__file__).parents[1]
SIDES = (16, 20)


class Take:
    """A made-up episode on our timeline: N rows, the last action zero."""

    def __init__(self, length: int, seed: int, terminal: bool = False, discrete: bool = False):
        random = np.random.default_rng(seed)
        self.obs = random.integers(0, 256, (length, *SIDES, 3), dtype=np.uint8)
        self.action = random.uniform(-1, 1, (length, 3)).astype(np.float32)
        if discrete:
            self.action = np.eye(3, dtype=np.float32)[random.integers(0, 3, length)]
        self.action[-1] = 0
        self.reward = random.normal(size=length).astype(np.float32)
        self.reward[0] = 0
        self.length, self.terminal = length, terminal

    def led(self) -> np.ndarray:
        """Actions that led to each row."""
        return np.concatenate([np.zeros_like(self.action[:1]), self.action[:-1]])


def check_replay(source: Path, takes: list[Take], discrete: bool = False) -> None:
    replay, spaces, fingerprint, _ = load_dataset(source)
    assert spaces == Spaces((*SIDES, 3), 3, discrete) and fingerprint == {}
    rows = sum(take.length for take in takes)
    assert len(replay) == rows and replay.num_episodes == len(takes)
    found = replay.gather(torch.tensor([0]), torch.tensor([0]), rows).sequence
    for name in ("obs", "action", "reward"):
        np.testing.assert_array_equal(getattr(found, name)[0], np.concatenate([getattr(t, name) for t in takes]), name)
    ends = np.cumsum([take.length for take in takes]) - 1
    assert np.flatnonzero(found.is_last[0]).tolist() == ends.tolist()
    assert np.flatnonzero(found.is_terminal[0]).tolist() == [e for e, t in zip(ends, takes, strict=True) if t.terminal]


TAKES = [Take(6, 0), Take(9, 1, terminal=True)]


def shard(path: Path, takes: list[Take] = TAKES, **changes: Any) -> Path:
    """V-D4RL's 84-pixel layout."""
    kind = np.concatenate([np.r_[0, np.ones(t.length - 2, int), 2] for t in takes])
    arrays = {
        "observation": np.concatenate([t.obs for t in takes]).transpose(0, 3, 1, 2),
        "action": np.concatenate([t.led() for t in takes]),
        "reward": np.concatenate([t.reward for t in takes]),
        "discount": np.concatenate([np.r_[np.ones(t.length - 1), float(not t.terminal)] for t in takes]),
        "step_type": kind,
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file[name] = values
    return path


def minari(folder: Path, takes: list[Take] = TAKES, discrete: bool = False, **changes: Any) -> Path:
    """Minari 0.5's HDF5 layout; ``changes`` are of the second episode."""
    (folder / "data").mkdir(parents=True)
    space = {"type": "Discrete", "dtype": "int64", "start": 1, "n": 3} if discrete else {"type": "Box"}
    metadata = {"data_format": "hdf5", "action_space": json.dumps(space)}
    (folder / "data/metadata.json").write_text(json.dumps(metadata))
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for number, take in enumerate(takes):
            ends = np.arange(1, take.length) == take.length - 1
            arrays = {
                "observations": take.obs,
                "actions": take.action[:-1].argmax(1) + 1 if discrete else take.action[:-1],
                "rewards": take.reward[1:].astype(np.float64),
                "terminations": ends & take.terminal,
                "truncations": ends & (not take.terminal),
            }
            for name, values in (arrays | (changes if number == 1 else {})).items():
                if values is not None:
                    file[f"episode_{number}/{name}"] = values
    return folder


def table(folder: Path, takes: list[Take] = TAKES, change: tuple[int, str, str] | None = None) -> Path:
    """PNG files and a CSV; ``change`` is a row, a column and its text."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, take in enumerate(takes):
        for t in range(take.length):
            end = t == take.length - 1
            Image.fromarray(take.obs[t]).save(folder / f"e{number}-{t}.png")
            actions = {f"action_{i}": "" if end else repr(float(a)) for i, a in enumerate(take.action[t])}
            flags = {"is_last": int(end), "is_terminal": int(end and take.terminal)}
            row = {"episode": f"e{number}", "file": f"e{number}-{t}.png", "reward": repr(float(take.reward[t]))}
            rows.append(row | actions | flags)
    if change:
        rows[change[0]][change[1]] = change[2]
    with open(folder / "steps.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_a_shard_of_v_d4rl_is_read_on_our_timeline(tmp_path: Path) -> None:
    check_replay(shard(tmp_path / "a.hdf5"), TAKES)
    shard(tmp_path / "b.hdf5", [Take(4, 2)])
    check_replay(tmp_path, [*TAKES, Take(4, 2)])


@pytest.mark.parametrize("discrete", [False, True])
def test_a_minari_data_set_is_read_on_our_timeline(tmp_path: Path, discrete: bool) -> None:
    takes = [Take(6, 0, discrete=discrete), Take(9, 1, terminal=True, discrete=discrete)]
    check_replay(minari(tmp_path / "set", takes, discrete), takes, discrete)
    check_replay(tmp_path / "set/data", takes, discrete)
    check_replay(tmp_path / "set/data/main_data.hdf5", takes, discrete)


def test_images_among_other_observations_and_with_channels_first_are_found(tmp_path: Path) -> None:
    folder = minari(tmp_path / "set", observations=None)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        file["episode_1/observations/pixels"] = TAKES[1].obs.transpose(0, 3, 1, 2)
        file["episode_1/observations/joints"] = np.zeros((9, 4))
    check_replay(folder, TAKES)


def test_pictures_with_a_table_are_read(tmp_path: Path) -> None:
    check_replay(table(tmp_path / "pngs"), TAKES)
    check_replay(tmp_path / "pngs/steps.csv", TAKES)


def test_videos_with_a_table_are_read_picture_by_picture(tmp_path: Path) -> None:
    grey = np.arange(8, dtype=np.uint8) * 30
    film = np.broadcast_to(grey[:, None, None, None], (8, 32, 48, 3))
    iio.imwrite(tmp_path / "one.mp4", film, plugin="FFMPEG", fps=10, macro_block_size=2)
    lines = [f"one,{frame},0.5,{frame},{int(frame == 6)},0" for frame in (0, 2, 3, 6)]
    (tmp_path / "t.csv").write_text("\n".join(["episode,frame,action_0,reward,is_last,is_terminal", *lines, ""]))
    replay, spaces, *_ = load_dataset(tmp_path)
    assert spaces == Spaces((32, 48, 3), 1, False) and len(replay) == 4
    obs = replay.gather(torch.tensor([0]), torch.tensor([0]), 4).sequence.obs[0].float().mean((1, 2, 3))
    np.testing.assert_allclose(obs, grey[[0, 2, 3, 6]], atol=4)
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("one,6,", "one,60,"))
    (recorded,), problems = find_episodes(tmp_path)
    with pytest.raises(ValueError, match="one: frame: one.mp4 has no picture 60"):
        recorded.read()
    (tmp_path / "one.mp4").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(ValueError, match="t.csv: episode one: "):
        recorded.probe()
    assert not problems


def only_problem(source: Path, rows: int, caplog: pytest.LogCaptureFixture) -> str:
    """The one line in the log about a source of which ``rows`` rows are read."""
    caplog.clear()
    assert len(load_dataset(source).replay) == rows
    (line,) = [record.getMessage() for record in caplog.records]
    return line


ROWS = sum(take.length for take in TAKES)
BAD_SHARDS = [
    ({"reward": None}, "reward: missing"),
    ({"action": np.zeros((4, 3))}, r"action: \[4, 3\] where 15 rows belong"),
    ({"step_type": np.full(ROWS, 7)}, "step_type: not 0, 1 or 2"),
    ({"observation": None}, "observation: missing"),
]
BAD_TAKES = [
    ({"action": np.r_[TAKES[0].led(), TAKES[1].led() * 9]}, r"rows 6 to 14: action: outside \[-1, 1\]"),
    ({"reward": np.r_[np.zeros(14), np.nan]}, "rows 6 to 14: reward: not finite"),
    ({"discount": np.r_[np.zeros(14), np.nan]}, "rows 6 to 14: discount: not finite"),
    ({"step_type": np.r_[0, np.ones(4), 2, 0, 1, 2, np.ones(6)]}, "rows 6 to 14: step_type: goes on after the last"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SHARDS)
def test_a_malformed_shard_is_one_line(tmp_path: Path, caplog: Any, changes: dict[str, Any], message: str) -> None:
    shard(tmp_path / "a.hdf5", [Take(4, 2)])
    shard(tmp_path / "b.hdf5", **changes)
    line = only_problem(tmp_path, 4, caplog)
    with pytest.raises(ValueError, match=rf"b\.hdf5: {message}"):
        raise ValueError(line)


@pytest.mark.parametrize(("changes", "message"), BAD_TAKES)
def test_a_malformed_episode_of_a_shard_is_one_line(
    tmp_path: Path, caplog: Any, changes: dict[str, Any], message: str
) -> None:
    line = only_problem(shard(tmp_path / "b.hdf5", **changes), 6, caplog)
    with pytest.raises(ValueError, match=rf"b\.hdf5: {message}"):
        raise ValueError(line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "rewards: missing"),
        ({"rewards": np.full(8, np.inf)}, "rewards: not finite"),
        ({"truncations": np.zeros(3, bool)}, r"truncations: \[3\] where \[8\]"),
        ({"terminations": np.ones(8, bool)}, "terminations: true before the last step"),
        ({"actions": np.zeros((9, 3), np.float32)}, r"actions: \[9, 3\] where \[8, A\]"),
        ({"actions": np.zeros(8, int)}, "actions: int64 .* no Discrete action_space"),
        ({"observations": np.zeros((9, 4))}, "observations: float64 .* no uint8 images"),
        ({"observations": h5py.ExternalLink("other.hdf5", "x")}, "observations: not an array in this file"),
    ],
)
def test_a_malformed_episode_of_minari_is_one_line(
    tmp_path: Path, caplog: Any, changes: dict[str, Any], message: str
) -> None:
    line = only_problem(minari(tmp_path / "set", **changes), 6, caplog)
    with pytest.raises(ValueError, match=f"main_data.hdf5: episode_1: {message}"):
        raise ValueError(line)


def test_what_is_no_known_hdf5_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF nothing")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["weights"] = np.zeros(3)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/data").mkdir()
    (tmp_path / "c/data/metadata.json").write_text('{"data_format": "arrow"}')
    assert [len(find_episodes(tmp_path / name)[1]) for name in ("a.hdf5", "b.h5", "c")] == [1, 1, 1]
    assert "neither V-D4RL" in find_episodes(tmp_path / "b.h5")[1][0]
    assert "only HDF5 is read" in find_episodes(tmp_path / "c")[1][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((8, "reward", "much"), "row 10: reward: 'much' is not a finite number"),
        ((8, "reward", "nan"), "row 10: reward: 'nan' is not a finite number"),
        ((8, "action_1", ""), "row 10: action_1: '' is not a finite number"),
        ((8, "action_1", "2"), r"row 10: action: outside \[-1, 1\]"),
        ((8, "is_last", "1"), "row 10: is_last: true before the episode's last row"),
        ((8, "is_terminal", "maybe"), "row 10: is_terminal: 'maybe' is not 0 or 1"),
        ((8, "file", "../steps.csv"), "row 10: file: '../steps.csv' is outside"),
        ((8, "file", "gone.png"), "row 10: file: 'gone.png' is no .png or .mp4 here"),
    ],
)
def test_a_malformed_row_leaves_out_its_episode_with_one_line(
    tmp_path: Path, caplog: Any, change: tuple[int, str, str], message: str
) -> None:
    line = only_problem(table(tmp_path / "pngs", change=change), 6, caplog)
    with pytest.raises(ValueError, match=rf"steps\.csv: {message}"):
        raise ValueError(line)


def test_malformed_pictures_and_tables_are_one_line(tmp_path: Path, caplog: Any) -> None:
    folder = table(tmp_path / "pngs")
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(folder / "e1-4.png")
    assert "episode e1: file: e1-4.png is [3, 3, 3]" in only_problem(folder, 6, caplog)
    (folder / "e1-4.png").write_bytes((folder / "e1-3.png").read_bytes()[:300])
    assert "episode e1: file: e1-4.png: " in only_problem(folder, 6, caplog)
    text = (folder / "steps.csv").read_text()
    (folder / "steps.csv").write_text(text.replace("reward", "rewards", 1))
    assert find_episodes(folder) == ([], [f"{folder}/steps.csv: reward: missing column"])
    (folder / "steps.csv").unlink()
    (line,) = find_episodes(folder)[1]
    assert "15 pictures or videos, and no CSV" in line


def test_conversion_loses_nothing_and_resizes_by_area(tmp_path: Path) -> None:
    source = shard(tmp_path / "a.hdf5")
    converted = convert(source, tmp_path / "same", task="dmc:walker-walk", action_repeat=2)
    assert [info.length for info in converted.episodes] == [6, 9] and not converted.problems
    assert load_dataset(tmp_path / "same").tasks == ["dmc:walker-walk"] and load_dataset(source).tasks == []
    check_replay(tmp_path / "same", TAKES)
    infos, _ = scan(tmp_path / "same")
    assert [(info.position, info.env_steps, info.episode_env_steps) for info in infos] == [(0, 10, 10), (6, 26, 16)]
    again = convert(tmp_path / "same", tmp_path / "small", size=4)
    first = read_episode(again.episodes[0].path)
    blocks = TAKES[0].obs.reshape(6, 4, 4, 4, 5, 3).mean((2, 4))
    np.testing.assert_allclose(first.obs, blocks, atol=1)  # Pillow rounds rows, then columns
    assert first.info.task == "dmc:walker-walk" and first.info.fingerprint == {"resized": "16x20 to 4"}
    with pytest.raises(ValueError, match="something already"):
        convert(source, tmp_path / "same")


def test_an_episode_that_breaks_off_is_cut(tmp_path: Path) -> None:
    kind = np.r_[0, np.ones(4), 2, 0, np.ones(8)]
    (first, second), _ = convert(shard(tmp_path / "a.hdf5", step_type=kind), tmp_path / "out")
    assert (first.cut, second.cut) == (False, True)
    assert read_episode(second.path).is_last.tolist() == [False] * 8 + [True]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(name: str, *argv: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_convert_says_what_it_left_out(tmp_path: Path, script: Callable[..., tuple[int, str, str]]) -> None:
    source = shard(tmp_path / "a.hdf5", reward=np.r_[np.zeros(14), np.nan])
    code, out, err = script("convert.py", source, tmp_path / "out", "--task", "walker-walk", "--size", "8")
    assert code == 2 and "1 episodes, 5 env steps, mean return 0.00; 1 left out" in out
    assert err == f"warning: {source}: rows 6 to 14: reward: not finite numbers: left out\n"
    code, _, err = script("convert.py", source, tmp_path / "out")
    assert code == 2 and "something already" in err
    code, _, err = script("convert.py", tmp_path / "none", tmp_path / "out2")
    assert code == 2 and "no such folder" in err and not (tmp_path / "out2").exists()
    assert script("convert.py", source, tmp_path / "out2", "--size", "0")[0] == 2


@pytest.mark.parametrize(
    ("policy", "mean"), [("random", 9.5), ("zero", 9.8), ("optimal", 47.6), ("zoo:toy-reach", None)]
)
def test_collect_records_what_was_asked_for(
    tmp_path: Path, script: Callable[..., tuple[int, str, str]], policy: str, mean: float | None
) -> None:
    line = ("--policy", policy, "--env-steps", "120", tmp_path / "out")
    code, out, err = script("collect.py", *([] if mean is None else ["--task", "reach"]), *line)
    assert code == 0 and "3 episodes (1 cut), 120 env steps, mean return " in out, err
    infos, problems = scan(tmp_path / "out")
    assert [(info.length, info.cut) for info in infos] == [(51, False), (51, False), (21, True)] and not problems
    assert {info.task for info in infos} == {"toy:reach"} and infos[-1].env_steps == 120
    whole = [info.episode_return for info in infos if not info.cut]
    assert f"mean return {sum(whole) / 2:.2f}" in out
    assert (min(whole) > 40) == (policy == "optimal") or mean is None
    again = script("collect.py", "--task", "reach", *line)
    assert again[0] == 2 and "something already" in again[2]


@pytest.mark.parametrize("task", ["catch", "cover", "pendulum", "sokoban-5-1", "minipacman-hunt"])
def test_every_built_in_player_can_be_recorded_beyond_the_end_of_episodes(
    tmp_path: Path, script: Callable[..., tuple[int, str, str]], task: str
) -> None:
    line = ("--policy", "optimal", "--random-share", "0.5", "--env-steps", "60", "--num-envs", "2")
    code, out, err = script("collect.py", "--task", task, *line, tmp_path / "out", "--env.size", "19")
    assert code == 0 and (" 60 env steps" in out or " 61 env steps" in out), err
    replay, spaces, fingerprint, _ = load_dataset(tmp_path / "out")
    assert spaces.image == (19, 19, 3) and fingerprint["size"] == "19" and len(replay) >= 62


def test_collect_says_in_one_line_what_is_wrong(tmp_path: Path, script: Callable[..., tuple[int, str, str]]) -> None:
    for argv, word in [
        (("--policy", "optimal", "--task", "walker-walk"), "only built-in tasks"),
        (("--policy", "random"), "needs a --task"),
        (("--policy", "runs/none"), "neither a run"),
        (("--policy", "random", "--task", "reech"), "reach"),
        (("--policy", "random", "--task", "reach", "--random-share", "2"), "--random-share"),
        (("--policy", "zoo:toy-reach", "--task", "catch"), "plays in"),
    ]:
        code, _, err = script("collect.py", *argv, "--env-steps", "10", tmp_path / "out")
        assert code == 2 and word in err and "Traceback" not in err, err
        assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
