"""Gradients through imagined steps: what is logged of them is what autograd says, and the clip holds each state's."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from agents.gradients import Watch, watch_steps
from agents.maac import MAAC
from agents.training.learner import Learner, weighted
from worldmodels.base import Sequence
from worldmodels.replay.memory import Sample

STATES, STEPS = 5, 4
CPU = torch.device("cpu")


class Pair(NamedTuple):
    """A latent of two parts."""

    x: Tensor  # [N, 3]
    y: Tensor  # [N]


def step(latent: Pair, action: Tensor) -> Pair:
    return Pair(torch.tanh(1.5 * latent.x + latent.y[:, None] + action), 1.2 * latent.y + (latent.x * action).sum(-1))


def given(seed: int = 0) -> tuple[Pair, Tensor]:
    g = torch.Generator().manual_seed(seed)
    start = Pair(torch.randn(STATES, 3, generator=g), torch.randn(STATES, generator=g))
    return start, torch.randn(STATES, STEPS, 3, generator=g).requires_grad_()


class Life(NamedTuple):
    made: list[Pair]  # by the model
    passed: list[Pair]  # by the watch
    loss: Tensor  # a mean over states of something of every step


def lived(watch: Watch | None, start: Pair, actions: Tensor) -> Life:
    latent, life = start, Life([], [], torch.zeros(()))
    for t in range(STEPS):
        latent = step(latent, actions[:, t])
        life.made.append(latent)
        latent = latent if watch is None else watch.passed(latent, t)
        life.passed.append(latent)
        life = life._replace(loss=life.loss + ((t + 1) * latent.x.square().sum(-1) + latent.y.square()).mean())
    return life


def rms(gradients: Any) -> Tensor:
    """Of all parts' gradients together, N times, over states."""
    return STATES * torch.cat([g.reshape(STATES, -1) for g in gradients], 1).square().sum(1).mean().sqrt()


def test_norms_are_those_of_autograd(double: None) -> None:
    start, actions = given()
    watch = watch_steps(STEPS, 0.0, CPU)
    lived(watch, start, actions).loss.backward()
    life = lived(None, start, actions)
    for t, latent in enumerate(life.made):
        expected = rms(torch.autograd.grad(life.loss, list(latent), retain_graph=True))
        torch.testing.assert_close(watch.norms[0, t], expected)
    assert list(watch.metrics()) == [f"gradient_norm/step_{t}" for t in (1, 2, 3, 4)]
    assert torch.equal(torch.stack(list(watch.metrics().values())), watch.norms[0])


@pytest.mark.parametrize("limit", [0.0, math.inf])
def test_without_a_limit_no_bit_of_a_gradient_changes(limit: float) -> None:
    start, actions = given()
    (plain,) = torch.autograd.grad(lived(None, start, actions).loss, actions)
    (seen,) = torch.autograd.grad(lived(watch_steps(STEPS, limit, CPU), start, actions).loss, actions)
    assert torch.equal(plain, seen)


def test_the_clip_bounds_each_state_at_each_step_and_keeps_directions(double: None) -> None:
    start, actions = given()
    limit, watch = 30.0, watch_steps(STEPS, 30.0, CPU)
    life = lived(watch, start, actions)
    arrived: dict[tuple[str, int], Tensor] = {}
    for name, latents in (("passed", life.passed), ("made", life.made)):
        for t, latent in enumerate(latents):

            def keep(gradients: Any, at: tuple[str, int] = (name, t)) -> None:
                arrived[at] = STATES * torch.cat([g.reshape(STATES, -1) for g in gradients], 1)

            torch.autograd.graph.register_multi_grad_hook(list(latent), keep)
    life.loss.backward()
    clipped = 0
    for t in range(STEPS):
        before, after = arrived["passed", t], arrived["made", t]
        norm = before.norm(dim=1, keepdim=True)
        torch.testing.assert_close(after, before * (limit / norm).clamp(max=1))
        torch.testing.assert_close(
            watch.norms[:, t], torch.stack([g.square().sum(1).mean().sqrt() for g in (before, after)])
        )
        clipped += int((norm > limit).sum())
    assert 0 < clipped < STEPS * STATES
    names = list(watch.metrics())
    assert names[STEPS:] == [f"gradient_norm_clipped/step_{t}" for t in (1, 2, 3, 4)] and len(names) == 2 * STEPS


def test_clip_golden_value() -> None:
    """x' = 2 x + a, loss mean x_4: 1, 2, 4, 8 come back to steps 4, 3, 2, 1; held at 3 they are 1, 2, 3, 3."""

    class Chain(NamedTuple):
        x: Tensor

    def back(limit: float) -> tuple[list[float], list[float], list[float]]:
        watch, actions = watch_steps(4, limit, CPU), torch.zeros(2, 4, requires_grad=True)
        latent = Chain(torch.ones(2))
        for t in range(4):
            latent = watch.passed(Chain(2 * latent.x + actions[:, t]), t)
        latent.x.mean().backward()
        assert actions.grad is not None
        return (2 * actions.grad[1]).tolist(), watch.norms[0].tolist(), watch.norms[1].tolist()

    assert back(0.0) == ([8.0, 4.0, 2.0, 1.0],) * 3
    assert back(3.0) == ([3.0, 3.0, 2.0, 1.0], [6.0, 4.0, 2.0, 1.0], [3.0, 3.0, 2.0, 1.0])


