"""What a run that begins with a saved world model copies in part and holds still: golden values, identities, resume."""

import json
import math
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import card_of, saved_form, scrambled
from test_resume import run, state_of
from torch import Tensor

from agents.training.cli import parse
from agents.training.config import RunConfig, load_config, save_config, shipped
from agents.training.learner import Learner
from agents.training.optim import AdamConfig, LaPropConfig, OptimizerConfig
from agents.training.run import Run
from worldmodels.base import Sequence, Spaces
from worldmodels.pretrained import Saved
from worldmodels.replay.memory import Sample
from worldmodels.strict import ConfigError, to_dict, write_yaml
from worldmodels.transfer import (
    HEADS,
    LOOKS,
    NOTHING_FROZEN,
    RECIPES,
    Frozen,
    Report,
    TransferConfig,
    belongs,
    load_weights,
)

MakeRun, MakeSpaces = Callable[..., RunConfig], Callable[..., Spaces]
SHORT = (
    "--preset debug --task toy:reach --collect.num-envs 1 --collect.prefill 20 --training.updates-per-env-step 0.1 "
    "--training.block-env-steps 30 --training.eval-every 0 --training.video-every 0"
)
LAPROP = LaPropConfig(type="laprop", lr=0.01, warmup=0, beta1=0.9, beta2=0.999, eps=1e-20, clip=0.3)
ADAM = AdamConfig(type="adam", lr=0.01, warmup=0, eps=1e-8, weight_decay=0.01, clip=0.5)


# ---- copies


@pytest.mark.parametrize(("omega", "expected"), [(0.0, 0.5), (0.2, 0.9), (1.0, 2.5)])
def test_a_fractional_copy_is_the_fresh_weight_and_a_share_of_the_saved_one(
    omega: float, expected: float, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    """.5 + .2 * 2 = .9 (Sasso et al.); of 0 nothing is left of the saved one, of 1 all of it, beside the fresh one."""
    config, spaces = debug_run("none", "rssm-v3"), make_spaces()
    source, model = (scrambled(config.world_model.build(spaces)) for _ in range(2))
    last = [f"{head}.mlp.output.{kind}" for head in ("reward_head", "continue_head") for kind in ("weight", "bias")]
    for name in last:
        source.state_dict()[name].fill_(2.0)
        model.state_dict()[name].fill_(0.5)
    numbers = TransferConfig(omega=omega, frozen_updates=9)
    report = load_weights(model, saved_form(source, config, spaces), "fractional", numbers)
    assert report.names("fractional") == last and report.frozen == NOTHING_FROZEN
    assert {row.why for row in report.rows if row.tensor in last} == {f"fresh + {omega} saved (fractional)"}
    for name, tensor in model.state_dict().items():
        wanted = torch.full_like(tensor, expected) if name in last else source.state_dict()[name]
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=0.0)


def test_numbers_of_recipes_are_settings_with_a_range() -> None:
    line = f"--agent none {SHORT} --world-model zoo:toy-reach --transfer".split()
    assert parse([*line, "fractional", "--transfer.omega", "0.5"]).config.transfer.omega == 0.5
    assert parse([*line, "video", "--transfer.frozen-updates", "7"]).config.transfer.frozen_updates == 7
    for value, problem in (("1.5", "at most 1, got 1.5"), ("-0.1", "at least 0")):
        with pytest.raises(ConfigError, match=f"command line: transfer.omega: must be {problem}"):
            parse([*line, "fractional", "--transfer.omega", value])


