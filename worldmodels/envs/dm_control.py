"""The DeepMind Control suite (Tassa et al. 2018, arXiv:1801.00690) from pixels.

Published pixel work shows it as here: 64x64, action repeat 2, camera 2 for quadruped, 3 for fish, else 0. What is
different from ``suite.load``: the LQR tasks have one system, the same for every seed; a simulation that diverges ends
its episode as a time limit would.
"""

# pyright: reportAttributeAccessIssue=false
# because MuJoCo's compiled modules come without type stubs

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from worldmodels.base import Spaces
from worldmodels.envs import gl
from worldmodels.envs.base import Env, EnvConfig, Step, arrived, check_state, checked_action

CAMERAS = {"quadruped": 2, "fish": 3}
FAST_SHADOW_SIZE = 512  # texels; MuJoCo's default is 4096, most of what a 64x64 image costs in software
UNLIMITED = 1e9  # dm_control gives +-1e10 for a control without limits


class DMControl(Env):
    """One task of the suite. ``ValueError`` for a camera that is not there and where nothing can render."""

    def __init__(self, domain: str, task: str, config: EnvConfig, seed: int) -> None:
        gl.choose_backend()
        with gl.explained():
            from dm_control import mujoco, suite

            # The seed reaches the tasks' own generator below; at loading it only draws the LQR tasks' system.
            self._env = suite.load(domain, task, task_kwargs={"random": 0})
            renderer = gl.renderer_of(mujoco.Physics.from_xml_string("<mujoco/>"))
        self._task = f"{domain}-{task}"
        self._random: np.random.RandomState = self._env.task.random
        self._random.seed(seed)
        self._limit = config.time_limit
        self._size = config.size
        self._floor = config.floor
        self._quality = _resolved_quality(config.quality, renderer)
        self._camera = CAMERAS.get(domain, 0) if config.camera is None else config.camera
        physics = self._env.physics
        if not -1 <= self._camera < physics.model.ncam:
            raise ValueError(f"env.camera of {self._task} must be from -1 to {physics.model.ncam - 1}")
        self.action_repeat = config.action_repeat
        bounds = self._env.action_spec()
        limited = np.abs(bounds.minimum) < UNLIMITED
        self._low = np.where(limited, bounds.minimum, -1.0)
        self._high = np.where(limited, bounds.maximum, 1.0)
        self.spaces = Spaces(image=(self._size, self._size, 3), action_dim=len(self._low), discrete=False)
        self.fingerprint = {
            "mujoco": version("mujoco"),
            "dm_control": version("dm-control"),
            "gl": f"{gl.choose_backend()}: {renderer}",
            "quality": self._quality,
            "floor": self._floor,
            "size": str(self._size),
            "camera": str(self._camera),
        }
        self._view: Any = None  # a dm_control Camera; made at the first image
        self._loaded = self._prepare_model()
        self._episode_steps = 0
        self._arrived: Step | None = None

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self._random.seed(seed)
        self._env.reset()
        self._episode_steps = 0
        return self._arrive(0.0, is_first=True, is_last=False, is_terminal=False, env_steps=0)

    def step(self, action: np.ndarray) -> Step:
        from dm_control.rl.control import PhysicsError

        if self._arrived is None or self._arrived.is_last:
            raise ValueError("no episode is open: reset first")
        control = self._low + (checked_action(action, self.spaces) + 1) / 2 * (self._high - self._low)
        reward, taken, is_last, is_terminal = 0.0, 0, False, False
        while taken < self.action_repeat and not is_last:
            try:
                timestep = self._env.step(control)
            except PhysicsError as error:
                warnings.warn(f"{self._task}: the simulation diverged, the episode is cut ({error})", stacklevel=2)
                return self._arrive(reward, False, True, False, taken)
            taken += 1
            self._episode_steps += 1
            reward += timestep.reward
            is_terminal = timestep.last() and timestep.discount == 0
            is_last = timestep.last() or self._episode_steps == self._limit
        return self._arrive(reward, False, is_last, is_terminal, taken)

    def get_state(self) -> dict[str, Any]:
        import mujoco

        if self._arrived is None:
            raise ValueError("no episode was begun: reset first")
        state: Any = self._random.get_state(legacy=True)
        model = self._env.physics.model.ptr
        return {
            "task": self._task,
            "physics": self._env.physics.get_state(mujoco.mjtState.mjSTATE_INTEGRATION.value).tolist(),
            # targets, terrain: what the task drew into the model at the episode's beginning
            "model": {name: getattr(model, name).tolist() for name in self._drawn_into(model)},
            "random": [state[1].tolist(), *state[2:]],
            "step_count": self._env._step_count,
            "episode_steps": self._episode_steps,
            "arrived": arrived(self._arrived),
        }

    def set_state(self, state: dict[str, Any]) -> Step:
        import mujoco

        check_state(state, self._task)
        physics = self._env.physics
        model = physics.model.ptr
        if len(state["physics"]) != mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION.value):
            raise ValueError(f"this state of {self._task} is of another MuJoCo version; here is {mujoco.__version__}")
        for name, value in self._loaded.items():
            getattr(model, name)[...] = np.asarray(state["model"].get(name, value))
        self._upload_terrain()
        keys, position, has_gauss, gauss = state["random"]
        self._random.set_state(("MT19937", np.asarray(keys, np.uint32), position, has_gauss, gauss))
        physics.set_state(np.asarray(state["physics"]), mujoco.mjtState.mjSTATE_INTEGRATION.value)
        # As at the end of a control step: not mj_forward, which would move the solver's warm start.
        mujoco.mj_step1(model, physics.data.ptr)
        self._env._step_count = state["step_count"]
        self._env._reset_next_step = False
        self._episode_steps = state["episode_steps"]
        return self._arrive(**state["arrived"])

    def judge(self, task: str) -> Callable[[], float]:
        from dm_control import suite

        domain, _, name = task.removeprefix("dmc:").partition("-")
        if domain != self._task.partition("-")[0]:
            raise ValueError(f"{task} is no task of the same domain as {self._task}")
        other = suite.load(domain, name, task_kwargs={"random": 0})
        mine = suite.load(*self._task.split("-", 1), task_kwargs={"random": 0})
        for env in (other, mine):
            env.reset()
        drawn = [field for env in (other, mine) for field in self._drawn_into(env.physics.model.ptr)]
        if drawn:  # a target, a terrain: what an episode of the one task draws is not what one of the other would
            raise ValueError(f"{task} is not the same world as {self._task}: {drawn[0]} differs")
        return lambda: float(other.task.get_reward(self._env.physics))

    def close(self) -> None:
        if self._view is not None:
            self._view.scene.free()
            self._view = None
        self._env.close()

    def _prepare_model(self) -> dict[str, np.ndarray]:
        """Set quality and floor, before a GL context copies them; returns the arrays that a task may draw into."""
        physics = self._env.physics
        if physics._contexts:  # quadruped-escape renders when it is loaded
            physics._free_rendering_contexts()
        model = physics.model
        # The framebuffer need not be larger than the image: the same pixels 10 % sooner, and sizes above 480.
        model.vis.global_.offwidth = model.vis.global_.offheight = self._size
        if self._quality != "full":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = FAST_SHADOW_SIZE
        if self._floor == "classic":
            make_floors_classic(model.ptr)
        names = [name for name in dir(model.ptr) if name.startswith(DRAWN_INTO)]
        return {name: getattr(model.ptr, name).copy() for name in names}

    def _drawn_into(self, model: Any) -> list[str]:
        """The arrays of a model, an ``mujoco.MjModel``, that are not as they were loaded here."""
        return [name for name, value in self._loaded.items() if not np.array_equal(getattr(model, name), value)]

    def _arrive(self, reward: float, is_first: bool, is_last: bool, is_terminal: bool, env_steps: int) -> Step:
        step = Step(self._render(), np.float32(reward), is_first, is_last, is_terminal, env_steps)
        self._arrived = step
        return step

    def _render(self) -> np.ndarray:
        if self._view is None:
            from dm_control.mujoco import Camera

            with gl.explained():
                self._view = Camera(self._env.physics, self._size, self._size, self._camera)
            if self._quality == "lean":
                from mujoco import mjtRndFlag

                for flag in (mjtRndFlag.mjRND_SHADOW, mjtRndFlag.mjRND_REFLECTION):
                    self._view.scene.flags[int(flag)] = 0
        return self._view.render().copy()

    def _upload_terrain(self) -> None:
        if self._view is None:
            return  # the context is still to be made, and will copy it
        import mujoco

        physics = self._env.physics
        with physics.contexts.gl.make_current() as context:
            for index in range(physics.model.nhfield):
                context.call(mujoco.mjr_uploadHField, physics.model.ptr, physics.contexts.mujoco.ptr, index)


