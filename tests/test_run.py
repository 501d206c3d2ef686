"""Whole runs at the smallest size: what they leave behind, and how they end when something goes wrong."""

import errno
import json
import math
import os
import re
import shutil
import signal
import warnings
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import load_agent
from agents.training import checkpoint
from agents.training.cli import parse
from agents.training.config import load_config, shipped
from agents.training.evaluate import FIRST_SEED, Stage, evaluate, evaluate_agent, evaluate_baselines
from agents.training.learner import Learner
from agents.training.logging import MetricsLog, read_metrics
from agents.training.policies import ZeroPolicy
from agents.training.run import Run, train
from agents.training.schedule import planned_env_steps
from agents.training.watch import Watch, evenly_spaced
from worldmodels.base import Spaces
from worldmodels.envs import EnvPool, Step
from worldmodels.replay.episodes import read_episode
from worldmodels.replay.memory import Sample

BASE = "--preset debug --training.eval-every 0 --training.updates-per-env-step 0.1 --collect.num-envs 1"
UNSEEN = "--training.video-every 0"
REACH = f"{BASE} --agent dreamer --task reach"


@pytest.fixture(scope="module", autouse=True)
def small_films() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.training.watch.COLUMNS", 2)
        patch.setattr("agents.training.watch.HORIZON", 6)
        yield


def run(line: str) -> int:
    return train(parse(line.split()))


def newest(folder: Path) -> dict[str, Any]:
    return checkpoint.load_newest(folder)[1]


@pytest.mark.parametrize("task", ["reach", "catch"])
@pytest.mark.parametrize("agent", shipped().names("agents"))
def test_every_agent_trains_on_continuous_and_discrete_actions(tmp_path: Path, agent: str, task: str) -> None:
    lived = f"{BASE} --task {task} --env-steps 60 --collect.prefill 30 --run-dir {tmp_path}"
    line, env_steps = f"{lived}/run --agent {agent}", 60
    if not planned_env_steps(parse(line.split()).config.training):  # it learns from recorded data alone
        assert run(f"{lived}/recorded --agent none") == 0
        line, env_steps = f"{line} --data {tmp_path}/recorded/replay", 0
    try:
        assert run(line) == 0
    except ValueError as error:
        if "needs a world model that is of continuous actions" not in str(error):
            raise
        pytest.skip(str(error))
    state = newest(tmp_path / "run")
    assert state["env_steps"] == env_steps and state["updates"] >= 4
    history = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [entry for entry in history if "total" in entry]
    assert len(losses) >= 4 and all(math.isfinite(entry["total"]) for entry in losses)
    policy = load_agent(tmp_path / "run")
    assert policy.card.task == f"toy:{task}"


def test_a_run_folder_explains_itself_and_nothing_else_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    line = f"{REACH} --env-steps 120 --training.eval-every 120 --training.video-every 120 --run-dir {folder}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(line)
    stem = "000000120-000000003"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("tensorboard/events")} == {
        "config.yaml", "fingerprint.json", "metrics.jsonl", "baselines.json",
        "checkpoints/000000100-000000001.ckpt", f"checkpoints/{stem}.ckpt",
        "replay/s000-000000000-51.wme", "replay/s000-000000051-51.wme",
        f"videos/{stem}-imagined.mp4", f"videos/{stem}-imagined.json", f"videos/{stem}-policy.mp4",
    }  # fmt: skip
    assert load_config(folder / "config.yaml") == parse(line.replace(str(folder), f"{tmp_path}/other").split()).config
    out, err = capfd.readouterr()
    assert all(re.match(r"env \d+/120 · updates \d|eval at 120 env steps: return ", text) for text in out.splitlines())
    assert re.fullmatch(r"replay: \d+ steps, [\d.]+ GB on cpu\nfinished; python scripts/evaluate.py .*\n", err)


