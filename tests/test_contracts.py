"""What every world model and every agent of ``configs`` promises, whatever it is made of. Nothing here names one."""

import copy
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import small
import torch
from torch import Generator, Tensor, nn

from agents.base import Agent
from agents.training.config import shipped
from agents.training.learner import parameter_groups, weighted
from worldmodels.base import (
    Decoding,
    Latent,
    Losses,
    Reparameterised,
    Rewarded,
    Sequence,
    Spaces,
    Storing,
    WorldModel,
    map_latent,
)

MODELS, AGENTS = shipped().names("worldmodels"), shipped().names("agents")

each_model = pytest.mark.parametrize("name", MODELS)
each_agent = pytest.mark.parametrize("agent_name", AGENTS)
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])

Build = Callable[..., Any]


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def at(latent: Latent, *index: Any) -> Latent:
    return map_latent(lambda part: part[index], latent)


def awake(module: nn.Module) -> nn.Module:
    small.awake(module, seed=11)
    return module


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """A config with other values of the fields of these names, as far as it or a config in it has them."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    inner = {key: changed(value, changes) for key, value in values.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **inner, **{key: changes[key] for key in changes.keys() & values})


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """A world model by name, awake."""

    def made(name: str, discrete: bool = False, **changes: Any) -> Any:
        config = debug_run("none", name).world_model
        torch.manual_seed(0)
        return awake(changed(config, changes).build(make_spaces(discrete)))

    return made


@pytest.fixture
def pair(build: Build, debug_run: Build) -> Build:
    """An agent and the world model it has by default or that is named; free nats out of the way."""

    def made(agent_name: str, name: str | None = None, discrete: bool = False) -> tuple[Any, Any, Any]:
        run = debug_run(agent_name, name)
        model = build(run.world_model_name, discrete, free_nats=0.0)
        try:
            return run, model, awake(run.agent.build(model))
        except ValueError as error:
            if "needs a world model that is" not in str(error):
                raise
            pytest.skip(str(error))

    return made


def same(a: Latent, b: Latent, **tolerance: float) -> None:
    map_latent(lambda x, y: torch.testing.assert_close(x, y, **tolerance), a, b)


def untouched_global_rng(function: Callable[[], Any]) -> Any:
    """The result; fails if torch's default generator was drawn from."""
    before = torch.get_rng_state()
    result = function()
    assert torch.equal(before, torch.get_rng_state()), "noise did not come from the generator given"
    return result


# ----------------------------------------------------------------------------------------------- world models


@each_model
@both_kinds
def test_shapes_and_types(name: str, discrete: bool, build: Build, make_batch: Build):
    model, batch = build(name, discrete), make_batch(discrete)
    latent = model.filter(batch)
    assert model.features(latent).shape == (3, 8, model.feature_dim)
    assert model.features(latent).dtype == torch.float32
    imagined = model.rollout(at(latent, slice(None), -1), batch.action[:, :5])
    assert model.features(imagined).shape == (3, 5, model.feature_dim)
    stepped = model.imagine(at(latent, slice(None), -1), batch.action[:, 0])
    first = model.initial(3)
    observed = model.observe(first, batch.prev_action, batch.obs[:, 0], batch.is_first[:, 0])
    for one in (stepped, first, observed):
        assert type(one) is type(latent)
        assert model.features(one).shape == (3, model.feature_dim)
        map_latent(lambda x, y: (x.dtype, x.shape[1:]) == (y.dtype, y.shape[2:]) or pytest.fail(str(x)), one, latent)
    assert torch.equal(model.features(at(latent, 1)), model.features(latent)[1])


