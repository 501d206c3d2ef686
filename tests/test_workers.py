"""Pools of environments: the same in one process and in many, and whole after a crash."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import worldmodels.envs.workers
from worldmodels.envs import EnvConfig, EnvPool
from worldmodels.envs.toy import Reach

ROOT = Path(__file__).parents[1]
CONFIG = EnvConfig(**yaml.safe_load((ROOT / "configs/tasks/toy.yaml").read_text())["env"])
TIMEOUT_S = 5.0


class Fragile(Reach):
    """Reach, in which a first action of -1 kills the process, one of 1 hangs it, a second of 1 is an error."""

    def advance(self, state, action):
        if action[0] == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        if action[0] == 1:
            time.sleep(1000)
        if action[1] == 1:
            raise KeyError("an environment's own mistake")
        return super().advance(state, action)


def fragile(config, seed):
    return Fragile(config, seed)


def deadly(config, seed):
    env = Fragile(config, seed)
    env.begin = lambda rng: os.kill(os.getpid(), signal.SIGKILL)
    return env


def refused(config, seed):
    raise ValueError("no such world")


def pool(workers, task="reach", seeds=(1, 2), config=CONFIG):
    return EnvPool(task, config, seeds, workers, TIMEOUT_S)


def actions(count, batch=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (count, batch, 2)).astype(np.float32)


def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def broken():
    """A pool of two processes for the tests that break one of them; each leaves it as it found it."""
    with pool("process", fragile) as made:
        yield made


@pytest.mark.parametrize("task", ["reach", "catch"])
def test_a_serial_pool_is_its_environments_side_by_side(task):
    both, second = pool("serial", task), pool("serial", task, seeds=(2,))
    both.reset(), second.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        acts = np.eye(both.spaces.action_dim)[rng.integers(both.spaces.action_dim, size=2)]
        together, alone = both.step(acts), second.step(acts[1:])
        assert all(np.array_equal(one[1], other[0]) for one, other in zip(together, alone, strict=True))


def test_a_step_is_batched_arrays():
    made = pool("serial")
    for step in (made.reset(), made.step(actions(1)[0])):
        assert step.obs.shape == (2, 64, 64, 3) and step.obs.dtype == np.uint8
        assert [part.dtype for part in step[1:]] == [np.float32, bool, bool, bool, np.int64]
        assert all(part.shape == (2,) for part in step[1:])


def test_after_the_last_step_comes_a_first_one_whatever_the_action():
    made = pool("serial")
    made.reset()
    steps = [made.step(action) for action in actions(52)]
    assert steps[49].is_last.all() and not steps[49].is_terminal.any()
    assert steps[50].is_first.all() and not steps[50].reward.any() and not steps[50].env_steps.any()
    assert (steps[51].env_steps == 1).all() and not steps[51].is_first.any()


def test_earlier_steps_are_not_overwritten_by_later_ones(broken):
    step = broken.reset()
    kept = step.obs.copy()
    broken.step(actions(1)[0])
    assert np.array_equal(step.obs, kept)


def test_processes_play_exactly_what_one_process_plays_and_continue_from_its_state():
    serial = pool("serial")
    with pool("process") as process:
        assert process.spaces == serial.spaces and process.fingerprint == serial.fingerprint
        assert same(serial.reset(), process.reset())
        for action in actions(60):
            assert same(serial.step(action), process.step(action))
        other = pool("serial", seeds=(8, 9))
        states = process.get_state()
        assert same(other.set_state(states), process.set_state(serial.get_state()))
        for action in actions(60, seed=1):
            expected = serial.step(action)
            assert same(expected, process.step(action)) and same(expected, other.step(action))


def test_a_missing_state_begins_an_episode():
    made = pool("serial")
    made.reset()
    for action in actions(3):
        made.step(action)
    states = made.get_state()
    step = made.set_state([states[0], None])
    assert step.is_first.tolist() == [False, True]
    with pytest.raises(ValueError, match="1 states for a pool of 2"):
        made.set_state(states[:1])


def test_a_killed_worker_ends_its_episode_and_is_replaced(broken):
    before, restarts = broken.reset(), broken.restarts
    with pytest.warns(UserWarning, match="environment 1 is started again: its worker died with exit code -9"):
        step = broken.step(np.array([[0.5, 0], [-1, 0]], np.float32))
    assert broken.restarts == restarts + 1
    assert step.is_last.tolist() == [False, True]
    assert not step.is_terminal.any() and step.reward[1] == 0 and step.env_steps.tolist() == [1, 0]
    assert np.array_equal(step.obs[1], before.obs[1]) and not np.array_equal(step.obs[0], before.obs[0])
    states = broken.get_state()
    assert states[0] is not None and states[1] is None  # between the lost episode and the next
    after = broken.step(actions(1)[0])
    assert after.is_first.tolist() == [False, True]
    assert not np.array_equal(after.obs[1], before.obs[1])  # not the same episodes again
    assert broken.step(actions(1)[0]).env_steps.tolist() == [1, 1]


def test_a_hung_worker_ends_its_episode_and_is_replaced(broken):
    before, restarts = broken.reset(), broken.restarts
    began = time.monotonic()
    with pytest.warns(UserWarning, match="environment 0 is started again: its worker did not answer in time"):
        step = broken.step(np.array([[1, 0], [0.5, 0]], np.float32))
    assert TIMEOUT_S <= time.monotonic() - began < 3 * TIMEOUT_S
    assert broken.restarts == restarts + 1
    assert step.is_last.tolist() == [True, False] and not step.is_terminal.any()
    assert np.array_equal(step.obs[0], before.obs[0])
    assert broken.step(actions(1)[0]).is_first.tolist() == [True, False]


def test_a_worker_lost_between_steps_is_found_at_the_next(broken):
    broken.reset()
    os.kill(broken._seats[0]._process.pid, signal.SIGKILL)
    assert [state is None for state in broken.get_state()] == [True, False]
    with pytest.warns(UserWarning, match="environment 0 is started again"):
        assert broken.step(actions(1)[0]).is_last.tolist() == [True, False]
    assert broken.step(actions(1)[0]).is_first.tolist() == [True, False]


def test_an_environments_own_error_comes_with_its_traceback_and_leaves_no_stale_answers(broken):
    broken.reset()
    with pytest.raises(RuntimeError, match="an environment's own mistake"):
        broken.step(np.array([[0.0, 1.0], [0.5, 0.5]], np.float32))
    assert all("random" in state for state in broken.get_state())
    with pytest.raises(ValueError, match="not finite"):
        broken.step(np.array([[0.0, np.nan], [0.5, 0.5]], np.float32))
    assert broken.reset().is_first.all()


def test_an_environment_that_always_dies_ends_the_run(monkeypatch):
    monkeypatch.setattr(worldmodels.envs.workers, "MAX_FAILURES", 1)
    with pool("process", deadly, seeds=(1,)) as made, pytest.warns(UserWarning, match="started again"):
        with pytest.raises(RuntimeError, match="failed 2 times in a row"):
            made.reset()


def test_what_cannot_be_built_is_refused_at_once():
    with pytest.raises(ValueError, match="no such world"):
        pool("process", refused, seeds=(1,))
    with pytest.raises(ValueError, match="Did you mean 'toy:reach'"):
        pool("serial", "raech")
    with pytest.raises(ValueError, match="'serial' or 'process'"):
        pool("threads")
    with pytest.raises(ValueError, match="seed"):
        pool("serial", seeds=())


def test_actions_of_another_shape_and_steps_before_a_reset_are_refused():
    made = pool("serial")
    with pytest.raises(ValueError, match="reset first"):
        made.step(actions(1)[0])
    made.reset()
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        made.step(actions(1, batch=3)[0])


ORPHANS = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_workers import actions, fragile, pool
if __name__ == "__main__":
    made = pool("process", fragile, seeds=(1, 2))
    made.reset()
    print(*(seat._process.pid for seat in made._seats), flush=True)
    {how}
"""
KILLED = "made._seats[0].ask('step', [1.0, 0.0]); os.kill(os.getpid(), signal.SIGKILL)"  # while one worker hangs


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [KILLED, "sys.exit()"], ids=["killed", "left"])
def test_no_worker_and_no_shared_memory_outlive_the_parent(how, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS.format(tests=str(ROOT / "tests"), how=how))
    shared = set(os.listdir("/dev/shm"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    workers = [int(pid) for pid in parent.stdout.split()]
    assert len(workers) == 2, parent.stderr
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
    assert "Traceback" not in parent.stderr and "leaked" not in parent.stderr
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if name.startswith(("psm_", "pym-"))}
