"""The command line: names, presets and settings become a run, and every mistake one line."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.training import cli
from agents.training.cli import parse
from agents.training.config import load_config, save_config
from worldmodels.strict import ConfigError, to_dict

BASE = ["--agent", "dreamer", "--task", "toy:reach", "--preset", "debug"]


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "accelerator", lambda: False)


@pytest.mark.parametrize(
    "line",
    [
        "--agent.imagination-horizon 7",
        "--agent.imagination_horizon 7",
        "--agent.imagination-horizon=7",
        "agent.imagination_horizon=7",
        "agent.imagination-horizon=7e0",
    ],
)
def test_a_setting_can_be_spelled_in_all_common_ways(line: str) -> None:
    assert parse([*BASE, *line.split()]).config.agent.imagination_horizon == 7


def test_flags_become_a_command(tmp_path: Path) -> None:
    line = (
        f"--seed 3 --env-steps 1e4 --run-dir {tmp_path}/x --data {tmp_path} --transfer finetune training.precision=bf16"
    )
    command = parse([*BASE, *line.split()])
    config = command.config
    assert (config.seed, config.training.env_steps, config.training.precision) == (3, 10_000, "bf16")
    assert (config.agent_name, config.agent_type, config.task, config.preset) == (
        "dreamer", "dreamer", "toy:reach", ("debug",)
    )  # fmt: skip
    assert (command.run_dir, command.data, command.transfer) == (tmp_path / "x", tmp_path, "finetune")
    assert command.resume is None and command.world_model is None


def test_the_last_of_two_settings_wins() -> None:
    assert parse([*BASE, "--seed", "1", "seed=2", "--env-steps", "5", "training.env_steps=6"]).config.seed == 2
    assert parse([*BASE, "training.env_steps=6", "--env-steps", "5"]).config.training.env_steps == 5


def test_a_run_is_kept_under_its_agent_task_and_seed() -> None:
    folder = parse(["--agent", "dreamer", "--task", "dmc_walker_walk", "--preset", "debug", "--seed", "4"]).run_dir
    assert folder.parts[:3] == ("runs", "dreamer", "walker-walk") and folder.name.endswith("-seed4")
    assert parse(BASE).run_dir.parts[2] == "toy-reach"


def test_without_a_preset_the_machine_decides_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = BASE[:4]
    assert parse(line).config.preset == ("cpu",)
    assert capsys.readouterr().err == "preset cpu: no accelerator; --preset paper for published sizes\n"
    monkeypatch.setattr(cli, "accelerator", lambda: True)
    assert parse(line).config.preset == ("paper",)
    assert capsys.readouterr().err == "preset paper: there is an accelerator\n"
    assert parse([*line, "--training.device", "cpu"]).config.preset == ("cpu",)
    assert parse([*line, "--preset", "25m"]).config.preset == ("paper", "25m"), (
        "a size alone says nothing of the machine"
    )


def test_presets_are_listed_with_commas_or_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    by_comma = parse([*BASE[:4], "--preset", "paper,25m"]).config
    one_by_one = parse([*BASE[:4], "--preset", "paper", "--preset", "25m"]).config
    small = parse([*BASE[:4], "--preset", "paper,1m"]).config
    assert by_comma == one_by_one and by_comma.preset == ("paper", "25m")
    assert by_comma.world_model.cell.deter > small.world_model.cell.deter
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--task toy:reach", "--agent is needed; --list-agents shows what there is"),
        ("--agent dreamer", "--task is needed; --list-tasks shows what there is"),
        ("--agent dreemer --task toy:reach", "unknown agent 'dreemer'. Did you mean 'dreamer'?"),
        ("--agent dreamer --task toy:reech", "unknown task 'toy:reech'. Did you mean 'toy:reach'?"),
        ("* --preset papper", "unknown preset 'papper' for dreamer on rssm-v3. Did you mean 'paper'?"),
        ("* --agnet dreamer", "unknown option --agnet. Did you mean 'agent'?"),
        ("* --seed", "--seed needs a value"),
        ("* --seed --print-config", "--seed needs a value"),
        ("* --seed x", "command line: seed: expected int, got 'x' (str)"),
        ("* --seed -1", "command line: seed: must be at least 0, got -1"),
        ("* --print-config=1", "--print-config takes no value, got '1'"),
        ("* stray", "unexpected argument 'stray'; settings are --name value"),
        ("* --replay.batch 4 5", "unexpected argument '5'"),
        ("* --agent.entrop 1e-3", "command line: agent.entrop: unknown key. Did you mean 'entropy'?"),
        ("* --trainig.wandb true", "command line: trainig: unknown key. Did you mean 'training'?"),
        (
            "* --training.precision fp23",
            "command line: training.precision: expected auto or fp32 or bf16, got 'fp23' (str).",
        ),
        ("* --training.wandb maybe", "command line: training.wandb: expected bool, got 'maybe' (str)"),
        ("* --training.env-steps 1.5", "command line: training.env_steps: expected int, got 1.5 (float)"),
        ("* --replay.capacity 3", "command line: replay.capacity: must be at least 8, got 3"),
        ("* --env.size 0", "command line: env.size: must be at least 1, not 0"),
        ("* --optimizers.al.lr 1", "command line: optimizers.al: dreamer has no such optimizer. Did you mean 'all'?"),
        ("* --world-model.encoder.type pool", "command line: world_model.encoder.depth: missing"),
        ("* --a..b 1", "--a..b: an empty name between dots"),
        ("* a.b=1 a.b.c=2", "--a.b.c: b was given a value already"),
        ("* replay.batch=[1", "--replay.batch:1:3: expected ',' or ']'"),
        (
            "* --world-model rsm-v3",
            "unknown world model 'rsm-v3': neither a config nor a folder. Did you mean",
        ),
        ("* --world-model .", "--world-model .: no config.yaml there; a run is the folder that training wrote"),
        ("* --data nowhere", "--data nowhere: no such folder"),
        ("* --config nowhere.yaml", "nowhere.yaml: cannot be read (No such file or directory)"),
        ("--resume nowhere", "--resume nowhere: no config.yaml there; a run is the folder that training wrote"),
        ("--resume nowhere --seed 3", "--seed cannot go with --resume: of a run only --env-steps and --training.*"),
        ("--resume nowhere --agent.lam 1", "--agent.* cannot go with --resume: of a run only"),
    ],
)
def test_every_mistake_is_one_line_that_says_what_to_do(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        parse([*BASE, *line[2:].split()] if line.startswith("* ") else line.split())
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_print_config_is_yaml_that_makes_the_same_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*BASE, "--agent.lam", "0.5", "--seed", "9"]
    with pytest.raises(SystemExit, match="^0$"):
        parse([*line, "--print-config"])
    text, config = capsys.readouterr().out, parse(line).config
    assert yaml.safe_load(text) == to_dict(config)
    file = tmp_path / "again.yaml"
    file.write_text(text)
    assert load_config(file) == config
    assert parse(["--config", str(file)]).config == config
    assert parse(["--config", str(file), "--seed", "10"]).config.seed == 10
    with pytest.raises(ConfigError, match="--agent none: the --config has the values of 'dreamer', which cannot fit"):
        parse(["--config", str(file), "--agent", "none"])


def test_a_config_file_lies_between_presets_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("agent: {lam: 0.5, discount: 0.9}\nreplay: {length: 9}\n")
    config = parse([*BASE, "--config", str(file), "--agent.lam", "0.6"]).config
    assert (config.agent.lam, config.agent.discount, config.replay.length) == (0.6, 0.9, 9)
    file.write_text("agent: {lamb: 0.5}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: agent.lamb: unknown key. Did you mean 'lam'?"):
        parse([*BASE, "--config", str(file)])


def made_run(folder: Path, *line: str) -> Path:
    folder.mkdir()
    save_config(parse([*BASE, *line]).config, folder / "config.yaml")
    return folder


def test_a_run_goes_on_with_its_own_config_and_only_training_may_change(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", "--agent.lam", "0.5", "--seed", "7")
    command = parse(["--resume", str(run), "--env-steps", "999", "--training.precision", "bf16"])
    assert (command.run_dir, command.resume) == (run, run)
    before = load_config(run / "config.yaml")
    assert command.config.agent == before.agent and command.config.seed == 7
    assert (command.config.training.env_steps, command.config.training.precision) == (999, "bf16")
    for line, flag in (("--task toy:catch", "--task"), ("--preset cpu", "--preset"), ("replay.batch=3", "--replay")):
        with pytest.raises(ConfigError, match=f"^{flag}.* cannot go with --resume"):
            parse(["--resume", str(run), *line.split()])


def test_the_world_model_of_a_run_brings_its_config_along(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", "--world-model.free-nats", "2.5")
    command = parse(["--agent", "none", "--task", "toy:catch", "--preset", "debug", "--world-model", str(run)])
    assert command.world_model == run and command.config.agent_name == "none"
    assert command.config.world_model == load_config(run / "config.yaml").world_model
    named = parse([*BASE, "--world-model", "rssm-v2"])
    assert named.world_model is None and named.config.world_model_name == "rssm-v2"


def test_a_run_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="there is a run already; --resume"):
        parse([*BASE, "--run-dir", str(run)])


def test_help_lists_every_setting_with_its_value_and_comment(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (BASE, []):
        with pytest.raises(SystemExit, match="^0$"):
            parse([*line, "--help"])
        text = capsys.readouterr().out
        assert all(f"--{flag}" in text for flag in (*cli.VALUES, *cli.SWITCHES))
        assert "--training.precision " in text and "auto | fp32 | bf16; of the networks" in text
    settings = {row.split()[0] for row in text.splitlines() if row.startswith("  --") and "." in row.split()[0]}
    leaves = set(dotted(to_dict(parse(BASE[:4]).config)))
    assert settings == {f"--{name.replace('_', '-')}" for name in leaves}


def dotted(data: dict, path: str = "") -> list[str]:
    names = []
    for key, value in data.items():
        if isinstance(value, dict):
            names += dotted(value, f"{path}{key}.")
        elif path:
            names.append(f"{path}{key}")
    return names


def test_agents_and_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        parse(["--list-agents"])
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("dreamer ") and "Dreamer" in row for row in rows)
    with pytest.raises(SystemExit, match="^0$"):
        parse(["--list-tasks"])
    rows = capsys.readouterr().out.splitlines()
    assert rows.index("dmc") < rows.index("  dmc:walker-walk") < rows.index("toy") < rows.index("  toy:reach")


ENVIRON = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
SCRIPT = """
import sys
from agents.training.cli import parse, run_script