def test_a_run_from_before_says_nothing_of_transfer(debug_run: MakeRun, tmp_path: Path) -> None:
    save_config(debug_run("none"), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    start, end = text.index("transfer:"), text.index("training:")
    (tmp_path / "config.yaml").write_text(text[:start] + text[end:])
    assert load_config(tmp_path / "config.yaml").transfer == TransferConfig(omega=0.0, frozen_updates=0)


# ---- what is frozen


@pytest.mark.parametrize("name", shipped().names("worldmodels"))
def test_every_tensor_is_in_one_of_looks_dynamics_and_heads(
    name: str, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    tensors = list(debug_run("none", name).world_model.build(make_spaces()).state_dict())
    kinds = {part: {tensor for tensor in tensors if belongs(tensor, part)} for part in (*LOOKS, *HEADS, "dynamics")}
    assert sum(map(len, kinds.values())) == len(set.union(*kinds.values())) == len(tensors)
    assert all(kinds[part] for part in ("encoder", "decoder", "reward_head", "continue_head", "dynamics"))
    assert all(belongs(tensor, "everything") for tensor in tensors)


def test_a_part_is_modules_in_their_order() -> None:
    assert belongs("rssm.reward_head.mlp.output.bias", "reward_head.output")
    assert not belongs("rssm.reward_head.mlp.layers.0.bias", "reward_head.output")
    assert not belongs("output.reward_head.mlp.bias", "reward_head.output")
    assert not belongs("reward_heads.mlp.output.bias", "reward_head.output")


FROZEN = {
    "frozen": ("encoder", "decoder", "objective", "dynamics"),
    "new-dynamics": ("encoder",),
    "new-visuals": ("dynamics",),
    "video": ("encoder", "dynamics"),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["rssm-r2", "vae-rnn"])
def test_a_recipe_freezes_its_parts_as_far_as_they_were_loaded(
    recipe: str, name: str, debug_run: MakeRun, make_spaces: MakeSpaces
) -> None:
    config, spaces = debug_run("none", name), make_spaces()
    saved = saved_form(config.world_model.build(spaces), config, spaces)

    def transferred(updates: int) -> Report:
        numbers = TransferConfig(omega=0.2, frozen_updates=updates)
        return load_weights(config.world_model.build(spaces), saved, recipe, numbers)

    report = transferred(30)
    expected = {tensor for tensor in report.names("loaded") if any(belongs(tensor, p) for p in FROZEN.get(recipe, ()))}
    assert set(report.frozen.tensors) == expected and bool(expected) == (recipe in FROZEN)
    if recipe in FROZEN:
        assert report.frozen.updates == (None if recipe == "frozen" else 30)
        said = {line.split()[1] for line in report.lines() if line.endswith((": frozen", ": frozen for 30 updates"))}
        assert said == expected
    assert transferred(0).frozen == (report.frozen if recipe == "frozen" else NOTHING_FROZEN)


# ---- updates


def learner(config: RunConfig, optimizers: dict[str, OptimizerConfig], frozen: Frozen, still: bool = False) -> Learner:
    """Ready to learn without a trainer; ``still``: what is frozen cannot learn at all, and is no optimiser's."""
    torch.manual_seed(3)
    world_model = config.world_model
    if hasattr(world_model, "free_nats"):  # below them the prior would learn nothing
        world_model = replace(world_model, free_nats=0.0)
    model = scrambled(world_model.build(Spaces((64, 64, 3), 3, False)))
    agent = config.agent.build(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (still and name in frozen.tensors))
    made = Learner(model, agent, optimizers, config.world_model.scales, "fp32", NOTHING_FROZEN if still else frozen)
    optimizer = made.configure_optimizers()
    made.optimizers, made.manual_backward = lambda: optimizer, Tensor.backward  # pyright: ignore
    return made


def update(made: Learner, batch: Sequence) -> None:
    torch.manual_seed(5)
    made.training_step(Sample(batch, torch.zeros(3, 8, dtype=torch.int64)), 0)


def weights(made: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.named_parameters()}


def names(made: Learner, *parts: str) -> tuple[str, ...]:
    return tuple(name for name in made.model.state_dict() if any(belongs(name, part) for part in parts))


@pytest.mark.parametrize("optimizer", [LAPROP, ADAM], ids=["laprop", "adam"])
def test_what_is_frozen_is_as_if_no_optimiser_had_it_and_then_begins_anew(
    optimizer: OptimizerConfig, debug_run: MakeRun, make_batch: Callable[..., Sequence]
) -> None:
    config, batch, every = debug_run("dreamer"), make_batch(), {"all": optimizer}
    frozen = Frozen(names(learner(config, every, NOTHING_FROZEN), "dynamics"), 3)
    made, without = learner(config, every, frozen), learner(config, every, frozen, still=True)
    free, before = learner(config, every, NOTHING_FROZEN), weights(made)
    for one in (made, without, free):
        for _ in range(3):
            update(one, batch)
    after, alone, moved = weights(made), weights(without), weights(free)
    fixed = {f"model.{name}" for name in frozen.tensors}
    for name in after:
        assert torch.equal(after[name], alone[name]), "neither clip nor decay nor moments know of it"
        assert torch.equal(after[name], before[name]) or name not in fixed
        assert not torch.equal(moved[name], before[name]) or name not in fixed, "it would have learned"
    assert all(p.requires_grad for p in made.model.parameters()) and made.metrics.keys() == free.metrics.keys()
    state = made.made[0].state
    assert not any(state.get(parameter) for parameter in made.fixed)

    update(made, batch)
    thawed = weights(made)
    assert all(not torch.equal(thawed[name], before[name]) for name in fixed)
    if optimizer is LAPROP:  # at its first step d = mu = sign(g), however late that is
        name = "model.posterior.output.weight"
        assert (thawed[name] - before[name]).abs().max().item() == pytest.approx(LAPROP.lr, rel=1e-3)
        assert [group["step"] for group in made.made[0].param_groups] == [4, 1]
    else:
        assert {int(state[parameter]["step"]) for parameter in made.fixed} == {1}


def test_a_frozen_world_model_filters_and_its_heads_learn_without_its_gradients(
    debug_run: MakeRun, make_batch: Callable[..., Sequence]
) -> None:
    config, batch = debug_run("dreamer"), make_batch()
    fixed = names(learner(config, {"all": LAPROP}, NOTHING_FROZEN), *LOOKS, "dynamics")
    made = learner(config, {"all": LAPROP}, Frozen(fixed, None))
    before, seen = weights(made), []
    real = made.losses

    def losses(sample: Sample) -> Any:
        found = real(sample)
        seen.append(found[0].deter.requires_grad)
        return found

    made.losses = losses  # pyright: ignore
    latents = made.model.filter(batch, torch.Generator().manual_seed(1))
    for _ in range(4):
        update(made, batch)
    again, after = made.model.filter(batch, torch.Generator().manual_seed(1)), weights(made)
    assert seen == [False] * 4, "there is no graph to go back through"
    assert torch.equal(latents.deter, again.deter) and torch.equal(latents.stoch, again.stoch)
    assert {name for name in before if torch.equal(before[name], after[name])} >= {f"model.{name}" for name in fixed}
    for name in names(made, *HEADS):
        assert not torch.equal(before[f"model.{name}"], after[f"model.{name}"])


def test_an_optimiser_whose_whole_part_is_frozen_waits(debug_run: MakeRun, make_batch: Callable[..., Sequence]) -> None:
    config, batch = debug_run("none", "rssm-v3"), make_batch()
    parts = ("encoder", "cell", "prior", "posterior", "decoder", "reward_head", "continue_head")
    each: dict[str, OptimizerConfig] = {f"model.{part}": LAPROP for part in parts}
    fixed = names(learner(config, each, NOTHING_FROZEN), "encoder")
    made = learner(config, each, Frozen(fixed, 1))
    for told in (False, True):
        update(made, batch)
        assert ("gradient_norm/model.encoder" in made.metrics) == told
        assert "gradient_norm/model.cell" in made.metrics


def test_what_begins_late_is_warmed_up_then(debug_run: MakeRun, make_batch: Callable[..., Sequence]) -> None:
    """Twice: parts that thaw after 2 updates, and an agent whose optimiser moves from the third one on."""
    config, batch, slow = debug_run("dreamer"), make_batch(), replace(LAPROP, warmup=4)
    fixed = names(learner(config, {"all": slow}, NOTHING_FROZEN), "dynamics")
    made = learner(config, {"all": slow}, Frozen(fixed, 2))
    rates = []
    for _ in range(4):
        update(made, batch)
        rates.append([group["lr"] / LAPROP.lr for group in made.made[0].param_groups])
    assert rates == [[0.25, 0.0], [0.5, 0.0], [0.75, 0.25], [1.0, 0.5]]

    made = learner(config, {"model": slow, "actor": slow, "critic": slow}, NOTHING_FROZEN)
    for moving in (("model",), ("model",), ("actor", "critic")):
        made.moving = moving
        update(made, batch)
    assert [optimizer.param_groups[0]["lr"] / LAPROP.lr for optimizer in made.made] == [0.5, 0.25, 0.25]


def test_a_phase_whose_parts_are_all_frozen_at_first_waits(
    debug_run: MakeRun, make_batch: Callable[..., Sequence]
) -> None:
    """Only its own updates count as waiting."""
    config, batch = debug_run("none", "vae-rnn"), make_batch()
    each: dict[str, OptimizerConfig] = {"model.vae": LAPROP, "model.rnn": LAPROP}
    made = learner(config, each, NOTHING_FROZEN)
    made = learner(config, each, Frozen(tuple(name for name in made.model.state_dict() if name.startswith("vae.")), 2))
    told = []
    for moving in ("model.rnn", "model.vae", "model.vae", "model.vae"):
        made.moving = (moving,)
        update(made, batch)
        told.append(f"gradient_norm/{moving}" in made.metrics)
    assert told == [True, False, False, True]


# ---- runs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer") / "source"
    torch.set_num_threads(1)
    assert run(f"--agent none --world-model rssm-v3 {SHORT} --env-steps 60 --run-dir {folder}") == 0
    return folder


def test_a_run_on_a_frozen_world_model_keeps_it_over_a_resume(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    line = f"--agent dreamer {SHORT} --world-model {source} --transfer frozen --run-dir {folder}"
    assert run(f"{line} --env-steps 50") == 0
    assert run(f"--resume {folder} --env-steps 90") == 0
    state, before = state_of(folder), state_of(source)
    text = (folder / "transfer.txt").read_text()
    said = [row.split()[1] for row in text.splitlines() if row.startswith("loaded") and row.endswith(": frozen")]
    heads = ("reward_head.", "continue_head.")
    assert said == [name for name in state["model"] if not name.startswith(heads)] == state["frozen"]["tensors"]
    assert f"frozen: {len(said)} tensors" in text and state["frozen"]["updates"] is None
    for name, tensor in state["model"].items():
        assert torch.equal(tensor, before["model"][name]) == (name in said)
    assert state["updates"] > state_of(source)["updates"] + 2
    assert len(state["optimizers"][0]["param_groups"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--transfer.omega 0.5", "omega means nothing to recipe same-task, but to --transfer fractional"),
        ("--transfer frozen --transfer.frozen-updates 3", "to recipe frozen, but to --transfer new-dynamics"),
    ],
)
def test_numbers_that_a_recipe_does_not_read_are_refused(source: Path, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(f"--agent dreamer {SHORT} --world-model {source} {words}".split())
    with pytest.raises(ConfigError, match="--transfer.omega needs a --world-model that is a run or a saved folder"):
        parse(f"--agent dreamer {SHORT} --transfer.omega 0.5".split())


def test_a_phase_that_could_teach_nothing_is_refused(source: Path, tmp_path: Path) -> None:
    phase = "[{type: learn, updates: 1, optimizers: [model.encoder], batch: 2, length: 4}]"
    parts = ("encoder", "cell", "prior", "posterior", "decoder", "reward_head", "continue_head")
    each = {f"model.{part}": to_dict(LAPROP) for part in parts}
    extra = tmp_path / "more.yaml"
    write_yaml({"optimizers": {"all": None, "model": None, **each}, "agent_name": "none"}, extra)
    line = f"{SHORT} --env-steps 0 --data {source}/replay --world-model {source} --transfer frozen --config {extra}"
    command = parse([*line.split(), "--run-dir", str(tmp_path / "run"), "--training.phases", phase])
    with pytest.raises(ValueError, match=r"training.phases\[0\] teaches model.encoder, which this transfer keeps"):
        Run(command)


def test_a_checkpoint_from_before_has_nothing_frozen(source: Path) -> None:
    state = state_of(source)
    del state["frozen"]
    made = Run(parse(["--resume", str(source)]), state)
    made.close()
    assert made.learner.frozen == NOTHING_FROZEN and made.learner.fixed == []


def test_a_part_to_freeze_that_a_model_lacks_is_named(debug_run: MakeRun, make_spaces: MakeSpaces) -> None:
    config, spaces = debug_run("none", "rssm-v3"), make_spaces()
    model = config.world_model.build(spaces)
    tensors = {name.replace("encoder", "eyes"): tensor for name, tensor in model.state_dict().items()}
    model.eyes = model.encoder
    del model.encoder
    saved = Saved("source", card_of(config, spaces, agent=False), tensors)
    with pytest.raises(ConfigError, match="RSSM has no module named encoder"):
        load_weights(model, saved, "new-dynamics", config.transfer)


# ---- results/transfer/measure.py

MEASURE = runpy.run_path(str(Path(__file__).parents[1] / "results/transfer/measure.py"))
first_at, Reached = MEASURE["first_at"], MEASURE["Reached"]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({0: 10.0, 2000: 20.0, 4000: 30.0, 6000: 50.0}, (5000.0, True)),
        ({0: 10.0, 2000: 50.0, 4000: 30.0, 6000: 50.0}, (1500.0, True)),  # the first time, though it falls again
        ({4000: 40.0, 0: 10.0, 2000: 20.0}, (4000.0, True)),
        ({0: 10.0, 2000: 20.0, 4000: 39.9}, (4000.0, False)),
        ({0: 41.0, 2000: 20.0}, (0.0, True)),
    ],
)
def test_env_steps_to_a_threshold_are_interpolated(curve: dict[int, float], expected: tuple[float, bool]) -> None:
    assert first_at(curve, 40.0) == pytest.approx(expected)


def test_the_speed_up_is_a_ratio_of_means_with_an_interval_and_a_bound() -> None:
    def runs(*steps: float, reached: bool = True) -> list[Any]:
        return [Reached(step, reached or step < max(steps)) for step in steps]

    speed_up = MEASURE["speed_up"]
    ratio, bound = speed_up(runs(8.0, 10.0, 12.0), runs(4.0, 5.0, 6.0))
    assert ratio.value == 2.0 and bound == "" and 8 / 6 <= ratio.low < 2.0 < ratio.high <= 12 / 4
    assert speed_up(runs(8.0, 8.0), runs(2.0, 2.0))[0] == (4.0, 4.0, 4.0)
    assert speed_up(runs(9.0, 3.0), runs(3.0))[0][:1] == (2.0,) and math.isnan(
        speed_up(runs(9.0, 3.0), runs(3.0))[0].low
    )
    late = runs(10.0, 12.0, reached=False)
    assert [speed_up(*pair)[1] for pair in ((late, runs(5.0)), (runs(5.0), late), (late, late))] == [">", "<", "?"]


def test_a_folder_of_runs_becomes_json_and_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = {"scratch": (30.0, 50.0), "loaded": (50.0, 50.0), "frozen": (20.0, 20.0)}
    for kind, returns in ends.items():
        for seed, last in enumerate(returns):
            run_dir = tmp_path / "runs" / kind / f"seed{seed}"
            run_dir.mkdir(parents=True)
            lines = [
                {"env_steps": steps, "eval/return_mean": value, "eval/random_return": 10.0}
                for steps, value in ((2000, 30.0), (4000, last))
            ]
            (run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"env_steps": 5}, *lines])))
    MEASURE["main"](tmp_path / "runs", 40.0, tmp_path / "out.json")
    assert capsys.readouterr().out.splitlines() == [
        "| kind | seed0 | seed1 | mean, k | times as fast |",
        "|---|---|---|---|---|",
        "| scratch | > 4.0 | 3.0 | > 3.5 (3.0 to 4.0) |  |",
        "| frozen | > 4.0 | > 4.0 | > 4.0 (4.0 to 4.0) | ? |",
        "| loaded | 3.0 | 3.0 | 3.0 (3.0 to 3.0) | > 1.17 (1.00 to 1.33) |",
    ]
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["about"] == {"folder": "runs", "threshold": 40.0}
    assert told["kinds"]["loaded"]["speed_up"]["value"] == pytest.approx(3500 / 3000)
    assert told["kinds"]["frozen"]["speed_up"] == {"value": None, "low": None, "high": None, "bound": "?"}
    assert told["kinds"]["scratch"]["runs"]["seed0"] == {"env_steps": 4000, "reached": False}
