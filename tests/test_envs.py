"""Environments: what they show, when they end, and that their state is exact."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from playing import play, same

from worldmodels.envs import EnvConfig, gl, list_tasks, make_env, resolve_task, suite_of, tasks
from worldmodels.envs.gymnasium_env import resized
from worldmodels.envs.toy import TOYS

ROOT = Path(__file__).parents[1]


def config(suite, **changes):
    values = yaml.safe_load((ROOT / f"configs/tasks/{suite}.yaml").read_text())["env"]
    return EnvConfig(**{**values, **changes})


def random_actions(env, count, seed=0):
    rng = np.random.default_rng(seed)
    if env.spaces.discrete:
        return np.eye(env.spaces.action_dim, dtype=np.float32)[rng.integers(env.spaces.action_dim, size=count)]
    return rng.uniform(-1, 1, (count, env.spaces.action_dim)).astype(np.float32)


def python(code, **environment):
    """Run code in a fresh interpreter."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    variables = {name: value for name, value in variables.items() if value}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)


# ---- names and settings


def test_the_table_of_suite_tasks_is_that_of_dm_control():
    gl.choose_backend()
    from dm_control import suite

    assert {f"dmc:{domain}-{task}" for domain, task in suite.ALL_TASKS} == {
        task for task in list_tasks() if task.startswith("dmc:")
    }


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("walker-walk", "dmc:walker-walk"),
        ("dmc:walker-walk", "dmc:walker-walk"),
        ("dmc_walker_walk", "dmc:walker-walk"),
        ("dmc_ball_in_cup_catch", "dmc:ball_in_cup-catch"),
        ("cartpole-swingup-sparse", "dmc:cartpole-swingup_sparse"),
        ("humanoid_CMU-run", "dmc:humanoid_CMU-run"),
        ("pendulum-swingup", "dmc:pendulum-swingup"),
        ("pendulum", "toy:pendulum"),
        ("reach", "toy:reach"),
        ("toy:catch", "toy:catch"),
        ("gym:CarRacing-v3", "gym:CarRacing-v3"),
    ],
)
def test_a_task_is_known_by_its_usual_names(name, canonical):
    assert resolve_task(name) == canonical
    assert suite_of(name) == canonical.partition(":")[0]


def test_every_listed_task_resolves_to_itself():
    assert [resolve_task(task) for task in list_tasks()] == list_tasks()


@pytest.mark.parametrize(
    ("name", "nearest"), [("walker-wlak", "walker-walk"), ("dmc:cheeta-run", "cheetah-run"), ("raech", "toy:reach")]
)
def test_an_unknown_task_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
        resolve_task(name)


def test_a_task_name_cannot_choose_a_module_to_import():
    with pytest.raises(ValueError, match="registered Gymnasium id"):
        make_env("gym:antigravity:CarRacing-v3", config("gym"), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "env.size"),
        ({"action_repeat": 0}, "env.action_repeat"),
        ({"time_limit": 0}, "env.time_limit"),
        ({"quality": "best"}, "env.quality"),
        ({"floor": "wooden"}, "env.floor"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        config("dmc", **changes)


def test_a_camera_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="env.camera"):
        make_env("reach", config("toy", camera=0), 0)
    with pytest.raises(ValueError, match="env.camera"):
        make_env("walker-walk", config("dmc", camera=77), 0)


def test_importing_the_room_loads_no_simulator_and_chooses_no_gl():
    code = (
        "import os, sys, worldmodels.envs as room; room.list_tasks(); "
        "print([m for m in ('dm_control', 'mujoco', 'gymnasium') if m in sys.modules], os.environ.get('MUJOCO_GL'))"
    )
    assert python(code, MUJOCO_GL="").stdout.split() == ["[]", "None"]