@each_model
@both_kinds
def test_the_loss_is_named_finite_and_has_its_graph(name: str, discrete: bool, build: Build, make_batch: Build):
    model, batch = build(name, discrete), make_batch(discrete)
    latent, losses = model.loss(batch)
    assert losses.terms.keys() == model.config.scales.keys()
    assert all(term.shape == () and term.isfinite() and term.requires_grad for term in losses.terms.values())
    assert all(value.shape == () and value.isfinite() for value in losses.metrics.values())
    assert not any(value.requires_grad for value in losses.metrics.values())
    features = model.features(latent)
    assert features.shape == (3, 8, model.feature_dim) and features.requires_grad


@each_model
def test_the_posterior_of_the_loss_is_that_of_filter(name: str, build: Build, make_batch: Build, constant_noise: None):
    model, batch = build(name), make_batch()
    same(model.loss(batch)[0], model.filter(batch))


@each_model
@both_kinds
def test_the_future_changes_no_past_latent(name: str, discrete: bool, build: Build, make_batch: Build):
    model, batch = build(name, discrete), make_batch(discrete)
    before = model.filter(batch, generator())
    for t in (1, 4, 7):
        changed, other = type(batch)(*(None if x is None else x.clone() for x in batch)), make_batch(discrete, seed=1)
        for field in ("obs", "reward", "is_first", "is_last", "is_terminal"):
            getattr(changed, field)[:, t:] = getattr(other, field)[:, t:]
        changed.action[:, t - 1 :] = other.action[:, t - 1 :]
        after = model.filter(changed, generator())
        same(at(before, slice(None), slice(t)), at(after, slice(None), slice(t)), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(model.features(before)[:, t], model.features(after)[:, t])


@each_model
def test_the_past_is_remembered_until_an_episode_begins(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    changed = batch._replace(obs=batch.obs.clone())
    changed.obs[:, 0] = 255 - changed.obs[:, 0]
    before, after = (model.features(model.filter(b, generator())) for b in (batch, changed))
    differs = (before - after).abs().amax(-1) > 1e-6
    begun = batch.is_first.cumsum(1) > 0
    assert differs[:, 0].any() and (differs & ~begun)[:, 1:].any()
    assert not (differs & begun).any()


@each_model
def test_elements_of_a_batch_do_not_talk(name: str, build: Build, make_batch: Build):
    model, batch, other = build(name), make_batch(), make_batch(seed=1)
    changed = Sequence(*(None if x is None else torch.cat([y[:1], x[1:]]) for x, y in zip(batch, other, strict=True)))
    before, after = (model.filter(b, generator()) for b in (batch, changed))
    same(at(before, slice(1, None)), at(after, slice(1, None)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.features(before)[0], model.features(after)[0])
    mixed = map_latent(lambda x, y: torch.cat([y[:1, -1], x[1:, -1]]), before, after)
    ends = [model.rollout(start, batch.action, generator()) for start in (at(before, slice(None), -1), mixed)]
    same(at(ends[0], slice(1, None)), at(ends[1], slice(1, None)), rtol=1e-5, atol=1e-5)


@each_model
def test_a_batch_is_its_elements(name: str, build: Build, make_batch: Build, constant_noise: None):
    model, batch = build(name), make_batch()
    whole = model.filter(batch)
    for b in range(3):
        one = model.filter(Sequence(*(None if x is None else x[b : b + 1] for x in batch)))
        same(at(whole, slice(b, b + 1)), one, rtol=1e-4, atol=1e-4)


@each_model
def test_all_noise_comes_from_the_generator(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    first, second = (untouched_global_rng(lambda: model.filter(batch, generator(4))) for _ in range(2))
    same(first, second, rtol=0, atol=0)
    start = at(first, slice(None), -1)
    obs, flags = batch.obs[:, 0], batch.is_first[:, 0]
    for function in (
        lambda: model.imagine(start, batch.action[:, 0], generator(4)),
        lambda: model.observe(start, batch.action[:, 0], obs, flags, generator(4)),
        lambda: model.rollout(start, batch.action, generator(4)),
    ):
        same(untouched_global_rng(function), untouched_global_rng(function), rtol=0, atol=0)


@each_model
def test_an_episode_begins_afresh_in_the_middle_of_a_window(
    name: str, build: Build, make_batch: Build, constant_noise: None
):
    model, batch = build(name), make_batch()
    flags = batch.is_first.clone()
    flags[:, 4] = True
    whole = model.filter(batch._replace(is_first=flags))
    fresh = Sequence(
        *(x[:, 4:] for x in batch._replace(is_first=flags)[:6]), prev_action=torch.full_like(batch.prev_action, 9.9)
    )
    same(at(whole, slice(None), slice(4, None)), model.filter(fresh), rtol=1e-4, atol=1e-4)


@each_model
def test_where_an_episode_begins_latent_and_action_are_ignored(
    name: str, build: Build, make_batch: Build, constant_noise: None
):
    model, batch = build(name), make_batch()
    old, first = at(model.filter(batch), slice(None), -1), torch.ones(3, dtype=torch.bool)
    ignored = model.observe(old, batch.action[:, -1], batch.obs[:, 0], first)
    same(ignored, model.observe(model.initial(3), torch.zeros_like(batch.prev_action), batch.obs[:, 0], first))
    kept = model.observe(old, batch.action[:, -1], batch.obs[:, 0], ~first)
    assert not torch.allclose(model.features(kept), model.features(ignored))


@each_model
@both_kinds
def test_filter_is_observe_again_and_again(
    name: str, discrete: bool, build: Build, make_batch: Build, constant_noise: None
):
    model, batch = build(name, discrete), make_batch(discrete)
    whole, latent, action = model.filter(batch), model.initial(3), batch.prev_action
    for t in range(8):
        latent = model.observe(latent, action, batch.obs[:, t], batch.is_first[:, t])
        same(latent, at(whole, slice(None), t), rtol=1e-4, atol=1e-4)
        action = batch.action[:, t]


@each_model
@both_kinds
def test_rollout_is_imagine_again_and_again(
    name: str, discrete: bool, build: Build, make_batch: Build, constant_noise: None
):
    model, batch = build(name, discrete), make_batch(discrete)
    latent = at(model.filter(batch), slice(None), 2)
    whole = model.rollout(latent, batch.action)
    for t in range(8):
        latent = model.imagine(latent, batch.action[:, t])
        same(latent, at(whole, slice(None), t), rtol=1e-4, atol=1e-4)


@each_model
def test_a_dream_is_differentiable_in_actions_and_latent(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    start = map_latent(lambda x: x[:, 0].detach().requires_grad_(x.is_floating_point()), model.filter(batch))
    actions = batch.action[:, :3].clone().requires_grad_()
    features = model.features(model.rollout(start, actions))
    weight = torch.randn(features[:, -1].shape, generator=generator())  # a sum of features can be constant
    gradient, *others = torch.autograd.grad((features[:, -1] * weight).sum(), [actions, *start], allow_unused=True)
    assert (gradient[:, 0].abs().sum(-1) > 0).all()
    assert any(g is not None and g.abs().sum() > 0 for g in others)


@each_model
@both_kinds
def test_a_step_taken_again_has_the_observed_value_and_the_imagined_gradient(
    name: str, discrete: bool, build: Build, make_batch: Build
):
    model, batch = build(name, discrete), make_batch(discrete)
    if not isinstance(model, Reparameterised):
        pytest.skip("takes no step again")
    start = map_latent(lambda x: x[:, 2].detach().requires_grad_(x.is_floating_point()), model.filter(batch))
    action = batch.action[:, 2].clone().requires_grad_()
    imagined = model.imagine(start, action, generator(4))
    observed = map_latent(lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), imagined)
    again = model.reenact(start, action, observed)
    same(again, imagined, rtol=0, atol=0)
    weight = torch.randn(model.features(again).shape, generator=generator())
    gradients = [
        torch.autograd.grad((model.features(step) * weight).sum(), [action, *start], allow_unused=True)
        for step in (imagined, again)
    ]
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert (gradients[1][0].abs().sum(-1) > 0).all()
    assert not any(touched((model.features(model.reenact(start, action, observed)) * weight).sum(), list(observed)))


@each_model
def test_rewards_and_ends_are_predicted_for_any_leading_shape(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    if not isinstance(model, Rewarded):
        pytest.skip("predicts no rewards")
    latent = model.filter(batch)
    reward, continues = model.reward(latent), model.continues(latent)
    assert reward.shape == continues.shape == (3, 8) and reward.dtype == continues.dtype == torch.float32
    assert reward.isfinite().all() and ((continues >= 0) & (continues <= 1)).all()
    large = reward.abs().max().item()  # two-hot means are differences of numbers up to 5e8
    torch.testing.assert_close(model.reward(at(latent, slice(None), 2)), reward[:, 2], rtol=1e-3, atol=1e-5 * large)
    torch.testing.assert_close(model.continues(at(latent, slice(None), 2)), continues[:, 2])


@each_model
def test_images_are_drawn_for_any_leading_shape(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    if not isinstance(model, Decoding):
        pytest.skip("draws nothing")
    latent = model.loss(batch)[0]
    image = model.decode(latent)
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 64, 64, 3)
    one = model.decode(at(latent, slice(None), 2))
    assert one.shape == (3, 64, 64, 3)
    assert (one.int() - image[:, 2].int()).abs().max() <= 1  # a rounding apart, at most
    assert image.float().std() > 0


@each_model
def test_packing_gives_back_the_latent_to_bfloat16(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    if not isinstance(model, Storing):
        pytest.skip("keeps no latents")
    for size in (1, 3):
        latent = at(model.loss(batch)[0], slice(size))
        packed = model.pack(latent)
        assert packed.dtype == torch.uint8 and packed.shape == (size, 8, model.packed_bytes)
        assert not packed.requires_grad
        back = model.unpack(packed)
        same(back, map_latent(torch.Tensor.detach, latent), rtol=2**-8, atol=1e-6)
        assert torch.equal(model.pack(back), packed)
        same(model.unpack(packed[:, 0]), at(back, slice(None), 0), rtol=1e-5, atol=1e-5)  # some of it may be computed


@each_model
def test_a_window_with_context_goes_on_where_the_longer_one_was(
    name: str, build: Build, make_batch: Build, constant_noise: None
):
    model, batch = build(name), make_batch(length=10)
    if not isinstance(model, Storing):
        pytest.skip("keeps no latents")
    batch = batch._replace(is_first=torch.zeros_like(batch.is_first))
    whole = model.filter(batch)
    packed = model.pack(at(whole, slice(None), 5))
    window = Sequence(*(x[:, 6:] for x in batch[:6]), prev_action=batch.action[:, 5], context=packed)
    first = model.filter(window)
    exact = model.observe(model.unpack(packed), batch.action[:, 5], batch.obs[:, 6], batch.is_first[:, 6])
    same(at(first, slice(None), 0), exact, rtol=1e-4, atol=1e-4)
    wanted = model.features(whole)[:, 6]
    near, far = (
        (model.features(model.filter(w))[:, 0] - wanted).abs().mean() for w in (window, window._replace(context=None))
    )
    assert near < 0.01 and near < 0.2 * far
    fresh = window._replace(is_first=torch.ones_like(window.is_first))
    same(model.filter(fresh), model.filter(fresh._replace(context=torch.zeros_like(packed))), rtol=0, atol=0)


@each_model
def test_saved_weights_make_the_same_model(name: str, build: Build, make_batch: Build):
    model, other, batch = build(name), build(name), make_batch()
    for parameter in other.parameters():
        parameter.data += 1.0
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    same(model.filter(batch, generator()), other.filter(batch, generator()), rtol=0, atol=0)


@each_model
def test_a_copy_is_equal_and_independent(name: str, build: Build, make_batch: Build):
    model, batch = build(name), make_batch()
    before, clone = model.filter(batch, generator()), copy.deepcopy(model)
    same(before, clone.filter(batch, generator()), rtol=0, atol=0)
    for parameter in clone.parameters():
        parameter.data.zero_()
    same(before, model.filter(batch, generator()), rtol=0, atol=0)


@each_model
def test_low_precision_is_close_and_keeps_latents_in_float32(
    name: str, build: Build, make_batch: Build, constant_noise: None
):
    model, batch = build(name), make_batch()
    latent, losses = model.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        low_latent, low_losses = model.loss(batch)
    map_latent(lambda x, y: x.dtype == y.dtype or pytest.fail(f"{y.dtype}"), latent, low_latent)
    assert all(term.dtype == torch.float32 for term in low_losses.terms.values())
    total, low = (weighted(x, model.config.scales, "").item() for x in (losses, low_losses))
    assert low == pytest.approx(total, rel=0.02)


@each_model
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_moves_to_the_gpu(name: str, build: Build, make_batch: Build):
    model, batch = build(name).cuda(), make_batch()
    batch = Sequence(*(None if x is None else x.cuda() for x in batch))
    for enabled in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            latent, losses = model.loss(batch)
            model.rollout(at(latent, slice(None), -1), batch.action, Generator("cuda").manual_seed(0))
        map_latent(lambda x: x.is_cuda and x.dtype != torch.bfloat16 or pytest.fail(f"{x.dtype} {x.device}"), latent)
        weighted(losses, model.config.scales, "").backward()


# ----------------------------------------------------------------------------------------------------- agents


@each_agent
@both_kinds
def test_actions_are_valid_and_follow_the_generator(
    agent_name: str, discrete: bool, pair: Build, make_batch: Build, make_spaces: Build
):
    _, model, agent = pair(agent_name, None, discrete)
    latent = at(model.filter(make_batch(discrete), generator()), slice(None), -1)
    for explore in (True, False):

        def act(seed: int, explore: bool = explore) -> Tensor:
            g, carry, actions = generator(seed), agent.initial(3, torch.device("cpu")), []
            for _ in range(3):
                action, carry = agent.act(model, latent, carry, explore=explore, generator=g)
                actions.append(action)
            return torch.stack(actions)

        with torch.no_grad():
            actions = untouched_global_rng(lambda act=act: act(0))
            torch.manual_seed(99)
            assert torch.equal(actions, act(0))
            assert not explore or not torch.equal(actions, act(1))
        assert actions.shape == (3, 3, make_spaces().action_dim) and actions.dtype == torch.float32
        assert (actions.abs() <= 1).all()
        if discrete:
            assert torch.equal(actions.sum(-1), torch.ones(3, 3)) and set(actions.unique().tolist()) <= {0.0, 1.0}


@each_agent
def test_a_saved_agent_acts_the_same(agent_name: str, pair: Build, make_batch: Build):
    _, model, agent = pair(agent_name)
    _, _, other = pair(agent_name)
    for parameter in other.parameters():
        parameter.data += 1.0
    other.load_state_dict(agent.state_dict(), strict=True)
    latent = at(model.filter(make_batch(), generator()), slice(None), -1)
    actions = [
        a.act(model, latent, a.initial(3, torch.device("cpu")), explore=False, generator=generator())[0]
        for a in (agent, other, copy.deepcopy(agent))
    ]
    assert torch.equal(actions[0], actions[1]) and torch.equal(actions[0], actions[2])


def experienced(model: WorldModel, agent: Agent, latent: Latent) -> None:
    """Let it act where the batch ends, so that an agent that learns from its own plans has made some."""
    now, carry = map_latent(lambda part: part[:, -1].detach(), latent), agent.initial(3, torch.device("cpu"))
    with torch.no_grad():
        for i in range(2):
            action, carry = agent.act(model, now, carry, explore=True, generator=generator(i))
            agent.collected(model.features(now), action, carry, torch.full((3,), i == 0))


def touched(term: Tensor, parameters: list[Tensor]) -> list[bool]:
    gradients = torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True)
    return [g is not None and bool((g != 0).any()) for g in gradients]


@each_agent
@each_model
@both_kinds
def test_gradients_reach_what_they_should_and_nothing_else(
    agent_name: str, name: str, discrete: bool, pair: Build, make_batch: Build
):
    run, model, agent = pair(agent_name, name, discrete)
    batch = make_batch(discrete)
    trainable = {id(p): p.requires_grad for m in (model, agent) for p in m.parameters()}
    latent, model_losses = model.loss(batch)
    experienced(model, agent, latent)
    losses = agent.loss(model, latent, batch)
    agent.after_update(1)
    assert trainable == {id(p): p.requires_grad for m in (model, agent) for p in m.parameters()}

    assert losses.terms.keys() == agent.scales.keys() >= agent.teaches
    assert all(term.shape == () and term.isfinite() for term in losses.terms.values())
    assert all(v.shape == () and v.isfinite() and not v.requires_grad for v in losses.metrics.values())
    for term_name, term in losses.terms.items():
        reaches = any(touched(term, list(model.parameters())))
        assert reaches == (term_name in agent.teaches), term_name
        part = term_name.split("_")[-1]  # a term named for a part of the agent teaches that part alone
        if part in dict(agent.named_children()):
            others = [p for n, p in agent.named_parameters() if p.requires_grad and not n.startswith(f"{part}.")]
            assert not others or not any(touched(term, others)), term_name
    total = weighted(model_losses, run.world_model.scales, "model") + weighted(losses, agent.scales, "agent")
    everything = {f"{room}.{n}": p for room, m in (("model", model), ("agent", agent)) for n, p in m.named_parameters()}
    learning = {n: p for n, p in everything.items() if p.requires_grad}
    found = touched(total, list(learning.values()))
    assert [n for n, reached in zip(learning, found, strict=True) if not reached] == []


@each_agent
@both_kinds
def test_gradients_reach_everything_in_low_precision(agent_name: str, discrete: bool, pair: Build, make_batch: Build):
    """Casts of weights are cached: one made without gradients must not be used where they are wanted."""
    run, model, agent = pair(agent_name, None, discrete)
    batch = make_batch(discrete)
    experienced(model, agent, model.filter(batch))
    with torch.autocast("cpu", torch.bfloat16):
        latent, model_losses = model.loss(batch)
        losses = agent.loss(model, latent, batch)
    total = weighted(model_losses, run.world_model.scales, "model") + weighted(losses, agent.scales, "agent")
    learning = [p for m in (model, agent) for p in m.parameters() if p.requires_grad]
    assert total.isfinite() and all(touched(total, learning))


@each_agent
def test_the_optimizers_of_the_config_train_everything_once(agent_name: str, pair: Build):
    run, model, agent = pair(agent_name)
    groups = parameter_groups(model, agent, list(run.optimizers))
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for m in (model, agent) for p in m.parameters() if p.requires_grad)


class Bare(WorldModel):
    """Has no capability at all."""

    spaces, feature_dim = Spaces((64, 64, 3), 3, False), 5

    def initial(self, batch: int) -> Latent: ...

    def observe(self, latent: Latent, *_: Any) -> Latent: ...

    imagine = features = filter = rollout = observe

    def loss(self, batch: Sequence) -> tuple[Latent, Losses]: ...


@each_agent
def test_a_model_that_lacks_a_capability_is_refused_in_one_line(agent_name: str, pair: Build):
    run, _, agent = pair(agent_name)
    if not type(agent).needs:
        assert isinstance(run.agent.build(Bare()), Agent)
        return
    with pytest.raises(ValueError, match=type(agent).needs[0].__name__) as error:
        run.agent.build(Bare())
    assert "\n" not in str(error.value) and "--world-model" in str(error.value)
