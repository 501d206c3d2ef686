"""Optimisers and the learner: golden values, who is trained by whom, and a batch learned by heart."""

import copy
import dataclasses
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from agents.training.learner import Learner, parameter_groups, weighted
from agents.training.lightning import Callback, Trainer
from agents.training.optim import AdamConfig, LaProp, LaPropConfig, clip_adaptively, clip_globally
from worldmodels.base import Losses
from worldmodels.replay.memory import Sample

LAPROP = LaPropConfig(type="laprop", lr=0.1, warmup=0, beta1=0.9, beta2=0.999, eps=1e-20, clip=0.3)
ADAM = AdamConfig(type="adam", lr=0.1, warmup=0, eps=1e-8, weight_decay=0.0, clip=100.0)


def parameter(values: list[float] | torch.Tensor, gradient: list[float] | torch.Tensor) -> torch.Tensor:
    p = torch.nn.Parameter(torch.as_tensor(values))
    p.grad = torch.as_tensor(gradient)
    return p


def test_adaptive_clip_golden_value():
    p = parameter([3.0, 4.0], [30.0, 40.0])
    assert clip_adaptively([p], 0.3).before.item() == pytest.approx(50.0)
    assert p.grad is not None and p.grad.tolist() == pytest.approx([0.9, 1.2])


def test_adaptive_clip_lets_zero_weights_begin():
    p = parameter([0.0, 0.0], [3.0, 4.0])
    clip_adaptively([p], 0.3)
    assert p.grad is not None and p.grad.norm().item() == pytest.approx(3e-4)


def test_adaptive_clip_leaves_small_gradients_alone_and_judges_each_tensor():
    small, large = parameter([3.0, 4.0], [0.1, 0.2]), parameter([3.0, 4.0], [30.0, 40.0])
    skipped = torch.nn.Parameter(torch.ones(2))
    LAPROP.clip_gradients([small, skipped, large])
    assert small.grad is not None and small.grad.tolist() == pytest.approx([0.1, 0.2])
    assert large.grad is not None and large.grad.norm().item() == pytest.approx(1.5)


@pytest.mark.parametrize(("config", "second"), [(LAPROP, -0.2179670), (ADAM, -0.1917781)])
def test_two_updates_golden_values(config: LaPropConfig | AdamConfig, second: float):
    """g = 1, then 3, at lr 0.1: LaProp divides before its momentum, Adam after."""
    p = parameter([0.0], [1.0])
    optimizer = config.build([p])
    optimizer.step()
    assert p.item() == pytest.approx(-0.1)
    p.grad = torch.tensor([3.0])
    optimizer.step()
    assert p.item() == pytest.approx(second)


def test_laprop_agrees_with_its_equations():
    torch.manual_seed(0)
    ps = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    slow = [p.detach().double() for p in ps]
    mu, nu = ([torch.zeros_like(p) for p in slow] for _ in range(2))
    optimizer = LaProp(ps, 0.01, (0.9, 0.999), 1e-20)
    for t in range(1, 30):
        for i, p in enumerate(ps):
            p.grad = torch.randn_like(p) * 10**i
            g = p.grad.double()
            nu[i] = 0.999 * nu[i] + 0.001 * g**2
            mu[i] = 0.9 * mu[i] + 0.1 * g / ((nu[i] / (1 - 0.999**t)).sqrt() + 1e-20)
            slow[i] = slow[i] - 0.01 * mu[i] / (1 - 0.9**t)
        optimizer.step()
    for p, expected in zip(ps, slow, strict=True):
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_laprop_with_zero_gradients_stands_still():
    p = parameter([1.0, 2.0], [0.0, 0.0])
    LAPROP.build([p]).step()
    assert p.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("config", [LAPROP, ADAM], ids=lambda c: c.type)