# ---- built-in tasks


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("size", [32, 64])
def test_a_toy_keeps_the_timeline(name, size):
    env = make_env(name, config("toy", size=size), 0)
    step = env.reset()
    assert step.is_first and not step.is_last and step.reward == 0 and step.env_steps == 0
    lengths = 0
    while not step.is_last:
        assert step.obs.shape == env.spaces.image == (size, size, 3) and step.obs.dtype == np.uint8
        step = env.step(random_actions(env, 1, lengths)[0])
        lengths += step.env_steps
        assert not step.is_first and step.reward.dtype == np.float32
    assert lengths == TOYS[name].limit
    assert step.is_terminal == (name == "catch")
    with pytest.raises(ValueError, match="reset first"):
        env.step(random_actions(env, 1)[0])


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_determined_by_its_seed(name):
    runs = [make_env(name, config("toy"), seed) for seed in (3, 3, 4)]
    actions = random_actions(runs[0], 120)
    first, again, other = (play(env, actions) for env in runs)
    assert all(map(same, first, again))
    assert not all(map(same, first, other))
    assert same(runs[0].reset(seed=3), runs[2].reset(seed=3))


@pytest.mark.parametrize("name", TOYS)
def test_a_toys_state_is_exact_and_survives_json(name):
    env, other = make_env(name, config("toy"), 1), make_env(name, config("toy"), 2)
    actions = random_actions(env, 130)
    here = play(env, actions[:5])[-1]
    there = other.set_state(json.loads(json.dumps(env.get_state())))
    assert same(here, there)
    for action in actions:  # beyond the episode's end: the generator's state counts
        here, there = (one.reset() if here.is_last else one.step(action) for one in (env, other))
        assert same(here, there)


def test_a_state_of_another_task_is_refused():
    reach, catch = make_env("reach", config("toy"), 0), make_env("catch", config("toy"), 0)
    reach.reset()
    with pytest.raises(ValueError, match="state of 'reach'"):
        catch.set_state(reach.get_state())


def test_an_action_repeat_sums_rewards_and_stops_at_the_end():
    once, thrice = make_env("reach", config("toy"), 5), make_env("reach", config("toy", action_repeat=3), 5)
    actions = random_actions(once, 17)
    once.reset(), thrice.reset()
    for index, action in enumerate(actions):
        singles = [once.step(action) for _ in range(3 if index < 16 else 2)]
        together = thrice.step(action)
        assert together.reward == pytest.approx(sum(step.reward for step in singles), abs=1e-5)
        assert np.array_equal(together.obs, singles[-1].obs)
        assert together.env_steps == len(singles)
    assert together.is_last and not together.is_terminal


def test_a_time_limit_shortens_an_episode_and_is_not_terminal():
    env = make_env("catch", config("toy", time_limit=3), 0)
    steps = play(env, random_actions(env, 3))
    assert [step.is_last for step in steps] == [False, False, True]
    assert not steps[-1].is_terminal


@pytest.mark.parametrize("name", TOYS)
def test_optimal_play_is_far_above_random_play(name):
    env = make_env(name, config("toy"), 0)

    def mean_return(act):
        total = 0.0
        for episode in range(20):
            step = env.reset(seed=episode)
            while not step.is_last:
                step = env.step(act())
                total += step.reward
        return total / 20

    rng = np.random.default_rng(0)
    random = mean_return(lambda: random_actions(env, 1, rng.integers(1 << 30))[0])
    optimal = mean_return(env.optimal_action)
    kind = name.partition("-")[0]
    assert random < {"reach": 14, "pendulum": 30, "catch": -0.2}[kind]
    assert optimal > {"reach": 46 if name != "reach-slow" else 43, "pendulum": 150, "catch": 0.99}[kind]


