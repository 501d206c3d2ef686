"""Which GL library draws MuJoCo's pixels: found by really rendering, in a short child process.

dm_control reads ``MUJOCO_GL`` when it is imported, and a process that tried one library cannot try another; some
failures are crashes. So each candidate is tried in a child, and the first that renders is set in the environment
before dm_control is imported. The choice is remembered per machine and forgotten when it fails. A ``MUJOCO_GL`` that
the user has set is never changed.

Nothing of this project is imported here: the child runs this file alone.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

APT_LINE = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software rasterizer", "swiftshader")

# (part of the message, what it means and what to do): all were seen, dm_control 1.0 with MuJoCo 3
MESSAGES = (
    ("no attribute 'eglQueryString'", f"libEGL is missing: {APT_LINE}"),
    (
        "Cannot initialize a headless EGL display",
        f"libEGL has no driver here (no Mesa, no NVIDIA ICD, or no access to the GPU's device): {APT_LINE}",
    ),
    ("Cannot initialize a EGL device display", f"libEGL has no driver with device displays here: {APT_LINE}"),
    ("no attribute 'glGetError'", "libOSMesa is missing: apt-get install -y libosmesa6, or use MUJOCO_GL=egl"),
    ("DISPLAY environment variable is missing", "GLFW needs an X display: unset MUJOCO_GL, or use MUJOCO_GL=egl"),
    (
        "OpenGL platform library has not been loaded",
        "GLFW was chosen where there is no display: unset MUJOCO_GL, or use MUJOCO_GL=egl",
    ),
    ("No OpenGL rendering backend is available", "rendering is disabled: unset MUJOCO_GL, or use MUJOCO_GL=egl"),
    ("MUJOCO_EGL_DEVICE_ID must be", "MUJOCO_EGL_DEVICE_ID counts EGL devices, not CUDA ones: unset it or lower it"),
    ("PYOPENGL_PLATFORM environment variable", "PYOPENGL_PLATFORM contradicts MUJOCO_GL: unset it"),
    ("Environment variable MUJOCO_GL must be", "MUJOCO_GL names no GL library: unset it, or use MUJOCO_GL=egl"),
    ("Offscreen framebuffer is not complete", "the driver lost its framebuffer (long NVIDIA runs): start again"),
    (
        "has no attribute 'flex_vertedge'",
        "this dm_control does not go with MuJoCo 4: pip uninstall mujoco mujoco-core mujoco-studio, "
        "then pip install 'mujoco>=3.3,<4'",
    ),
)


class RenderingError(ValueError):
    """Nothing can render here, or what was chosen cannot."""


class Probe(NamedTuple):
    """What came of rendering with one library in a child process."""

    backend: str
    renderer: str | None  # GL_RENDERER, None where it failed
    problem: str | None


def choose_backend() -> str:
    """Set ``MUJOCO_GL`` to a library that renders here, unless the user has; returns it.

    Raises ``RenderingError`` with what was tried. Call it before dm_control is imported.
    """
    if chosen := os.environ.get("MUJOCO_GL"):
        return chosen
    if loaded := getattr(sys.modules.get("dm_control._render"), "BACKEND", None):
        return str(loaded)
    backend = _remembered().get(_machine())
    if backend not in ("egl", "osmesa", "glfw"):
        backend = _first_that_renders()
        _remember(backend)
    os.environ["MUJOCO_GL"] = backend
    if backend != os.environ.get("PYOPENGL_PLATFORM", backend):
        del os.environ["PYOPENGL_PLATFORM"]  # it would forbid the import of any other library
    return backend


def candidates() -> tuple[str, ...]:
    """The libraries worth trying on this machine, best first."""
    if sys.platform != "linux":
        return ("glfw",)
    return ("egl", "osmesa", "glfw") if os.environ.get("DISPLAY") else ("egl", "osmesa")


def probe(backend: str, timeout_s: float = 60) -> Probe:
    """Render with ``backend`` in a child process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    environment["MUJOCO_GL"] = backend
    # -P: else this folder comes first on the child's path, and its dm_control.py hides the package of that name
    command = [sys.executable, "-P", __file__]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Probe(backend, None, f"did not answer within {timeout_s:g} s")
    if child.returncode == 0:
        return Probe(backend, child.stdout.strip().splitlines()[-1], None)
    return Probe(backend, None, explain(child.stderr) or f"exit code {child.returncode}")


