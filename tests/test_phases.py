"""Phases: what a run is made of, that it can be left and gone on with anywhere, and what moves in which."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resume import differences, run, state_of

from agents.training import checkpoint
from agents.training.cli import parse
from agents.training.config import load_config, save_config
from agents.training.learner import parameter_groups
from agents.training.logging import read_metrics
from agents.training.run import Run
from agents.training.watch import Watch
from worldmodels.strict import ConfigError

COLLECT = "{type: collect, env_steps: 30}"
LEARN = "{{type: learn, updates: {0}, optimizers: [model.{1}], batch: 2, length: 4}}"
EVOLVE = "{type: evolve, generations: 3, eval_every: 0}"
BASE = (
    "--agent world-models --task cover --preset debug --collect.num-envs 1 --collect.prefill 30 --env-steps 60 "
    "--training.eval-every 0 --training.video-every 0 --training.block-env-steps 20 --agent.exploration-noise 0.5"
)


def line(*phases: str, rounds: int = 1) -> str:
    return f"{BASE} --training.rounds {rounds} --training.phases '[{', '.join(phases)}]'"


WHOLE = line(COLLECT, LEARN.format(2, "vae"), LEARN.format(3, "rnn"), EVOLVE, rounds=2)


def finished(folder: Path) -> dict[str, Any]:
    state = state_of(folder)
    del state["rng"]["python"]  # the type checks of tests draw from it
    return state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases") / "whole"
    torch.set_num_threads(1)
    assert run(f"{WHOLE} --run-dir {folder}") == 0
    return folder


@pytest.mark.parametrize(
    ("phase", "round_", "done"),
    [("Collect", 0, 11), ("Learn", 0, 1), ("Evolve", 0, 2), ("Evolve", 0, 3), ("Collect", 1, 7), ("Evolve", 1, 1)],
)
def test_a_run_that_is_left_in_any_phase_goes_on_bit_for_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, round_: int, done: int
) -> None:
    folder, real, sent = tmp_path / "run", Watch.worked, []

    def worked(watch: Watch, metrics: dict[str, Any]) -> None:
        real(watch, metrics)
        at, tally = watch.phase, watch.run.schedule.tally
        if not sent and (type(at).__name__, tally.round) == (phase, round_) and tally.done[at.index] >= done:  # type: ignore
            sent.append(at)
            signal.raise_signal(signal.SIGTERM)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "worked", worked)
        assert run(f"{WHOLE} --run-dir {folder}") == signal.SIGTERM and sent
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers, "as they were before"
    left = state_of(folder)["schedule"]
    assert left["round"] == round_ and max(left["done"]) > 0
    assert run(f"--resume {folder}") == 0
    assert differences(finished(whole), finished(folder)) == []


def test_rounds_go_through_all_phases_and_a_run_can_be_given_more(whole: Path, tmp_path: Path) -> None:
    state = finished(whole)
    assert (state["env_steps"], state["updates"]) == (60, 2 * (2 + 3 + 3))
    assert state["schedule"] == {"round": 1, "done": [30, 2, 3, 3], "elsewhere": 16, "tried": 0}
    assert int(state["agent"]["search.counts"][0]) == 6
    entries = [entry for entry in read_metrics(whole / "metrics.jsonl") if "evolve/mean" in entry]
    assert len(entries) == 6 and ["evolve/dream" in entry for entry in entries] == [False, False, True] * 2
    assert run(f"{WHOLE} --training.rounds 1 --run-dir {tmp_path}/run") == 0
    assert finished(tmp_path / "run")["updates"] == 8
    assert run(f"--resume {tmp_path}/run --training.rounds 2") == 0
    assert differences(state, finished(tmp_path / "run")) == []


def test_what_is_not_named_stands_still(tmp_path: Path) -> None:
    states = []
    for name, updates in {"short": 1, "long": 4}.items():
        phases = COLLECT, LEARN.format(2, "vae"), LEARN.format(updates, "rnn")
        run(f"{line(*phases)} --run-dir {tmp_path}/{name}")
        states.append(state_of(tmp_path / name))
    short, long = (state["model"] for state in states)
    equal = {name: torch.equal(short[name], long[name]) for name in short}
    assert all(same for name, same in equal.items() if name.startswith("vae."))
    assert not any(equal[name] for name in ("rnn.mdn.weight", "rnn.lstm.from_latent.weight"))
    steps = [[int(optimizer["state"][0]["step"]) for optimizer in state["optimizers"]] for state in states]
    assert steps == [[2, 1], [2, 4]]


def test_learning_from_data_and_evolving_on_a_saved_model_need_no_environment_to_collect_in(
    whole: Path, tmp_path: Path
) -> None:
    saved = f"--world-model {whole} --data {whole}/replay --world-model.temperature 1.15"
    run(f"{line(EVOLVE)} {saved} --run-dir {tmp_path}/run --training.eval-every 1")
    state = state_of(tmp_path / "run")
    assert (state["env_steps"], state["updates"], state["collector"], state["optimizers"]) == (0, 3, None, [])
    assert load_config(tmp_path / "run" / "config.yaml").world_model.temperature == 1.15
    before = state_of(whole)["model"]
    assert all(torch.equal(value, before[name]) for name, value in state["model"].items())
    assert "eval/return_mean" in (tmp_path / "run" / "metrics.jsonl").read_text(), (
        "it plays, though it collects nothing"
    )


def test_candidates_can_be_tried_in_the_world_and_their_steps_count(tmp_path: Path) -> None:
    run(f"{line(EVOLVE)} --agent.where world --world-model vae-rnn --training.phases '[{COLLECT}, {EVOLVE}]' "
        f"--run-dir {tmp_path}/run")  # fmt: skip
    state = state_of(tmp_path / "run")
    tried = state["schedule"]["tried"]
    assert state["env_steps"] == 30 + tried and tried >= 3 * 4 * 2 * 6, "nobody dies before the sixth step"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "[{type: evolv, generations: 1, eval_every: 0}]",
            r"training.phases\[0\].type: expected .*Did you mean 'evolve'",
        ),
        ("[{type: evolve, generations: 1}]", r"training.phases\[0\].eval_every: missing"),
        ("[{type: evolve, generations: 0, eval_every: 0}]", r"training.phases\[0\].generations: must be at least 1"),
        ("[]", "training.phases: must be at least one"),
        (
            f"[{LEARN.format(1, 'vea')}]",
            r"training.phases\[0\].optimizers: learn moves model.vea, and the optimizers are model.vae",
        ),
    ],
)
def test_a_phase_that_is_wrong_is_one_line(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([*BASE.split(), "--training.phases", words])


def test_what_a_phase_lacks_is_one_line(tmp_path: Path) -> None:
    nothing = line(LEARN.format(1, "vae"), COLLECT)
    with pytest.raises(ValueError, match=r"nothing is recorded that a phase could use: put a collect phase before it"):
        run(f"{nothing} --run-dir {tmp_path}/one")
    dreamer = BASE.replace("world-models", "dreamer").partition(" --agent.exploration")[0]
    with pytest.raises(ValueError, match=r"dreamer cannot evolve: take the evolve phase out of --training.phases"):
        run(f"{dreamer} --training.phases '[{COLLECT}, {EVOLVE}]' --run-dir {tmp_path}/two")
    with pytest.raises(ValueError, match=r"the run has 4 phases and now 1 are given: only their numbers may change"):
        made = Run(parse([*BASE.split(), "--training.phases", f"[{COLLECT}]", "--run-dir", str(tmp_path / "three")]))
        made.schedule.tally.load_state_dict({"done": [1, 2, 3, 4]})


def test_a_run_from_before_there_were_phases_is_offline_then_online(tmp_path: Path) -> None:
    command = parse(f"--agent dreamer --task reach --preset debug --run-dir {tmp_path}".split())
    path = tmp_path / "config.yaml"

    save_config(command.config, path)
    data = yaml.safe_load(path.read_text())
    del data["training"]["phases"], data["training"]["rounds"]
    path.write_text(yaml.safe_dump(data))
    assert load_config(path) == command.config
    assert [phase.type for phase in command.config.training.phases] == ["offline", "online"]


def test_parts_of_the_world_model_can_have_optimizers_of_their_own(debug_run: Any, make_spaces: Any) -> None:
    config = debug_run("world-models", "vae-rnn")
    model = config.world_model.build(make_spaces(True))
    agent = config.agent.build(model)
    groups = parameter_groups(model, agent, ["model.vae", "model.rnn"])
    assert [len(group) for group in groups.values()] == [
        len(list(part.parameters())) for part in (model.vae, model.rnn)
    ]
    with pytest.raises(ValueError, match="train something twice"):
        parameter_groups(model, agent, ["model", "model.vae"])
    with pytest.raises(ValueError, match="leave parameters untrained"):
        parameter_groups(model, agent, ["model.vae"])
    with pytest.raises(ValueError, match=r"no part 'model.encoder' for an optimiser: there are .*'model.vae'"):
        parameter_groups(model, agent, ["model.encoder"])


def test_dotted_names_of_optimizers_are_written_as_they_are() -> None:
    config = parse([*BASE.split(), "--optimizers.model.vae.lr", "0.5", "optimizers.model.rnn.clip=7"]).config
    assert (config.optimizers["model.vae"].lr, config.optimizers["model.rnn"].clip) == (0.5, 7.0)
    with pytest.raises(ConfigError, match=r"optimizers.model: world-models has no such optimizer"):
        parse([*BASE.split(), "--optimizers.model.lr", "0.5"])
    dreamer = parse("--agent sac --task reach --preset debug --optimizers.model.lr 0.5".split()).config
    assert dreamer.optimizers["model"].lr == 0.5


def test_checkpoints_hold_no_pickle_of_the_search(whole: Path) -> None:
    path = checkpoint.checkpoints(whole / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)
    assert state["agent"]["search.C"].dtype == torch.float64