def test_evaluations_are_logged_beside_their_baselines_on_the_same_seeds(tmp_path: Path) -> None:
    seen = "--training.eval-every 120 --training.eval-episodes 2"
    run(f"{REACH} --env-steps 120 {seen} {UNSEEN} --run-dir {tmp_path}/run")
    entry = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    config = load_config(tmp_path / "run" / "config.yaml")
    expected = evaluate_baselines(Stage(config.task, config.env), load_agent(tmp_path / "run").spaces, 2)
    for name in ("random", "zero"):
        assert entry[f"eval/{name}_return"] == pytest.approx(sum(expected[name].returns) / 2)
    known = json.loads((tmp_path / "run" / "baselines.json").read_text())
    assert known["random"]["returns"] == expected["random"].returns
    assert 0 < entry["eval/return_mean"] < 50 and entry["eval/length_mean"] == 50


def test_episodes_played_one_after_the_other_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.training.evaluate.ENVS_AT_ONCE", 1)
    monkeypatch.setattr("agents.training.evaluate.evaluation_seeds", lambda episodes: [FIRST_SEED] * episodes)
    config = parse(REACH.split()).config
    stage = Stage(config.task, config.env)
    spaces = Spaces((64, 64, 3), 2, discrete=False)
    first, second = evaluate_baselines(stage, spaces, 2)["random"].returns
    assert first != second
    torch.manual_seed(0)
    model = config.world_model.build(spaces)
    agent = config.agent.build(model)
    with torch.no_grad():
        first, second = evaluate_agent(stage, model, agent, 2).returns
    assert first != second


def test_blocks_without_an_update_are_passed(tmp_path: Path) -> None:
    run(f"{REACH} --collect.prefill 90 --training.block-env-steps 20 --env-steps 130 --run-dir {tmp_path}/run")
    assert (newest(tmp_path / "run")["env_steps"], newest(tmp_path / "run")["updates"]) == (130, 5)


def test_a_run_that_ends_before_its_prefill_learns_nothing_and_is_saved(tmp_path: Path) -> None:
    run(f"{REACH} --env-steps 60 --run-dir {tmp_path}/run")
    assert (newest(tmp_path / "run")["env_steps"], newest(tmp_path / "run")["updates"]) == (60, 0)
    run(f"--resume {tmp_path}/run --env-steps 110")
    assert newest(tmp_path / "run")["updates"] == 2


def test_the_replay_holds_a_run_of_short_episodes_whole(tmp_path: Path) -> None:
    made = Run(parse(f"{BASE} --agent none --task catch --env-steps 1700 --run-dir {tmp_path}/run".split()))
    assert made.collector is not None and made.collector.replay.ring > 1700 * 9 / 8, "nine steps for eight env steps"


@pytest.mark.parametrize("log_every_s", [0, 1000])
@pytest.mark.parametrize("cause", ["loss", "gradient", "weights"])
def test_learning_that_fails_is_one_line_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str, log_every_s: int
) -> None:
    folder, real, lr = tmp_path / "run", Learner.training_step, 1e30 if cause == "weights" else 1e-3

    def step(learner: Learner, sample: Sample, index: int) -> None:
        if cause == "loss" and learner.updates == 3:
            sample.sequence.reward[0, 0] = math.nan
        if cause == "gradient" and learner.updates == 3:
            weight = next(iter(learner.model.parameters()))
            weight.register_hook(lambda gradient: gradient / 0)
        real(learner, sample, index)

    monkeypatch.setattr(Learner, "training_step", step)
    with pytest.raises(ValueError) as caught:
        run(f"{REACH} --env-steps 200 --optimizers.all.lr {lr} --training.log-every-s {log_every_s} --run-dir {folder}")
    found = {
        "loss": r"the loss is not a number at update \d: total, .*model/reward",
        "gradient": r"the loss is not a number at update \d: .*gradient_norm/all",
        # weights of 1e30: where that overflows first, in a loss, an action or a weight, is a matter of kernels
        "weights": r"(the loss is not a number at|(the action|(model|agent)\.\S+) is not a number after) update \d",
    }[cause]
    advice = rf"; the last good checkpoint is in {folder}/checkpoints: resume with a lower learning rate"
    assert re.fullmatch(f"{found}.*{advice}", str(caught.value))
    for path in checkpoint.checkpoints(folder / "checkpoints"):
        state = checkpoint.load(path)
        assert all(value.isfinite().all() for room in ("model", "agent") for value in state[room].values())


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(watch: Watch, *_: Any) -> None:
        with torch.no_grad():
            next(iter(watch.run.model.parameters())).fill_(math.nan)

    monkeypatch.setattr(Watch, "on_train_batch_end", broken)
    with pytest.raises(ValueError, match=r"model\.\S+ is not a number after update 1; the last good checkpoint is in"):
        run(f"{REACH} --env-steps 110 --run-dir {tmp_path}/run")
    assert newest(tmp_path / "run")["updates"] == 0


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, calls = tmp_path / "run", os.replace, []

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        full() if str(target).endswith(".ckpt") and len(calls) > 2 else real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", replace)
        with pytest.raises(ValueError, match=r"cannot write .*ckpt: the disk is full, free some space and resume$"):
            run(f"{REACH} --env-steps 200 --training.block-env-steps 50 --run-dir {folder}")
    assert not list((folder / "checkpoints").glob("*.tmp")) and newest(folder)["env_steps"] < 200
    run(f"--resume {folder}")
    assert newest(folder)["env_steps"] == 200


