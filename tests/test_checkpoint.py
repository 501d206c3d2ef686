"""Checkpoints are written whole or not at all, and read without trusting them."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.training import checkpoint
from agents.training.checkpoint import CheckpointError, load, load_newest, save

STATE = {"updates": 3, "model": {"w": torch.arange(4.0)}, "names": ["a", "b"], "none": None, "big": 2**100}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 12_000, 3, STATE)
    assert path.name == "000012000-000000003.ckpt"
    state = load(path)
    assert torch.equal(state.pop("model")["w"], STATE["model"]["w"])
    assert state == {key: value for key, value in STATE.items() if key != "model"} | {
        "format": checkpoint.FORMAT,
        "version": checkpoint.VERSION,
    }


def test_the_newest_two_are_kept_whatever_the_length_of_their_counts(tmp_path: Path) -> None:
    for env_steps, updates in ((0, 0), (900, 9), (1_000, 9), (1_000, 10)):
        save(tmp_path, env_steps, updates, STATE)
    names = [path.name for path in checkpoint.checkpoints(tmp_path)]
    assert names == ["000001000-000000009.ckpt", "000001000-000000010.ckpt"]
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("at", ["write", "sync", "rename"])
def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    old = save(tmp_path, 1, 1, STATE)
    content = old.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if at == "write":

        class Full:
            """A file on a full disk, as torch's writer sees it."""

            def __init__(self, file: Any):
                self.file, self.write = file, full

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        torch_save = torch.save
        monkeypatch.setattr(checkpoint.torch, "save", lambda state, file: torch_save(state, Full(file)))
    else:
        monkeypatch.setattr(checkpoint.os, "fsync" if at == "sync" else "replace", full)
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 2, 2, STATE)
    assert str(caught.value) == (
        f"cannot write {tmp_path}/000000002-000000002.ckpt: the disk is full, free some space and resume"
    )
    assert os.listdir(tmp_path) == [old.name] and old.read_bytes() == content


def test_what_a_kill_left_half_written_is_no_checkpoint_and_goes_with_the_next_one(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 1, 1, STATE)
    torn = tmp_path / "checkpoints" / "000000002-000000002.tmp"
    torn.write_bytes(b"PK\x03\x04 and so on")
    assert load_newest(tmp_path)[1]["updates"] == 3
    save(tmp_path / "checkpoints", 3, 3, STATE)
    assert not torn.exists()


class Code:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CODE_WAS_RUN"],)


@pytest.mark.parametrize("kind", ["plain", "tensor", "pickled code", "text", "empty", "truncated", "flipped", "folder"])
def test_a_damaged_or_foreign_file_is_one_line_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, evidence = tmp_path / "x.ckpt", tmp_path / "evidence"
    monkeypatch.setenv("CODE_WAS_RUN", str(evidence))
    good = save(tmp_path / "good", 1, 1, STATE).read_bytes()
    flipped = bytearray(good)
    flipped[good.index(STATE["model"]["w"].numpy().tobytes()) + 5] ^= 1  # one bit of a weight
    contents = {"text": b"hello", "empty": b"", "truncated": good[: len(good) // 2], "flipped": bytes(flipped)}
    foreign = {"plain": {"epoch": 3}, "tensor": torch.zeros(2), "pickled code": {"format": Code()}}
    if kind == "folder":
        path.mkdir()
    elif kind in contents:
        path.write_bytes(contents[kind])
    else:
        torch.save(foreign[kind], path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "of this project" in message and "\n" not in message
    assert not evidence.exists()


@pytest.mark.parametrize("version", [2, None])
def test_another_format_version_is_refused(tmp_path: Path, version: int | None) -> None:
    torch.save({"format": checkpoint.FORMAT} | ({"version": version} if version else {}), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=f"x.ckpt: format version {version}, this program reads 1$"):
        load(tmp_path / "x.ckpt")


def test_the_newest_readable_one_is_loaded_and_the_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 2):
        save(tmp_path / "checkpoints", count, count, {**STATE, "updates": count})
    newest = tmp_path / "checkpoints" / "000000002-000000002.ckpt"
    assert load_newest(tmp_path)[1]["updates"] == 2
    newest.write_bytes(newest.read_bytes()[:100])
    path, state = load_newest(tmp_path)
    assert state["updates"] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {newest}: damaged") and line.endswith("; going back to the one before")
    checkpoint.set_aside_newer(path)
    assert not newest.exists() and newest.with_suffix(".damaged").exists() and path.exists()


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoints there; a run is the folder that training wrote"):
        load_newest(tmp_path)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[list[float], list[float]]:
        normal = np.random.standard_normal()  # keeps a second number back
        return torch.rand(3).tolist(), [normal, *np.random.rand(2).tolist()]

    draw()
    path = save(tmp_path, 0, 0, {"rng": checkpoint.random_state()})
    expected = draw()
    random.gauss(0, 1), draw()
    saved = load(path)["rng"]
    checkpoint.set_random_state(saved)
    assert json.dumps(random.getstate()) == saved["python"]  # not by drawing: the type checks of tests draw too
    assert draw() == expected


def test_plain_states_have_no_tuples() -> None:
    state = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    assert checkpoint.plain(state)["param_groups"][0]["betas"] == [0.9, 0.999]
