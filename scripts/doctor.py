"""Say what works on this machine, and how to cure what does not: python scripts/doctor.py [--json]

Each line is ok, warn or FAIL; the exit code is 1 when something that training needs fails.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

OK, WARN, FAIL = "ok", "warn", "FAIL"
MALICIOUS_LIGHTNING = ("2.6.2", "2.6.3")  # GHSA-w37p-236h-pfx3, April 2026
LOW_DISK_GB = 10


@dataclass(frozen=True)
class Check:
    """One line of the report; ``fix`` says what to do where the status is not ok."""

    name: str
    status: str
    found: str
    fix: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Run every check and print it; returns the exit code."""
    parser = argparse.ArgumentParser(description="Say what works on this machine, and how to cure what does not.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    as_json = parser.parse_args(arguments).json
    checks: list[Check] = []
    for examine in EXAMINATIONS:
        found = examine_safely(examine)
        checks += found
        if not as_json:
            print(*map(line, found), sep="\n", flush=True)
    failed = any(check.status == FAIL for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=1))
    return int(failed)


def line(check: Check) -> str:
    """A check as text."""
    fix = f"\n{'':22}-> {check.fix}" if check.fix else ""
    return f"{check.status:5} {check.name:15} {check.found}{fix}"


def examine_safely(examine: Callable[[], list[Check]]) -> list[Check]:
    """A check that breaks is a finding, not the end of the report."""
    try:
        return examine()
    except Exception as error:
        fix = "this check itself failed: see the message"
        return [Check(examine.__name__, FAIL, f"{type(error).__name__}: {error}", fix)]