def test_a_disk_that_is_full_for_metrics_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetricsLog, "_write", full)
    with pytest.raises(ValueError, match=rf"^the disk is full: free some space, then --resume {tmp_path}/run$"):
        run(f"{REACH} --env-steps 110 --run-dir {tmp_path}/run")


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr("agents.training.watch.evaluate_agent", endless)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(f"{REACH} --env-steps 400 --training.eval-every 100 --run-dir {tmp_path}/run") == signal.SIGTERM
    state = newest(tmp_path / "run")
    assert (state["env_steps"], state["evaluated_at"]) == (100, 0)
    assert f"go on with: python scripts/train.py --resume {tmp_path}/run" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers, "as they were before"


def test_a_signal_while_saving_ends_the_run_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, moments = Run.save, iter([False, True])  # not at the beginning, and once: a second one would end pytest

    def interrupted(made: Run) -> Path:
        if next(moments, False):
            signal.raise_signal(signal.SIGINT)
        return save(made)

    monkeypatch.setattr(Run, "save", interrupted)
    assert run(f"{REACH} --env-steps 400 --run-dir {tmp_path}/run") == signal.SIGINT
    assert newest(tmp_path / "run")["env_steps"] == 100


def test_a_worker_that_is_killed_costs_its_episode_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "run", EnvPool.step
    steps = iter(range(10**6))

    def step(pool: EnvPool, actions: np.ndarray) -> Step:
        if next(steps) == 70:
            process = pool._seats[1]._process  # pyright: ignore[reportAttributeAccessIssue]
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        return real(pool, actions)

    monkeypatch.setattr(EnvPool, "step", step)
    line = REACH.replace("--collect.num-envs 1", "--collect.num-envs 2 --collect.workers process")
    with pytest.warns(UserWarning, match="environment 1 is started again: its worker died with exit code -9"):
        run(f"{line} --env-steps 300 --collect.prefill 280 --run-dir {folder}")
    assert read_metrics(folder / "metrics.jsonl")[-1]["train/worker_restarts"] == 1
    state = newest(folder)
    assert state["env_steps"] >= 300
    episodes = [read_episode(folder / "replay" / name) for name in state["collector"]["manifest"]]
    cut = [episode for episode in episodes if episode.info.cut]
    assert len(cut) == 1 and cut[0].info.stream == 1
    assert cut[0].is_last[-1] and not cut[0].is_terminal.any() and cut[0].reward[-1] == 0
    assert all(episode.info.length == 51 for episode in episodes if not episode.info.cut)