@pytest.mark.parametrize("name", ["reach-slow", "reach-turned"])
def test_other_physics_look_as_before_and_move_otherwise(name):
    """Full speed to the right and down: half as far, or a quarter turn to the left of that, to the right and up."""
    one, other = make_env("reach", config("toy"), 4), make_env(name, config("toy"), 4)
    assert np.array_equal(one.reset().obs, other.reset().obs)
    one.state = other.state = {"x": 0.0, "y": 0.0, "target_x": 0.5, "target_y": 0.5}
    steps = [env.step(np.array([0.5, 1.0])) for env in (one, other)]
    assert (one.state["x"], one.state["y"]) == pytest.approx((0.1, 0.2))
    expected = {"reach-slow": (0.05, 0.1), "reach-turned": (0.2, -0.1)}[name]
    assert (other.state["x"], other.state["y"]) == pytest.approx(expected)
    assert steps[1].reward == pytest.approx(np.exp(-2 * np.hypot(0.5 - expected[0], 0.5 - expected[1])))


@pytest.mark.parametrize("name", ["reach-swapped", "reach-light"])
def test_other_looks_move_as_before_and_no_disc_has_its_old_color(name):
    one, other = make_env("reach", config("toy"), 4), make_env(name, config("toy"), 4)
    actions = random_actions(one, 60)
    for before, now in zip(play(one, actions), play(other, actions), strict=True):
        assert before.reward == now.reward
        seen = [{tuple(color) for color in step.obs.reshape(-1, 3)} for step in (before, now)]
        palettes = [(env.background, env.hand, env.target) for env in (one, other)]
        assert all(seen[i] >= set(palettes[i][:2]) for i in range(2)), "the hand is never covered"
        changed = before.obs[(before.obs == palettes[0][1]).all(-1)], now.obs[(before.obs == palettes[0][1]).all(-1)]
        assert (changed[1] == palettes[1][1]).all() and len(changed[0]) > 20
    assert set(palettes[0][1:]).isdisjoint(palettes[1][1:]) == (name == "reach-light")


def test_one_image_of_the_pendulum_hides_its_velocity_and_two_show_it():
    env = make_env("pendulum", config("toy"), 0)
    env.reset()
    state = env.get_state()
    images = []
    for speed in (-4.0, 4.0):
        state["state"]["speed"] = speed
        images.append((env.set_state(state).obs, env.step(np.zeros(1)).obs))
    assert np.array_equal(images[0][0], images[1][0])
    assert not np.array_equal(images[0][1], images[1][1])


@pytest.mark.parametrize("name", ["reach", "catch"])
def test_every_object_covers_at_least_five_pixels_each_way(name):
    env = make_env(name, config("toy"), 0)
    for seed in range(10):
        image = env.reset(seed=seed).obs.astype(int)
        for color in ((255, 160, 40), (74, 144, 255)):
            rows, columns = np.nonzero(np.abs(image - color).sum(-1) < 30)
            assert np.ptp(rows) + 1 >= 3 and np.ptp(columns) + 1 >= 5, (seed, color)  # full colour; edges are blended