def installed(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def interpreter() -> list[Check]:
    """Python itself."""
    found = f"{platform.python_version()} on {platform.platform(terse=True)}"
    recent = sys.version_info >= (3, 11)
    return [Check("python", OK if recent else FAIL, found, "" if recent else "use Python 3.11 or newer")]


def torch_pair() -> list[Check]:
    """torch and torchvision, which are built in pairs."""
    if not installed("torch"):
        return [Check("torch", FAIL, "not installed", "pip install torch torchvision, from the same index")]
    from agents.training import torchvision_guard

    found = f"torch {version('torch')}, torchvision {installed('torchvision') or 'missing'}"
    if not installed("torchvision"):
        return [Check("torch pair", FAIL, found, "pip install torchvision: Lightning's metrics import it")]
    torchvision_guard.ensure_torchvision()
    if torchvision_guard._library is None:
        return [Check("torch pair", OK, f"{found}, a pair")]
    fix = "works, but not torchvision's own operators: install both from the same index (CPU builds from PyTorch's)"
    return [Check("torch pair", WARN, f"{found} do not pair; the guard is applied", fix)]


def lightning() -> list[Check]:
    """Lightning, and that it is no version that was malware."""
    found = installed("lightning")
    cure = "pip install 'lightning>=2.6.4,<3'"
    if found is None:
        return [Check("lightning", FAIL, "not installed", cure)]
    if found in MALICIOUS_LIGHTNING:
        fix = f"this release was malware (GHSA-w37p-236h-pfx3): change every credential that it could read, then {cure}"
        return [Check("lightning", FAIL, found, fix)]
    return [Check("lightning", OK, found)]


def mujoco_pair() -> list[Check]:
    """dm_control asks for a recent MuJoCo, and does not work with 4."""
    dm_control, mujoco = installed("dm-control"), installed("mujoco")
    found = f"dm_control {dm_control or 'missing'}, mujoco {mujoco or 'missing'}"
    cure = "pip install 'dm-control>=1.0.28' 'mujoco>=3.3,<4'"
    if not dm_control or not mujoco:
        return [Check("mujoco pair", FAIL, found, cure)]
    if int(mujoco.partition(".")[0]) >= 4:
        return [Check("mujoco pair", FAIL, found, f"pip uninstall mujoco mujoco-core mujoco-studio, then {cure}")]
    return [Check("mujoco pair", OK, found)]


def rendering() -> list[Check]:
    """Every GL library by rendering with it in a child process, then the speed of the chosen one."""
    from worldmodels.envs import gl

    probes = [gl.probe(backend) for backend in gl.candidates()]
    checks = []
    for backend, renderer, problem in probes:
        if renderer is None and any(probe.renderer for probe in probes):
            checks.append(Check(f"gl {backend}", OK, "does not render, and need not"))
        else:
            checks.append(
                Check(f"gl {backend}", OK if renderer else WARN, renderer or "does not render", problem or "")
            )
    chosen_by = "by MUJOCO_GL" if os.environ.get("MUJOCO_GL") else "automatically"
    try:
        backend = gl.choose_backend()
        speeds, software = render_speeds()
    except gl.RenderingError as error:
        return [*checks, Check("rendering", FAIL, str(error), gl.APT_LINE)]
    found = f"{backend}, chosen {chosen_by}: {speeds} per 64x64 image of walker-walk"
    fix = "software GL: env.quality=auto means fast, and lean is there; full for numbers to publish" if software else ""
    return [*checks, Check("rendering", WARN if software else OK, found, fix)]


def render_speeds() -> tuple[str, bool]:
    """Milliseconds an image takes at each quality, and whether software draws it."""
    import yaml

    from worldmodels.envs import EnvConfig, gl, make_env

    values = yaml.safe_load((ROOT / "configs/tasks/dmc.yaml").read_text())["env"]
    speeds, software = [], False
    for quality in ("full", "fast", "lean"):
        env = make_env("walker-walk", replace(EnvConfig(**values), quality=quality, size=64, action_repeat=1), 0)
        software = gl.is_software(env.fingerprint["gl"])
        env.reset()
        state = env.get_state()
        env.set_state(state)
        began = time.perf_counter()
        for _ in range(10):
            env.set_state(state)  # an image with next to no physics
        speeds.append(f"{quality} {(time.perf_counter() - began) * 100:.1f} ms")
        env.close()
    return ", ".join(speeds), software


def accelerators() -> list[Check]:
    """What torch can compute on, cores and threads."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    fix = f"more threads than cores: export OMP_NUM_THREADS={cores}" if threads > cores else ""
    checks = [Check("cpu", WARN if fix else OK, f"{cores} cores, {threads} torch threads", fix)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            checks.append(Check(f"cuda:{index}", OK, f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {bf16}"))
    elif torch.backends.mps.is_available():
        checks.append(Check("mps", OK, "Apple GPU"))
    else:
        checks.append(
            Check("accelerator", WARN, "none", "the small presets learn on a CPU; the paper's sizes want a GPU")
        )
    fast = cpu_bf16()
    return [*checks, Check("bf16 on cpu", OK, "in hardware" if fast else "emulated, slower than float32: leave it off")]


def cpu_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    information = Path("/proc/cpuinfo")
    flags = information.read_text() if information.exists() else ""
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def disk() -> list[Check]:
    """Room for runs: a million 64x64 images are 2 to 3.5 GB compressed."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fix = "" if free > LOW_DISK_GB else "a run of a million steps keeps 2 to 3.5 GB of images: make room"
    return [Check("disk", OK if free > LOW_DISK_GB else WARN, f"{free:.0f} GB free here", fix)]


def video() -> list[Check]:
    """Write a short mp4 and look whether it is there."""
    import imageio.v3 as iio
    import numpy as np

    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.mp4"
        try:
            iio.imwrite(file, frames, fps=8, codec="libx264", macro_block_size=2)
            read = len(iio.imread(file))
        except (ImportError, OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
            fix = "pip install imageio-ffmpeg; until then videos are written as GIF"
            return [Check("video", WARN, f"no mp4: {error}".splitlines()[0], fix)]
    found = f"mp4 by imageio-ffmpeg {installed('imageio-ffmpeg')}"
    return [
        Check("video", OK if read == len(frames) else WARN, found, "" if read == len(frames) else "frames were lost")
    ]


EXAMINATIONS = (interpreter, torch_pair, lightning, mujoco_pair, rendering, accelerators, disk, video)

if __name__ == "__main__":
    sys.exit(main())
