"""Take cover: dodging can be learned from what is seen, standing still is death, and states are exact."""

import json

import numpy as np
import pytest

from worldmodels.envs.base import EnvConfig
from worldmodels.envs.cover import Cover
from worldmodels.envs.tasks import make_env, resolve_task

LEFT, STAY, RIGHT = np.eye(3, dtype=np.float32)


def made(seed: int = 0, **changes: object) -> Cover:
    values = {"size": 32, "action_repeat": 1, "quality": "auto", "camera": None, "time_limit": None, "floor": "native"}
    env = make_env("toy:cover", EnvConfig(**(values | changes)), seed)  # type: ignore[arg-type]
    assert isinstance(env, Cover)
    return env


def survived(env: Cover, act: object, episodes: int) -> list[float]:
    returns = []
    for episode in range(episodes):
        step, total = env.reset(episode), 0.0
        while not step.is_last:
            step = env.step(act())  # type: ignore[operator]
            total += float(step.reward)
        returns.append(total)
    return returns


def test_dodging_lives_to_the_limit_and_nothing_simple_does() -> None:
    assert resolve_task("cover") == "toy:cover"
    env, rng = made(), np.random.default_rng(0)
    assert survived(env, env.optimal_action, 5) == [200.0] * 5
    for act in (lambda: STAY, lambda: LEFT, lambda: RIGHT, lambda: np.eye(3, dtype=np.float32)[rng.integers(3)]):
        assert np.mean(survived(env, act, 10)) < 40


def test_the_end_by_a_ball_is_terminal_and_earns_nothing_and_the_limit_is_not() -> None:
    env = made()
    step, rewards = env.reset(1), []
    while not step.is_last:
        step = env.step(STAY)
        rewards.append(float(step.reward))
    assert step.is_terminal and rewards == [1.0] * (len(rewards) - 1) + [0.0]
    env = made(time_limit=4)
    env.reset(1)
    last = [env.step(STAY) for _ in range(4)][-1]
    assert last.is_last and not last.is_terminal


@pytest.mark.parametrize("size", [32, 64])
def test_player_and_ball_are_large_and_one_image_hides_the_speed(size: int) -> None:
    env = made(size=size)
    env.reset(2)
    env.step(STAY)
    state = env.get_state()
    images = []
    for speed in (env.slowest, env.fastest):
        state["state"]["speed"] = speed
        images.append((env.set_state(state).obs, env.step(STAY).obs))
    assert np.array_equal(images[0][0], images[1][0]) and not np.array_equal(images[0][1], images[1][1])
    blue = (images[0][0][..., 2] > 200).mean()
    assert blue > 0.05, "small shapes are not learned"


def test_a_state_is_exact_in_the_middle_of_an_episode() -> None:
    env, other = made(3), made(4)
    env.reset()
    for _ in range(30):
        env.step(env.optimal_action())
    there = other.set_state(json.loads(json.dumps(env.get_state())))
    assert np.array_equal(there.obs, env.set_state(env.get_state()).obs)
    for _ in range(60):
        action = env.optimal_action()
        one, two = env.step(action), other.step(action)
        assert np.array_equal(one.obs, two.obs) and one.reward == two.reward and one.is_last == two.is_last