def explain(text: str) -> str:
    """What a failure's output means and what to do; its own last line where it is not a known one."""
    for part, meaning in MESSAGES:
        if part in text:
            return meaning
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around the making of a GL context: turn its failures into ``RenderingError``, and forget the choice made."""
    try:
        yield
    except Exception as error:  # mujoco.FatalError is a plain Exception
        backend = os.environ.get("MUJOCO_GL")
        again = ""
        if backend and _remembered().get(_machine()) == backend:
            _remember(None)
            again = " (a remembered choice, now forgotten: start again to choose anew)"
        text = f"{type(error).__name__}: {error}"
        if not again and not any(part in text for part, _ in MESSAGES):
            raise
        raise RenderingError(f"cannot render with MUJOCO_GL={backend}{again}: {explain(text)}") from error


def renderer_of(physics: Any) -> str:
    """GL_RENDERER of the context of a ``dm_control.mujoco.Physics``; makes the context where there is none."""
    from OpenGL import GL

    with physics.contexts.gl.make_current() as context:
        name = context.call(GL.glGetString, GL.GL_RENDERER)
    return name.decode() if name else "unknown"


def is_software(renderer: str) -> bool:
    """Whether a GL_RENDERER string is of one that draws on the CPU."""
    return any(name in renderer.lower() for name in SOFTWARE)


def _first_that_renders() -> str:
    problems = []
    for backend in candidates():
        found = probe(backend)
        if found.problem is None:
            return backend
        problems.append(f"{backend}: {found.problem}")
    raise RenderingError(f"no GL library renders here. {'; '.join(problems)}. On Debian and Ubuntu: {APT_LINE}")


def _machine() -> str:
    """What a choice depends on; homes are shared between machines, and virtual environments within one."""
    parts = [platform.node(), sys.prefix]
    for package in ("mujoco", "dm-control"):
        try:
            parts.append(f"{package}={version(package)}")
        except PackageNotFoundError as error:
            raise RenderingError(f"{package} is not installed: pip install 'dm-control>=1.0.28' 'mujoco<4'") from error
    names = ("DISPLAY", "MUJOCO_EGL_DEVICE_ID", "__EGL_VENDOR_LIBRARY_FILENAMES")
    return " ".join(parts + [f"{name}={os.environ[name]}" for name in names if name in os.environ])


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldmodels" / "gl.json"


def _remembered() -> dict[str, str]:
    try:
        content = json.loads(_cache_file().read_text())
    except (OSError, ValueError):  # no file yet, or a damaged one: choose anew
        return {}
    return content if isinstance(content, dict) else {}


def _remember(backend: str | None) -> None:
    """Write the choice down, or strike it out with None."""
    content = {**_remembered(), _machine(): backend}
    content = {machine: name for machine, name in content.items() if name}
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            json.dump(content, temporary, indent=1)
        os.replace(temporary.name, file)
    except OSError as error:
        warnings.warn(f"cannot remember the GL library in {file} ({error}); each start tries again", stacklevel=2)


def _render_once() -> None:
    from dm_control import mujoco

    scene = "<mujoco><worldbody><light pos='0 0 2'/><geom size='.2' rgba='1 0 0 1'/></worldbody></mujoco>"
    physics = mujoco.Physics.from_xml_string(scene)
    image = physics.render(16, 16)
    assert image.max() > image.min(), "an empty picture"
    print(renderer_of(physics))
    physics.free()


if __name__ == "__main__":
    _render_once()