# Everything of a model that a task could change between episodes; textures, meshes and names are large and constant.
DRAWN_INTO = (
    "body_", "cam_", "dof_", "eq_", "geom_", "hfield_data", "jnt_", "light_", "mat_", "qpos", "site_", "tendon_",
    "wrap_",
)  # fmt: skip


def make_floors_classic(model: Any) -> None:
    """Draw chequered planes as MuJoCo did before 3.12, in an ``mujoco.MjModel`` that was not rendered yet.

    MuJoCo 3.12 began to lay a plane's texture from a corner instead of the centre (changelog 3.12, item 15). Rolling
    the texture by ``(size / 2 * repeat + 1/2) mod 1`` of its width and height undoes that, up to rounding.
    """
    import mujoco

    if tuple(int(part) for part in version("mujoco").split(".")[:2]) < (3, 12):
        return
    for plane in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE):
        material = model.geom_matid[plane]
        texture = -1 if material < 0 else model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]
        if texture < 0 or not model.mat_texuniform[material]:
            continue
        if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
            continue
        shift = (0.5 * model.geom_size[plane, :2] * model.mat_texrepeat[material] + 0.5) % 1
        if not shift.any() or (shift == 0.5).all():  # a chequer rolled by half both ways is itself
            continue
        height, width, channels = (field[texture] for field in (model.tex_height, model.tex_width, model.tex_nchannel))
        start = model.tex_adr[texture]
        pixels = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
        across, down = np.round(shift * (width, height)).astype(int)
        pixels[...] = np.roll(pixels, (down, across), axis=(0, 1))


def _resolved_quality(quality: str, renderer: str) -> str:
    if quality != "auto":
        return quality
    if not gl.is_software(renderer):
        return "full"
    warnings.warn(f"software GL ({renderer}): env.quality is fast; say full for numbers to publish", stacklevel=3)
    return "fast"