def test_a_saved_optimizer_goes_on_as_if_never_stopped(config: LaPropConfig | AdamConfig):
    def updates(optimizer: torch.optim.Optimizer, p: torch.Tensor, seeds: range) -> None:
        for seed in seeds:
            p.grad = torch.randn(5, generator=torch.Generator().manual_seed(seed))
            optimizer.step()

    p = torch.nn.Parameter(torch.ones(5))
    first = config.build([p])
    updates(first, p, range(3))
    q = torch.nn.Parameter(p.detach().clone())
    second = config.build([q])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    updates(first, p, range(3, 6))
    updates(second, q, range(3, 6))
    assert torch.equal(p, q)


def test_global_clip_leaves_a_norm_of_at_most_100():
    ps = [parameter([1.0, 1.0], [3e4, 4e4]), parameter([1.0], [-1e5])]
    before = ADAM.clip_gradients(ps).before
    assert before.item() == pytest.approx(1.118e5, rel=1e-3)
    after = torch.cat([p.grad for p in ps if p.grad is not None]).norm().item()
    assert after == pytest.approx(100.0, rel=1e-4) and after <= 100.0
    assert ps[1].grad is not None and ps[1].grad.item() / ps[0].grad[0].item() == pytest.approx(-1e5 / 3e4)  # pyright: ignore


@pytest.mark.parametrize("clip", [clip_adaptively, clip_globally])
@pytest.mark.parametrize("limit", [1e-3, 0.5, 30.0, 1e9])
def test_the_norms_before_and_after_clipping_are_those_of_the_gradients(clip, limit: float):
    g = torch.Generator().manual_seed(2)
    sizes = ((3, 4), (2,), (5,), ())
    ps = [parameter(torch.randn(n, generator=g), 10**i * torch.randn(n, generator=g)) for i, n in enumerate(sizes, -1)]
    ps.append(torch.nn.Parameter(torch.ones(2)))  # one without a gradient

    def norm() -> float:
        return torch.cat([p.grad.flatten() for p in ps if p.grad is not None]).double().norm().item()

    before = norm()
    norms = clip(ps, limit)
    assert norms.before.item() == pytest.approx(before, rel=1e-6)
    assert norms.after.item() == pytest.approx(norm(), rel=1e-6)
    assert (norms.after == norms.before) == (limit == 1e9)


# ----------------------------------------------------------------------------------------------------- learner


def test_a_loss_whose_names_do_not_match_its_scales_is_refused():
    losses = Losses({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {})
    assert weighted(losses, {"a": 1.0, "b": 0.5}, "agent").item() == 3.5
    for scales in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0}, {}):
        with pytest.raises(ValueError, match="agent's scales") as error:
            weighted(losses, scales, "agent")
        assert "\n" not in str(error.value)
        assert all(f"'{name}'" in str(error.value) for name in losses.terms.keys() ^ scales.keys())
    assert weighted(Losses({}, {}), {}, "agent").item() == 0


@pytest.mark.parametrize("agent", ["dreamer", "dreamer-v1", "dreamer-v2", "none"])
def test_optimizers_share_every_trainable_parameter_once(agent: str, debug_run, make_spaces):
    run = debug_run(agent)
    model = run.world_model.build(make_spaces())
    behaviour = run.agent.build(model)
    groups = parameter_groups(model, behaviour, list(run.optimizers))
    ids = [id(p) for group in groups.values() for p in group]
    trainable = {id(p) for m in (model, behaviour) for p in m.parameters() if p.requires_grad}
    assert len(ids) == len(set(ids)) and set(ids) == trainable


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model", "actr", "critic"], "actr"),
        (["model", "actor"], "untrained"),
        (["all", "actor"], "all"),
        (["actor", "critic"], "untrained"),
    ],
)
def test_optimizers_that_fit_no_parts_are_refused(names: list[str], message: str, debug_run, make_spaces):
    run = debug_run("dreamer-v1")
    model = run.world_model.build(make_spaces())
    with pytest.raises(ValueError, match=message) as error:
        parameter_groups(model, run.agent.build(model), names)
    assert "\n" not in str(error.value)


