"""What is installed and shipped: pinned versions, the package's contents, CI, and nothing of anybody's machine."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("test", "dev")  # wandb brings many packages, and nothing of ours depends on their versions
BY_TORCH = ("nvidia-", "cuda-", "triton")  # of its CUDA builds, which pin them
FOLDERS = ("agents", "configs", "docs", "results", "scripts", "tests", "worldmodels", ".ci")


def pins() -> dict[str, str]:
    rows = [row for row in (ROOT / "constraints.txt").read_text().splitlines() if row and not row.startswith("#")]
    found = dict(row.split("==") for row in rows)
    assert len(found) == len(rows), "one of them is there twice"
    return found


def asked_for() -> list[Requirement]:
    extras = [row for extra in EXTRAS for row in PROJECT["optional-dependencies"][extra]]
    return [Requirement(row) for row in [*PROJECT["dependencies"], *extras]]


def tracked() -> list[Path]:
    """Files of the project; no runs, caches or environments of whoever runs this."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt", ".yaml")]
    return [path for path in files if "__pycache__" not in path.parts]


def test_constraints_pin_what_the_project_asks_for_and_within_its_bounds() -> None:
    versions = pins()
    for requirement in asked_for():
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not pinned"
        assert requirement.specifier.contains(versions[name]), f"{name} {versions[name]} is outside {requirement}"


def test_constraints_pin_whatever_those_packages_need() -> None:
    versions, seen, queue = pins(), set(), asked_for()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, *sorted(requirement.extras))
        if key in seen or name.startswith(BY_TORCH):
            continue
        seen.add(key)
        assert name in versions, f"{name} is needed and not pinned"
        try:
            needs = [Requirement(row) for row in requires(requirement.name) or []]
        except PackageNotFoundError:  # of the dev extra, which the tests do without
            continue
        extras = [*requirement.extras, ""]
        queue += [need for need in needs if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)]
    assert len(seen) > len(asked_for())


def test_constraints_fit_every_build_and_platform() -> None:
    versions = pins()
    assert not [name for name, version in versions.items() if not re.fullmatch(r"[\w.]+", version)], "+cpu, or a marker"
    assert {name: versions[name] for name in ("torch", "torchvision", "mujoco", "dm-control")} == {
        "torch": "2.13.0", "torchvision": "0.28.0", "mujoco": "3.17.0", "dm-control": "1.0.50"
    }, "these work together; change them together, and say so in doctor.py"  # fmt: skip


def setup_lines() -> list[str]:
    """The README's lines that do all the set-up."""
    return re.findall(r"^```bash setup\n(.*)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_sets_up_with_two_lines_that_take_the_constraints() -> None:
    run, test = setup_lines()
    assert run == ("pip install -c constraints.txt -e . && python scripts/train.py --agent dreamer --task walker-walk")
    assert test.startswith("pip install -c constraints.txt -e '.[test]' && pytest")


def test_ci_runs_the_readmes_test_line_and_lint_and_types_in_a_fresh_environment() -> None:
    script = (ROOT / ".ci/run").read_text()
    lines = script.splitlines()
    assert lines[-1] == setup_lines()[1]
    assert "set -euo pipefail" in lines and any("-m venv" in line for line in lines)
    assert {"ruff check .", "ruff format --check .", "basedpyright"} <= set(lines)
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


def test_a_wheel_has_all_modules_and_all_configs(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: a build folder left in the checkout would go into the next wheel
    for folder in ("agents", "configs", "worldmodels"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.suffix in (".py", ".yaml") and path.relative_to(source).parts[0] in ("agents", "configs", "worldmodels")
    }
    assert wanted and wanted <= shipped, f"not in the wheel: {sorted(wanted - shipped)}"


PRIVATE = [r"(?<![\w.-])/(?:root|home|Users|tmp)/", r"--(?:extra-)?index-url", r"--find-links", r"/simple/"]


def test_no_file_names_a_machine_or_an_index() -> None:
    here = [re.escape(str(path)) for path in (ROOT, Path.home(), Path(sys.prefix)) if len(path.parts) > 2]
    pattern = re.compile("|".join([*PRIVATE, *here]))
    for path in tracked():
        if path != Path(__file__) and b"\0" not in (data := path.read_bytes()):
            for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
                assert not pattern.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()[:150]}"


def test_no_file_is_over_2_mb_but_the_widest_model_of_the_zoo() -> None:
    large = [path.relative_to(ROOT).as_posix() for path in tracked() if path.stat().st_size > 2_000_000]
    assert large == ["worldmodels/zoo/reacher/model.safetensors"]