def test_a_state_that_explodes_takes_nothing_from_the_others(double: None) -> None:
    start, actions = given()
    wild = start._replace(y=torch.cat([torch.tensor([1e8]), start.y[1:]]))
    found = []
    for first in (start, wild):
        (gradient,) = torch.autograd.grad(lived(watch_steps(STEPS, 1.0, CPU), first, actions).loss, actions)
        assert gradient.isfinite().all()
        found.append(gradient[1:])
    assert torch.equal(*found)


def test_no_gradient_is_no_number_to_divide_by() -> None:
    watch = watch_steps(1, 1.0, CPU)
    x = torch.ones(2, 3, requires_grad=True)
    latent = watch.passed(Pair(x, torch.ones(2)), 0)
    (0 * latent.x).sum().backward()
    assert x.grad is not None and (x.grad == 0).all() and (watch.norms == 0).all()


# ------------------------------------------------------------------------------------------------------- agents


THROUGH = {"maac": 4, "dreamer-v1": 5, "dreamer-v2": 5, "svg-inf": 7}  # steps with a gradient in the debug preset
OTHERS = ("sac", "mve", "dreamer", "svg", "svg-0")


@pytest.fixture
def updated(debug_run: Callable[..., Any], make_spaces: Any, make_batch: Any) -> Callable[..., dict[str, float]]:
    """The metrics of an agent's loss on random experience after its backward pass."""

    def update(name: str, *more: str, model_name: str | None = None, discrete: bool = False) -> dict[str, float]:
        torch.manual_seed(0)
        run = debug_run(name, model_name, *more)
        model = run.world_model.build(make_spaces(discrete))
        agent = run.agent.build(model)
        for parameter in [p for p in (*model.parameters(), *agent.parameters()) if p.requires_grad and (p == 0).all()]:
            torch.nn.init.normal_(parameter, std=0.1)  # heads that begin at zero let nothing through
        batch = make_batch(discrete)
        losses = agent.loss(model, model.loss(batch)[0], batch)
        weighted(losses, agent.scales, "agent").backward()
        return {name: value.item() for name, value in losses.metrics.items()}

    return update


@pytest.mark.parametrize("name", THROUGH)
def test_agents_that_differentiate_the_model_log_every_step(name: str, updated: Any) -> None:
    metrics = updated(name)
    norms = [metrics[f"gradient_norm/step_{t + 1}"] for t in range(THROUGH[name])]
    assert all(math.isfinite(norm) and norm > 0 for norm in norms)
    assert sum(metric.startswith("gradient_norm") for metric in metrics) == len(norms)


def test_the_others_log_none(updated: Any) -> None:
    for name in OTHERS:
        assert not any("gradient_norm" in metric for metric in updated(name)), name
    assert not any("gradient_norm" in metric for metric in updated("dreamer-v2", discrete=True)), "a score function"


@pytest.mark.parametrize("model_name", ["rssm-v3", "rssm-v1"])
def test_maacs_clip_holds_what_comes_back(model_name: str, updated: Any) -> None:
    free = updated("maac", model_name=model_name)
    unmoved = updated("maac", "--agent.step-clip", ".inf", model_name=model_name)
    names = [f"gradient_norm/step_{t}" for t in (1, 2, 3, 4)]
    assert all(free[name] == unmoved[name] == unmoved[name.replace("norm", "norm_clipped")] for name in names)
    limit = free["gradient_norm/step_4"] / 2
    held = updated("maac", "--agent.step-clip", str(limit), model_name=model_name)
    assert held["gradient_norm/step_4"] == free["gradient_norm/step_4"]
    assert all(0 < held[name.replace("norm", "norm_clipped")] <= limit * (1 + 1e-6) for name in names)


def test_a_clip_below_zero_is_refused(debug_run: Any) -> None:
    with pytest.raises(ValueError, match=r"agent\.step_clip: must be 0 or more, not -1"):
        debug_run("maac", None, "--agent.step-clip", "-1")


def test_the_learner_reads_the_norms_when_they_are_there(debug_run: Any, make_spaces: Any, make_batch: Any) -> None:
    run = debug_run("maac", None, "--agent.step-clip", "1e-6")
    model = run.world_model.build(make_spaces())
    learner = Learner(model, run.agent.build(model), run.optimizers, run.world_model.scales, "fp32")
    batch: Sequence = make_batch()
    optimizers = learner.configure_optimizers()
    learner._optimizers = lambda: optimizers  # pyright: ignore[reportAttributeAccessIssue]
    learner.manual_backward = lambda loss: loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(learner.agent, MAAC)
    torch.nn.init.normal_(model.reward_head.mlp.output.weight)
    learner.training_step(Sample(batch, torch.zeros(3, 8, dtype=torch.int64)), 0)
    for t in (1, 2, 3, 4):
        before, after = (learner.metrics[f"agent/gradient_norm{kind}/step_{t}"].item() for kind in ("", "_clipped"))
        assert before > 1e-6 >= after / (1 + 1e-6) > 0
    for name in run.optimizers:
        assert learner.metrics[f"gradient_norm_clipped/{name}"] <= learner.metrics[f"gradient_norm/{name}"]
