"""The rooms: who may import whom, where each side effect lives, and what no file may contain."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.training.config import shipped

ROOT = Path(__file__).parents[1]
ROOMS = ("worldmodels", "agents", "scripts")
SIMULATORS = {"gymnasium", "dm_control", "dm_env", "mujoco"}
LIGHTNING = {"lightning", "pytorch_lightning"}
LONG_SCRIPTS = {"doctor.py"}  # stands alone: it has to run where an import of ours would not


def files(*rooms: str) -> list[Path]:
    found = [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]
    assert found
    return found


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


each_file = pytest.mark.parametrize("file", files(*ROOMS), ids=name_of)
each_package_file = pytest.mark.parametrize("file", files("worldmodels", "agents"), ids=name_of)


def imported(file: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}: relative import"
            names.add(node.module or "")
    return names


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def calls(file: Path) -> Iterator[str]:
    """The source of what is called, ``torch.load`` for one."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@each_file
def test_imports_go_one_way(file: Path):
    room = file.relative_to(ROOT).parts[0]
    assert not top(imported(file)) & set(ROOMS[ROOMS.index(room) + 1 :])


@each_package_file
def test_only_envs_know_simulators(file: Path):
    if "worldmodels/envs/" not in name_of(file):
        assert not top(imported(file)) & SIMULATORS


def test_simulators_are_imported_only_where_they_are_used():
    """At the top of no file: importing a package must not choose a GL."""
    for file in files(*ROOMS):
        heads = [node for node in tree(file).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for n in heads if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module or "" for n in heads if isinstance(n, ast.ImportFrom)}
        assert not top(names) & SIMULATORS, name_of(file)


@each_file
def test_lightning_has_one_door(file: Path):
    if name_of(file) != "agents/training/lightning.py":
        assert not top(imported(file)) & LIGHTNING
    if "agents/training/" not in name_of(file):
        assert "agents.training.lightning" not in imported(file)


@each_package_file
def test_behaviours_and_worlds_know_no_training(file: Path):
    """Agents say what to do and never when; only packaging them for use may look at a run's config."""
    if "agents/training/" not in name_of(file) and file.name not in ("pretrained.py", "__init__.py"):
        assert not [name for name in imported(file) if name.startswith("agents.training")]


@each_file
def test_only_the_learner_takes_optimizer_steps(file: Path):
    if name_of(file) != "agents/training/learner.py":
        assert not [c for c in calls(file) if re.search(r"optim\w*(\[.*\])?\.step$|(^|\.)(manual_)?backward$", c)]


@each_file
def test_only_checkpoints_are_torch_files(file: Path):
    if name_of(file) != "agents/training/checkpoint.py":
        assert not {"torch.save", "torch.load"} & set(calls(file))


@each_file
def test_nothing_is_unpickled(file: Path):
    source = [call for call in calls(file) if call.startswith("pickle.")]
    unpickling = source and name_of(file) != "worldmodels/envs/workers.py"  # between its own processes
    assert not unpickling and not top(imported(file)) & {"dill", "cloudpickle", "joblib", "shelve"}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            safe = keywords.get("weights_only") == "True" or keywords.get("allow_pickle", "False") == "False"
            assert safe and (ast.unparse(node.func) != "torch.load" or keywords.get("weights_only") == "True")
    assert not {"eval", "exec", "yaml.unsafe_load"} & set(calls(file))


@each_package_file
def test_pixels_become_floats_only_in_encoders(file: Path):
    if name_of(file) != "worldmodels/encoders.py":
        source = re.sub(r"\s", "", file.read_text(encoding="utf-8"))
        assert not re.search(r"def\w*to_float\(|\.float\(\)/255|/255(?!\d)|\*\(1/255", source)


@each_file
def test_no_bare_except_and_no_future_annotations(file: Path):
    for node in ast.walk(tree(file)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"bare except, line {node.lineno}"
        assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__")


@each_file
def test_files_have_a_purpose_and_a_readable_size(file: Path):
    assert file.stem not in ("utils", "util", "helpers", "misc", "common")
    length = len(file.read_text(encoding="utf-8").splitlines())
    script = file.relative_to(ROOT).parts[0] == "scripts"
    if file.name not in LONG_SCRIPTS:
        assert length <= (80 if script else 400)
    assert ast.get_docstring(tree(file)), "say at the top what the file is for"


def test_every_agent_begins_with_its_card():
    """The docstring names the paper with a number to look it up by, or says that there is none."""
    types = {shipped().entry("agents", name).type for name in shipped().names("agents")}
    assert types
    for module in types:
        card = ast.get_docstring(tree(ROOT / "agents" / f"{module}.py")) or ""
        assert re.search(r"arXiv|https?://|doi:|\bno paper\b", card), f"agents/{module}.py"
        assert "no paper" in card or re.search("(?m)^Deviations", card), f"agents/{module}.py: deviations"


def is_abstract(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
    decorators = [ast.unparse(d) for f in node.body if isinstance(f, ast.FunctionDef) for d in f.decorator_list]
    return bool(bases & {"ABC", "Protocol"}) or any(d.endswith("abstractmethod") for d in decorators)


def test_classes_are_abstract_or_final():
    """Nobody subclasses a concrete class of ours; errors may be told apart by kind."""
    classes = {}
    for file in files(*ROOMS):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append((file, node))
    assert is_abstract(classes["WorldModel"][0][1]) and not is_abstract(classes["RSSM"][0][1])
    for name, found in classes.items():
        for file, node in found:
            for base in (ast.unparse(b).split("[")[0].split(".")[-1] for b in node.bases):
                if base in classes and not base.endswith("Error"):
                    assert any(is_abstract(b) for _, b in classes[base]), f"{name_of(file)}: {name} is a {base}"


def test_configs_hold_values_and_no_code():
    suffixes = {file.suffix for file in (ROOT / "configs").rglob("*") if file.is_file()}
    assert suffixes <= {".yaml", ".py"}
    assert all(not tree(file).body[1:] for file in (ROOT / "configs").rglob("*.py")), "more than a docstring"
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert "!!" not in file.read_text(encoding="utf-8") and "_target_" not in file.read_text(encoding="utf-8")


def test_no_function_body_of_five_statements_exists_twice():
    seen: dict[str, str] = {}
    for file in files(*ROOMS):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if sum(isinstance(n, ast.stmt) for part in body for n in ast.walk(part)) >= 5:
                    key = ast.dump(ast.Module(body=body, type_ignores=[]))
                    here = f"{name_of(file)}:{node.name}"
                    assert key not in seen, f"{here} is {seen.get(key)} again"
                    seen[key] = here
