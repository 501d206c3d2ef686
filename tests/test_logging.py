"""Metrics on disk, in TensorBoard, and the progress line."""

import io
import json
import math
import sys
import types

import numpy as np
import pytest
import torch

from agents.training.logging import MeanMetrics, MetricsLog, read_metrics
from agents.training.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_jsonl_round_trip_merges_one_moment_and_keeps_nan(tmp_path):
    clock = Clock()
    with MetricsLog(tmp_path, clock=clock) as log:
        clock.now += 2
        log.log({"train/return": 3.5, "model/loss": math.nan}, env_steps=100, updates=7)
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["model/loss"] is None  # already on disk
        clock.now += 1
        log.log({"eval/return_mean": 4.0, "train/return": 3.75}, env_steps=100, updates=7)
        log.log({"train/return": 5.0}, env_steps=200, updates=9)
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(first.pop("model/loss"))
    assert first == {"env_steps": 100, "updates": 7, "time": 3.0, "train/return": 3.75, "eval/return_mean": 4.0}
    assert second["train/return"] == 5.0


def test_resume_continues_time_and_voids_what_was_beyond_the_checkpoint(tmp_path):
    clock = Clock()
    with MetricsLog(tmp_path, clock=clock) as log:
        for env_steps in (100, 200, 300):
            clock.now += 10
            log.log({"a": float(env_steps)}, env_steps, updates=0)
    before = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(before + '{"env_steps": 310, "upd')  # killed in the middle of a line
    clock.now += 5000
    with MetricsLog(tmp_path, resumed_at=(200, 0), clock=clock) as log:
        clock.now += 4
        log.log({"a": -1.0}, env_steps=250, updates=0)
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)
    history = read_metrics(tmp_path / "metrics.jsonl")
    assert [(entry["env_steps"], entry["a"], entry["time"]) for entry in history] == [
        (100, 100.0, 10.0),
        (200, 200.0, 20.0),
        (250, -1.0, 34.0),
    ]