@pytest.mark.parametrize(
    ("name", "action", "message"),
    [
        ("reach", [0.0], "shape"),
        ("reach", [np.nan, 0.0], "not finite"),
        ("catch", [0.5, 0.5, 0.0], "one-hot"),
        ("catch", [1.0, 1.0, 0.0], "one-hot"),
    ],
)
def test_what_is_no_action_is_refused(name, action, message):
    env = make_env(name, config("toy"), 0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(np.array(action))


def test_continuous_actions_are_clipped():
    one, other = make_env("reach", config("toy"), 0), make_env("reach", config("toy"), 0)
    one.reset(), other.reset()
    assert same(one.step(np.array([5.0, -9.0])), other.step(np.array([1.0, -1.0])))


# ---- DM Control


@pytest.fixture(scope="module")
def walker():
    env = make_env("walker-walk", config("dmc", quality="lean"), 0)
    yield env
    env.close()


def test_full_quality_on_the_native_floor_is_what_dm_control_draws():
    env = make_env("walker-walk", config("dmc", quality="full", floor="native"), 7)
    from dm_control import suite

    reference = suite.load("walker", "walk", task_kwargs={"random": 7})
    reference.reset()
    assert np.array_equal(env.reset().obs, reference.physics.render(64, 64, camera_id=0))


@pytest.mark.parametrize("name", sorted(np.load(ROOT / "tests/data/classic_floor.npz").files))
def test_classic_floors_look_as_before_mujoco_3_12(name):
    """The references were drawn by MuJoCo 3.11 after six control steps; grey levels, over all pixels."""
    reference = np.load(ROOT / "tests/data/classic_floor.npz")[name].astype(int)
    env = make_env(name, config("dmc", quality="full", action_repeat=1), 3)
    step = play(env, np.random.default_rng(0).uniform(-1, 1, (6, env.spaces.action_dim)))[-1]
    env.close()
    assert np.abs(step.obs - reference).mean() < 0.6


def test_the_native_floor_differs_from_the_classic_one():
    images = [make_env("reacher-easy", config("dmc", floor=floor), 3).reset().obs for floor in ("classic", "native")]
    assert np.abs(images[0].astype(int) - images[1]).mean() > 5


def test_qualities_differ_a_little_and_auto_names_its_choice():
    images = {}
    for quality in ("full", "fast", "lean"):
        images[quality] = make_env("walker-walk", config("dmc", quality=quality), 0).reset().obs.astype(int)
    assert 0 < np.abs(images["full"] - images["fast"]).mean() < 4
    assert 1 < np.abs(images["full"] - images["lean"]).mean() < 15
    renderer = make_env("walker-walk", config("dmc", quality="full"), 0).fingerprint["gl"]
    if gl.is_software(renderer):
        with pytest.warns(UserWarning, match="env.quality is fast"):
            env = make_env("walker-walk", config("dmc"), 0)
        assert env.fingerprint["quality"] == "fast"
    else:
        assert make_env("walker-walk", config("dmc"), 0).fingerprint["quality"] == "full"


def test_in_software_the_lower_qualities_are_several_times_faster():
    """Ratios of interleaved medians; the figures in docs/environments.md are 4 and 18, a busy machine is noisy."""
    envs = {quality: make_env("walker-walk", config("dmc", quality=quality), 0) for quality in ("full", "fast", "lean")}
    if not gl.is_software(envs["full"].fingerprint["gl"]):
        pytest.skip("a GPU draws here")
    times = {quality: [] for quality in envs}
    for env in envs.values():
        env.reset()
    for _ in range(15):
        for quality, env in envs.items():
            began = time.perf_counter()
            env._render()
            times[quality].append(time.perf_counter() - began)
    full, fast, lean = (float(np.median(one)) for one in times.values())
    assert full / fast > 2 and full / lean > 6


def test_the_fingerprint_says_what_decides_the_pixels(walker):
    assert set(walker.fingerprint) == {"mujoco", "dm_control", "gl", "quality", "floor", "size", "camera"}
    assert all(isinstance(value, str) and value for value in walker.fingerprint.values())


def test_cameras_are_the_usual_ones():
    for name, camera in (("quadruped-walk", "2"), ("fish-swim", "3"), ("hopper-hop", "0")):
        assert make_env(name, config("dmc", quality="lean"), 0).fingerprint["camera"] == camera


def test_a_time_limit_of_the_suite_is_not_terminal():
    env = make_env("pendulum-swingup", config("dmc", quality="lean", action_repeat=8, size=8), 0)
    step, env_steps = env.reset(), 0
    while not step.is_last:
        step = env.step(np.zeros(1))
        env_steps += step.env_steps
    assert env_steps == 1000
    assert not step.is_terminal


def test_a_discount_of_zero_is_terminal():
    env = make_env("lqr-lqr_2_1", config("dmc", quality="lean", size=8), 0)
    env.reset()
    state = env.get_state()
    state["physics"] = [0.0] * len(state["physics"])  # the LQR tasks end when nothing moves any more
    env.set_state(state)
    step = env.step(np.zeros(1))
    assert step.is_last and step.is_terminal
    assert step.env_steps == 1  # of an action repeat of 2


def test_actions_reach_the_tasks_own_bounds():
    env = make_env("quadruped-walk", config("dmc", quality="lean", size=8), 0)
    env.reset()
    bounds = env._env.action_spec()
    for action, expected in ((-1, bounds.minimum), (1, bounds.maximum)):
        env.step(np.full(env.spaces.action_dim, float(action)))
        assert np.allclose(env._env.physics.data.ctrl, expected)
    assert bounds.maximum.max() > 1


def test_a_repeated_action_is_the_sum_of_single_steps():
    once, twice = (make_env("walker-walk", config("dmc", quality="lean", action_repeat=n), 5) for n in (1, 2))
    once.reset(), twice.reset()
    for action in random_actions(once, 10):
        singles = [once.step(action), once.step(action)]
        together = twice.step(action)
        assert together.reward == pytest.approx(singles[0].reward + singles[1].reward, abs=1e-6)
        assert np.array_equal(together.obs, singles[1].obs)


@pytest.mark.parametrize("name", ["walker-walk", "reacher-hard", "quadruped-escape"])
def test_a_mid_episode_state_is_exact_in_another_environment(name):
    """reacher draws its target, and escape its terrain, into the model: those are state too."""
    env, other = (make_env(name, config("dmc", quality="lean"), seed) for seed in (1, 2))
    actions = random_actions(env, 60)
    here = play(env, actions[:8])[-1]
    play(other, actions[:3])
    there = other.set_state(json.loads(json.dumps(env.get_state())))
    assert same(here, there)
    for action in actions[:50]:
        here, there = env.step(action), other.step(action)
        assert same(here, there)
    assert same(env.reset(), other.reset())


def test_a_state_is_exact_in_a_fresh_process(walker, tmp_path):
    actions = random_actions(walker, 60)
    play(walker, actions[:10])
    (tmp_path / "state.json").write_text(json.dumps(walker.get_state()))
    np.save(tmp_path / "actions.npy", actions[10:])
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config("dmc", quality="lean"))))
    code = f"""
import json, numpy as np
from pathlib import Path
from worldmodels.envs import EnvConfig, make_env
folder = Path({str(tmp_path)!r})
env = make_env("walker-walk", EnvConfig(**json.loads((folder / "config.json").read_text())), 99)
first = env.set_state(json.loads((folder / "state.json").read_text()))
steps = [first] + [env.step(action) for action in np.load(folder / "actions.npy")]
np.savez(folder / "steps.npz", obs=[s.obs for s in steps], reward=[s.reward for s in steps])
"""
    run = python(code)
    assert run.returncode == 0, run.stderr
    steps = np.load(tmp_path / "steps.npz")
    for index, action in enumerate(actions[10:], start=1):
        step = walker.step(action)
        assert step.reward == steps["reward"][index]
        assert np.array_equal(step.obs, steps["obs"][index])


