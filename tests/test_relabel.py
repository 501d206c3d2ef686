"""The rewards of another task for recorded episodes: those that it would have given itself, or none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodels.envs import EnvConfig, EnvPool, make_env
from worldmodels.replay import read_episode, scan, write_episode
from worldmodels.replay.relabel import relabel
from worldmodels.replay.store import EpisodeStore

CONFIG = EnvConfig(size=16, action_repeat=2, quality="lean", camera=None, time_limit=9, floor="classic")
SEEDS = [3, 4]


@pytest.fixture(scope="module")
def actions() -> np.ndarray:
    """Chosen after each of 15 rows in two streams: an episode has 6 rows, so that the third one is cut."""
    return np.random.default_rng(0).uniform(-1, 1, (15, 2, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, actions: np.ndarray) -> Path:
    """Episodes of walker-walk."""
    folder = tmp_path_factory.mktemp("walked")
    with EnvPool("dmc:walker-walk", CONFIG, SEEDS, "serial", 60.0) as pool:
        facts = {"task": "dmc:walker-walk", "fingerprint": pool.fingerprint, "seed": 0}
        store = EpisodeStore(folder, pool.spaces, 2, background=False, **facts)
        step = pool.reset()
        for action in actions:
            store.add(step, action)
            step = pool.step(action)
        store.close()
    return folder


@pytest.fixture
def copy(walked: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in walked.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_rewards_are_those_of_the_other_task(walked: Path, tmp_path: Path, actions: np.ndarray) -> None:
    done = relabel(walked, tmp_path / "stand", "dmc:walker-stand", CONFIG, SEEDS)
    assert len(done.episodes) == 6 and not done.problems
    infos, problems = scan(tmp_path / "stand")
    assert (
        not problems and {info.task for info in infos} == {"dmc:walker-stand"} and sum(info.cut for info in infos) == 2
    )
    for stream, seed in enumerate(SEEDS):
        world = make_env("dmc:walker-stand", CONFIG, seed)  # walker's tasks begin alike
        world.reset()
        expected = [0.0]
        for row, action in enumerate(actions[:-1, stream], 1):
            step = world.reset() if row % 6 == 0 else world.step(action)
            expected.append(float(step.reward))
        world.close()
        episodes = [read_episode(info.path) for info in infos if info.stream == stream]
        np.testing.assert_allclose(np.concatenate([episode.reward for episode in episodes]), expected, rtol=1e-5)
        assert [episode.info.episode_return for episode in episodes] == pytest.approx(
            [float(episode.reward.sum()) for episode in episodes]
        )
    for info in infos:
        before, after = read_episode(walked / info.name), read_episode(info.path)
        assert (before.obs == after.obs).all() and (before.action == after.action).all()
        assert not np.allclose(before.reward, after.reward)


def test_a_tasks_own_rewards_come_back(walked: Path, tmp_path: Path) -> None:
    for info in relabel(walked, tmp_path / "walk", "dmc:walker-walk", CONFIG, SEEDS).episodes:
        np.testing.assert_allclose(read_episode(info.path).reward, read_episode(walked / info.name).reward, rtol=1e-5)


def test_what_the_simulator_does_not_repeat_is_left_out_with_all_that_follow(copy: Path, tmp_path: Path) -> None:
    second = next(info for info in scan(copy)[0] if info.stream == 0 and info.position > 0)
    episode = read_episode(second.path)
    second.path.unlink()
    said: list[str] = []
    done = relabel(copy, tmp_path / "gap", "dmc:walker-stand", CONFIG, SEEDS, said.append)
    assert [(info.stream, info.position) for info in done.episodes] == [(0, 0), (1, 0), (1, 6), (1, 12)]
    assert len(done.problems) == 1 and "rows 6 to 11 of its stream are not there (with the 0 after it)" in said[0]

    reward = episode.reward.copy()
    reward[3] += 0.01
    write_episode(copy, episode._replace(reward=reward))
    said.clear()
    done = relabel(copy, tmp_path / "false", "dmc:walker-stand", CONFIG, SEEDS, said.append)
    assert len(done.episodes) == 4 and len(said) == 1
    assert f"{second.name}: row 3: the simulator's reward is" in said[0] and "(with the 1 after it)" in said[0]


def test_other_seeds_and_too_few_of_them_are_refused(walked: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could repeat: .*does not begin as the simulator does"):
        relabel(walked, tmp_path / "a", "dmc:walker-stand", CONFIG, [5, 6])
    with pytest.raises(ValueError, match="episodes of stream 1, and the run had 1 environments"):
        relabel(walked, tmp_path / "b", "dmc:walker-stand", CONFIG, SEEDS[:1])
    with pytest.raises(ValueError, match="something already"):
        relabel(walked, walked, "dmc:walker-stand", CONFIG, SEEDS)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("task", "other", "why"),
    [
        ("dmc:walker-walk", "dmc:hopper-hop", "no task of the same domain"),
        ("dmc:walker-walk", "toy:reach", "no task of the same domain"),
        ("dmc:reacher-easy", "dmc:reacher-hard", "not the same world as reacher-easy: geom_"),
        ("dmc:finger-spin", "dmc:finger-turn_easy", "not the same world"),
        ("dmc:cartpole-swingup", "dmc:cartpole-two_poles", "not the same world"),
    ],
)
def test_tasks_of_other_worlds_are_refused(task: str, other: str, why: str) -> None:
    world = make_env(task, CONFIG, 0)
    with pytest.raises(ValueError, match=why):
        world.judge(other)
    world.close()


def test_built_in_tasks_share_no_world() -> None:
    with pytest.raises(ValueError, match="only DM Control's domains"):
        make_env("toy:reach", replace(CONFIG, quality="auto"), 0).judge("toy:reach-slow")