@pytest.fixture
def learner(debug_run, make_spaces, make_batch):
    """A learner of a debug run and one batch that it could learn by heart."""

    def build(agent: str, precision: str = "fp32", lr: float | None = None) -> tuple[Learner, Sample]:
        torch.manual_seed(0)
        run = debug_run(agent, None, *([f"optimizers.all.lr={lr}"] if lr else []))
        model = run.world_model.build(make_spaces())
        scales = run.world_model.scales
        made = Learner(model, run.agent.build(model), run.optimizers, scales, precision)
        batch = make_batch(size=3, length=6)
        smooth = torch.linspace(0, 255, 64).to(torch.uint8)[:, None, None].expand(3, 6, 64, 64, 3).clone()
        smooth[..., 0] = torch.arange(6, dtype=torch.uint8)[None, :, None, None] * 40
        return made, Sample(batch._replace(obs=smooth), torch.zeros(3, 6, dtype=torch.int64))

    return build


class Repeated(Dataset):
    def __init__(self, sample: Sample, times: int):
        self.sample, self.times = sample, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, _: int) -> Sample:
        return self.sample


def fit(learner: Learner, sample: Sample, updates: int) -> list[dict[str, float]]:
    """Metrics of every update."""
    history = []

    class Recorder(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            history.append({name: value.item() for name, value in learner.metrics.items()})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Recorder()],
        )  # fmt: skip
        trainer.fit(learner, train_dataloaders=DataLoader(Repeated(sample, updates), batch_size=None))
    return history


def test_a_batch_is_learned_by_heart_in_both_precisions(learner):
    """60 updates of 5e-3; bfloat16 networks begin within 0.2 % and stay within 2 % of float32."""
    curves = {}
    for precision in ("fp32", "bf16"):
        history = fit(*learner("dreamer", precision, lr=5e-3), updates=60)
        assert all(torch.tensor(list(metrics.values())).isfinite().all() for metrics in history)
        first, last = history[0], history[-1]
        assert last["total"] < 0.7 * first["total"]
        assert last["model/reward"] < 0.7 * first["model/reward"]
        assert last["model/continue"] < 0.6 * first["model/continue"]
        curves[precision] = torch.tensor([metrics["total"] for metrics in history])
    relative = (curves["bf16"] / curves["fp32"] - 1).abs()
    assert relative[0] < 0.002 and relative.max() < 0.02


def test_an_update_warms_up_counts_and_moves_targets(learner):
    made, sample = learner("dreamer")
    config = made.optimizer_configs["all"]
    made.optimizer_configs = {"all": dataclasses.replace(config, lr=0.1, warmup=4)}
    slow = made.agent.slow_critic
    torch.nn.init.ones_(made.agent.critic.mlp.output.bias)
    rates = []

    def written_down(updates: int) -> None:
        rates.append((updates, made.optimizers().param_groups[0]["lr"]))
        type(made.agent).after_update(made.agent, updates)

    made.agent.after_update = written_down
    fit(made, sample, updates=5)
    assert made.updates == 5 and [count for count, _ in rates] == [1, 2, 3, 4, 5]
    assert [rate for _, rate in rates] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert (slow.mlp.output.bias != 0).all() and not any(p.requires_grad for p in slow.parameters())


def test_latents_are_written_back_to_the_replay(learner):
    made, sample = learner("dreamer")

    class Kept:
        packed_bytes = made.model.packed_bytes

        def write_back(self, index: torch.Tensor, packed: torch.Tensor) -> None:
            self.index, self.packed = index, packed

    made.replay = kept = Kept()
    fit(made, sample, updates=1)
    assert torch.equal(kept.index, sample.index)
    assert kept.packed.shape == (3, 6, made.model.packed_bytes) and (kept.packed[0] != kept.packed[1]).any()