def test_a_diverging_simulation_ends_the_episode_without_a_terminal(walker):
    walker.reset()
    walker._env.physics.data.qvel[0] = 1e12
    with pytest.warns(UserWarning, match="diverged"):
        step = walker.step(np.zeros(6))
    assert step.is_last and not step.is_terminal and np.isfinite(step.reward)
    assert walker.reset().is_first and np.isfinite(walker.step(np.zeros(6)).reward)


# ---- the choice of a GL library


def test_a_probe_names_the_renderer_or_the_problem():
    assert gl.probe(gl.choose_backend()).renderer
    assert "rendering is disabled" in str(gl.probe("disabled").problem)
    assert "names no GL library" in str(gl.probe("vulcan").problem)


@pytest.mark.parametrize(("message", "meaning"), gl.MESSAGES)
def test_a_known_message_is_explained(message, meaning):
    assert gl.explain(f"Traceback (most recent call last):\nAttributeError: 'x' {message}!\n") == meaning


def test_an_unknown_message_is_passed_on():
    assert gl.explain("Traceback\nRuntimeError: the sky fell\n\n") == "RuntimeError: the sky fell"


MAKE = f"""
from worldmodels.envs import EnvConfig, make_env
try:
    env = make_env("walker-walk", {config("dmc", quality="lean")!r}, 0)
    print(env.reset().obs.mean() > 0)
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_the_choice_of_the_user_is_never_changed(tmp_path):
    run = python(MAKE + "import os; print(os.environ['MUJOCO_GL'])", MUJOCO_GL="disabled", XDG_CACHE_HOME=str(tmp_path))
    assert run.stdout.startswith("RenderingError cannot render with MUJOCO_GL=disabled: rendering is disabled")
    assert run.stdout.split()[-1] == "disabled"
    assert not list(tmp_path.iterdir())


RENDER = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("gl", {gl.__file__!r})  # alone: without torch, in a tenth of the time
gl = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gl)
gl.choose_backend()
try:
    with gl.explained():
        from dm_control import mujoco
        print(bool(gl.renderer_of(mujoco.Physics.from_xml_string("<mujoco/>"))))
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_a_remembered_choice_that_fails_is_told_and_forgotten(tmp_path):
    file = tmp_path / "worldmodels/gl.json"
    environment = {"MUJOCO_GL": "", "DISPLAY": "", "XDG_CACHE_HOME": str(tmp_path)}
    assert python(RENDER, **environment).stdout.split() == ["True"]
    (machine,) = json.loads(file.read_text())
    file.write_text(json.dumps({machine: "glfw", "another machine": "egl"}))
    failed = python(RENDER, **environment).stdout
    assert failed.startswith("RenderingError") and "now forgotten" in failed, failed
    assert json.loads(file.read_text()) == {"another machine": "egl"}
    assert python(RENDER, **environment).stdout.split() == ["True"]


def test_a_damaged_memory_of_choices_is_no_obstacle(tmp_path):
    (tmp_path / "worldmodels").mkdir()
    (tmp_path / "worldmodels/gl.json").write_text("{")
    assert python(RENDER, MUJOCO_GL="", XDG_CACHE_HOME=str(tmp_path)).stdout.split() == ["True"]


def test_nothing_that_renders_is_one_error_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    monkeypatch.setattr(gl, "probe", lambda backend: gl.Probe(backend, None, f"no {backend} here"))
    with pytest.raises(gl.RenderingError, match=r"no egl here.*apt-get install"):
        gl.choose_backend()
    assert "MUJOCO_GL" not in os.environ
    assert not list(tmp_path.iterdir())


# ---- Gymnasium


class Clock(gymnasium.Env):
    """Counts steps; shows the count as brightness, 30 x 20, or renders it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None, shows=True, actions="discrete", end=4, channels=3):
        self.render_mode = render_mode
        self.end, self.shows, self.channels = end, shows, channels
        pixels = gymnasium.spaces.Box(0, 255, (30, 20, channels), np.uint8)
        self.observation_space = pixels if shows else gymnasium.spaces.Box(-1, 1, (2,))
        self.action_space = {
            "discrete": gymnasium.spaces.Discrete(3, start=5),
            "box": gymnasium.spaces.Box(np.array([[0.0], [-3.0]]), np.array([[10.0], [3.0]])),
            "multi": gymnasium.spaces.MultiDiscrete([2, 2]),
        }[actions]

    def _show(self):
        return np.full((30, 20, self.channels), self.count * 10, np.uint8)

    def render(self):
        return self._show()

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.count = int(self.np_random.integers(5))
        self.end_at = self.count + self.end
        return (self._show() if self.shows else np.zeros(2, np.float32)), {}

    def step(self, action):
        self.count += 1
        self.action = action
        obs = self._show() if self.shows else np.zeros(2, np.float32)
        return obs, 1.5, self.count == self.end_at, False, {}