def test_updates_tell_moments_apart_where_no_environment_is_touched(tmp_path):
    with MetricsLog(tmp_path, axis="updates") as log:
        for updates in (10, 20):
            log.log({"a": 1.0}, env_steps=0, updates=updates)
    assert [entry["updates"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]


def test_a_second_run_does_not_mix_into_the_first(tmp_path):
    MetricsLog(tmp_path).close()
    with pytest.raises(ValueError, match="exists: resume that run, or choose another folder"):
        MetricsLog(tmp_path)


def test_a_damaged_line_is_reported_and_half_a_last_line_is_not(tmp_path):
    path, good = tmp_path / "metrics.jsonl", '{"env_steps": 1, "updates": 1, "time": 0.1, "a": 2}'
    path.write_text(f"{good}\n{good[:20]}")
    assert [entry["a"] for entry in read_metrics(path)] == [2]
    path.write_text(f"{good}\n{good[:20]}\n{good}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_names_of_the_log_itself_are_refused(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="time"):
        log.log({"time": 1.0}, 0, 0)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_tensorboard_gets_scalars_at_env_steps_and_videos_as_gif(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        log.log({"train/return": 2.0}, env_steps=500, updates=3)
        log.video("imagined", np.zeros((4, 10, 12, 3), np.uint8), env_steps=500, updates=3)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/return")] == [(500, 2.0)]
    (image,) = board.Images("imagined")
    assert image.step == 500 and image.encoded_image_string.startswith(b"GIF89a")


def test_wandb_missing_says_what_to_install_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        MetricsLog(tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()


def test_wandb_gets_both_counts_and_a_resumed_run_the_same_id(tmp_path, monkeypatch):
    said, ids = [], []
    run = types.SimpleNamespace(log=said.append, finish=lambda: None, define_metric=lambda *a, **k: None)
    fake = types.SimpleNamespace(init=lambda **k: ids.append(k["id"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLog(tmp_path, wandb=True) as log:
        log.log({"a": 1.0}, 10, 2)
    MetricsLog(tmp_path, wandb=True, resumed_at=(10, 2)).close()
    assert said == [{"a": 1.0, "env_steps": 10, "updates": 2}] and ids[0] == ids[1]


def test_means_are_over_the_updates_that_had_the_metric():
    means = MeanMetrics()
    loss = torch.tensor(1.0, requires_grad=True)
    means.add({"a": loss * 1, "b": torch.tensor(4)})
    means.add({"a": loss * 3, "b": torch.tensor(8)})
    means.add({"a": torch.tensor(5.0, dtype=torch.bfloat16)})
    means.add({})
    assert means.take() == {"a": 3.0, "b": 6.0} and means.take() == {}
    means.add({"a": torch.tensor(math.nan)})
    assert math.isnan(means.take()["a"])


def a_progress(**options) -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Progress(100_000, stream=stream, clock=clock, **options), stream, clock


def test_plain_lines_come_every_ten_seconds_and_say_everything():
    progress, stream, clock = a_progress(env_steps=11_820, updates=1959)
    for second in range(1, 11):
        clock.now += 1
        progress.update(11_820 + 58 * second, 1959 + round(9.1 * second), episode_return=312.4)
    assert stream.getvalue() == (
        "env 12 400/100 000 · updates 2 050 · return 312.4 · 58 env steps/s · 9.1 updates/s · 25 min left\n"
    )
    progress.close()
    assert stream.getvalue().count("\n") == 1  # nothing new to say
    progress.update(12_401, 2050)
    progress.close()
    assert stream.getvalue().splitlines()[-1].startswith("env 12 401/100 000")


def test_before_the_first_second_no_rate_is_guessed():
    progress, _, clock = a_progress()
    clock.now += 0.01
    progress.update(4, 0)
    assert progress.line() == "env 4/100 000 · updates 0"


def test_pauses_do_not_slow_the_rate_and_the_window_slides():
    progress, _, clock = a_progress()
    for second in range(1, 201):
        clock.now += 1
        progress.update(1000 + 100 * second if second > 100 else 11 * second, 0)
    assert "100 env steps/s" in progress.line()
    progress.pause()
    clock.now += 3600
    assert "100 env steps/s" in progress.line()
    progress.resume()
    clock.now += 1
    progress.update(1000 + 100 * 201, 1)
    assert "100 env steps/s" in progress.line()


@pytest.mark.parametrize(
    ("rate", "left"), [(5000, "20 s left"), (100, "17 min left"), (10, "2 h 47 min left"), (0.5, "2 d 7 h left")]
)
def test_time_left(rate: float, left: str):
    progress, _, clock = a_progress()
    clock.now += 10
    progress._counts = (0, 0)
    progress._samples[0] = (clock.now - 10, round(-10 * rate), 0)
    assert progress.line().endswith(left)


def test_a_run_without_environment_counts_updates():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(0, total_updates=1000, stream=stream, clock=clock)
    clock.now += 10
    progress.update(0, 100)
    assert stream.getvalue() == "env 0 · updates 100/1 000 · 0.0 env steps/s · 10 updates/s · 2 min left\n"


def test_evaluation_line():
    progress, stream, _ = a_progress()
    progress.evaluation(10_000, 431.21, 20.12, 4, {"random": 43.0, "zero": 12.0}, "videos/10000.mp4")
    progress.evaluation(10_000, 431.21, 0.0, 1)
    assert stream.getvalue() == (
        "eval at 10 000 env steps: return 431.2 +- 20.1 over 4 episodes (random 43.0, zero 12.0) "
        "video videos/10000.mp4\neval at 10 000 env steps: return 431.2 +- 0.0 over 1 episode\n"
    )


def test_a_log_in_ascii_does_not_end_the_run():
    raw = io.BytesIO()
    progress = Progress(10, stream=io.TextIOWrapper(raw, encoding="ascii"), clock=Clock())
    progress.update(10, 1)
    progress.close()
    assert raw.getvalue() == b"env 10/10 ? updates 1\n"


def test_on_a_terminal_the_line_is_drawn_over_and_notes_stay():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, clock = Terminal(), Clock()
    progress = Progress(100, stream=stream, clock=clock)
    progress._live._bar.console.width = 150  # pyright: ignore[reportOptionalMemberAccess]
    for env_steps in (10, 20, 30):
        clock.now += 1
        progress.update(env_steps, 0)
    progress.evaluation(30, 1.0, 0.0, 2)
    progress.close()
    assert "env 30/100" in stream.getvalue() and "eval at 30 env steps" in stream.getvalue()
    assert stream.getvalue().count("\n") < 6