def test_runs_and_evaluations_leave_no_file_or_process_open(tmp_path: Path) -> None:
    config = parse(f"{REACH} --run-dir {tmp_path}/first".split()).config
    opened = []
    for name in ("first", "second"):
        run(f"{REACH} --env-steps 110 --training.eval-every 110 {UNSEEN} --run-dir {tmp_path}/{name}")
        evaluate(Stage(config.task, config.env, "process"), lambda _: ZeroPolicy(Spaces((64, 64, 3), 2, False)), [0])
        opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[1] <= opened[0] and not active_children()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve or so episodes of catch."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    run(f"{BASE} --agent none --task catch --env-steps 100 --run-dir {folder}")
    return folder / "replay"


@pytest.fixture(scope="module")
def learned(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world model that learned from them alone."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    offline = f"--data {recorded} --env-steps 0 --training.offline-updates 20"
    run(f"{BASE} --agent none --task catch {offline} --run-dir {folder}")
    return folder


@pytest.fixture
def offline(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "offline"))


def test_a_world_model_learns_from_data_alone_and_is_filmed(offline: Path) -> None:
    state = newest(offline)
    assert (state["env_steps"], state["updates"]) == (0, 20)
    assert len(list((offline / "videos").glob("*.mp4"))) == 2
    totals = [entry["total"] for entry in read_metrics(offline / "metrics.jsonl") if "total" in entry]
    assert len(totals) == 20 and totals[-1] < totals[0]


def test_data_that_have_moved_are_asked_for_in_one_line(offline: Path, tmp_path: Path) -> None:
    (offline / "data.txt").write_text(f"{tmp_path}/gone\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/gone: no such folder of episodes"):
        run(f"--resume {offline} --training.offline-updates 25")


def test_data_that_have_changed_are_not_gone_on_with(recorded: Path, offline: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "less")
    next((tmp_path / "less").glob("*.wme")).unlink()
    (offline / "data.txt").write_text(f"{tmp_path}/less\n")
    with pytest.raises(ValueError, match=r"the data had \d+ steps and now \d+: restore the folder, or start anew"):
        run(f"--resume {offline} --training.offline-updates 25")


def test_a_run_on_data_goes_on_in_an_environment(offline: Path) -> None:
    run(f"--resume {offline} --env-steps 120")
    state = newest(offline)
    assert (state["env_steps"], state["updates"]) == (120, 20 + 1 + 2)


def test_filming_data_draws_nothing_from_the_sampler(recorded: Path, tmp_path: Path) -> None:
    command = parse(
        f"{BASE} --agent none --task catch --data {recorded} --env-steps 0 --training.offline-updates 1 "
        f"--run-dir {tmp_path}/run".split()
    )
    dataset = Run(command).dataset
    assert dataset is not None
    before = dataset.state_dict()["generator"].clone()
    first, second = evenly_spaced(dataset), evenly_spaced(dataset)
    assert torch.equal(dataset.state_dict()["generator"], before)
    assert torch.equal(first.obs, second.obs) and first.obs.shape[:2] == (2, 11)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task reach --env-steps 0", r"holds episodes of toy:catch, and the task is toy:reach: --task toy:catch"),
        ("--task reach --env-steps 110", r"--data .* holds Spaces\(.*and toy:reach is Spaces\(.*: choose another task"),
        ("--task catch --env-steps 0 --training.offline-updates 0", "--data needs a number of updates to make on it"),
    ],
)
def test_data_that_do_not_fit_are_one_line(recorded: Path, tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(f"{BASE} --agent none --data {recorded} --training.offline-updates 5 --run-dir {tmp_path}/run {words}")
    assert not (tmp_path / "run" / "config.yaml").exists(), "the same folder can be used again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--env-steps 0", "nothing to learn from: give --env-steps more than 0, --data DIR, or a saved --world-model"),
        ("--training.offline-updates 5", "--training.offline-updates needs recorded data to make them on: --data DIR"),
    ],
)
def test_nothing_to_learn_from_is_one_line(tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(f"{REACH} --run-dir {tmp_path}/run {words}")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_checkpoint_that_does_not_fit_its_config_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(f"{REACH} --env-steps 20 --run-dir {folder}")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"deter: 32", "deter: 64", config))
    with pytest.raises(ValueError, match=r"^the checkpoint's model does not fit this run's config.yaml: .* should be"):
        run(f"--resume {folder} --env-steps 40")