class Screen(Clock):
    """Shows the image among other things, as VizDoom does."""

    def __init__(self, **options):
        super().__init__(**options)
        health = gymnasium.spaces.Box(0, 1, (1,))
        self.observation_space = gymnasium.spaces.Dict({"health": health, "screen": self.observation_space})

    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed, options)
        return {"health": np.ones(1, np.float32), "screen": obs}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"health": np.zeros(1, np.float32), "screen": obs}, *rest


def test_the_screen_of_a_gymnasium_observation_is_shown():
    gymnasium.register("Screen-v0", Screen, disable_env_checker=True)
    try:
        env = make_env("gym:Screen-v0", config("gym", size=10), 0)
        first = env.reset(seed=3)
        assert first.obs.shape == (10, 10, 3) and (env.step(np.eye(3)[1]).obs == first.obs + 10).all()
    finally:
        gymnasium.registry.pop("Screen-v0", None)


@pytest.fixture
def clock():
    def make(task_seed=0, limit=None, changes=None, **kwargs):
        gymnasium.register("Clock-v0", Clock, max_episode_steps=limit, kwargs=kwargs, disable_env_checker=True)
        return make_env("gym:Clock-v0", config("gym", size=10, **(changes or {})), task_seed)

    yield make
    gymnasium.registry.pop("Clock-v0", None)