def main(argv):
    if argv[0] == "ours":
        raise ValueError("two\\nlines")
    if argv[0] == "bug":
        one, two = [1, 2, 3]
    if argv[0] == "library":
        int("x")
    if argv[0] == "file":
        open("nowhere.txt")
    if argv[0] == "much":
        print("line\\n" * 100000)
        return 0
    parse(argv)

run_script(main)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The script above with given arguments, in this process."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)

    def run(*argv: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script.py", *argv])
        runpy.run_path(str(file), run_name="__main__")

    return run


@pytest.mark.parametrize(
    ("argv", "stderr"),
    [
        (["ours"], "error: two lines\n"),
        (["file"], "error: [Errno 2] No such file or directory: 'nowhere.txt'\n"),
        (["--agent", "dreamer"], "error: --task is needed; --list-tasks shows what there is\n"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    argv: list[str], stderr: str, script: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        script(*argv)
    assert capsys.readouterr() == ("", stderr)


def test_a_bug_keeps_its_traceback(script: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in ("bug", "library"):  # ValueErrors that nobody raised for the user
        with pytest.raises(ValueError):
            script(argv)
    monkeypatch.setenv("WORLDMODELS_DEBUG", "1")
    with pytest.raises(ValueError, match="two\nlines"):
        script("ours")


def test_a_process_exits_with_code_2_having_loaded_no_simulator(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from agents.training.cli import parse, run_script
        assert not {"mujoco", "dm_control"} & set(sys.modules), "importing the command line chose a GL library"
        run_script(parse)"""
    line = [sys.executable, "-c", code, "--agent", "dreemer", "--task", "toy:reach"]
    result = subprocess.run(line, capture_output=True, text=True, env=ENVIRON, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: unknown agent 'dreemer'. Did you mean 'dreamer'?\n"


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    writer = subprocess.Popen(
        [sys.executable, str(file), "much"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRON
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait(60) == 1