@pytest.mark.parametrize("shows", [True, False])
def test_gymnasium_images_come_from_observations_or_from_rendering(clock, shows):
    env = clock(shows=shows)
    first = env.reset(seed=3)
    assert first.obs.shape == (10, 10, 3) and first.obs.dtype == np.uint8
    step = env.step(np.eye(3)[1])
    assert (step.obs == first.obs + 10).all() and step.reward == 1.5


def test_gymnasium_grey_images_keep_one_channel(clock):
    assert clock(channels=1).reset().obs.shape == (10, 10, 1)


def test_gymnasium_episodes_are_determined_by_the_seed(clock):
    starts = [[env.reset().obs[0, 0, 0] for _ in range(6)] for env in (clock(1), clock(1), clock(2))]
    assert starts[0] == starts[1] != starts[2]


def test_gymnasium_ends_are_told_apart(clock):
    terminated = play(clock(end=4), np.eye(3)[[0, 0, 0, 0]])[-1]
    assert terminated.is_last and terminated.is_terminal
    truncated = play(clock(end=9, limit=4), np.eye(3)[[0, 0, 0, 0]])[-1]
    assert truncated.is_last and not truncated.is_terminal
    limited = play(clock(end=9, changes={"time_limit": 4, "action_repeat": 3}), np.eye(3)[[0, 0]])[-1]
    assert limited.is_last and not limited.is_terminal and limited.env_steps == 1 and limited.reward == 1.5


def test_gymnasium_actions_are_the_spaces_own(clock):
    discrete = clock()
    discrete.reset()
    discrete.step(np.array([0, 0, 1.0]))
    assert discrete._env.unwrapped.action == 7
    box = clock(actions="box")
    box.reset()
    box.step(np.array([0.0, 1.0]))
    assert np.allclose(box._env.unwrapped.action, [[5.0], [3.0]])


def test_gymnasium_refusals_say_what_is_wrong(clock):
    with pytest.raises(ValueError, match="MultiDiscrete action space"):
        clock(actions="multi")
    with pytest.raises(ValueError, match="Did you mean 'gym:CartPole-v1'"):
        make_env("gym:CartPol-v1", config("gym"), 0)
    with pytest.raises(NotImplementedError, match="no way to read the state"):
        clock().get_state()


def test_resizing_is_the_mean_over_areas():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    expected = image.reshape(10, 3, 10, 4, 3).mean((1, 3))
    assert np.abs(resized(image, 10) - expected).max() <= 1
    with pytest.raises(ValueError, match="uint8"):
        resized(image.astype(np.float32), 10)


def test_all_suites_have_a_complete_configuration():
    for suite in tasks.SUITES:
        assert config(suite).size == 64
