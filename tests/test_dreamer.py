"""Dreamer V1, V2 and V3 against slow references and finite differences, in worlds small enough to write down."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from agents import dreamer, dreamer_v1, dreamer_v2
from agents.actor import Actor, ActorConfig, random_actions
from agents.base import Agent, frozen, move_target
from agents.dreamer import ReturnRange
from agents.imagination import dream, flatten_posterior
from worldmodels.base import Losses, Rewarded, Sequence, Spaces, WorldModel
from worldmodels.heads import HeadConfig

DISCOUNT, LAM, HORIZON = 0.9, 0.95, 4


class World(WorldModel, Rewarded):
    """What the small worlds leave out."""

    def observe(self, latent, prev_action, obs, is_first, generator=None):
        raise NotImplementedError

    def loss(self, batch: Sequence) -> tuple[NamedTuple, Losses]:
        raise NotImplementedError

    filter = rollout = observe


class Time(NamedTuple):
    time: Tensor  # [*B], a whole number


class Clock(World):
    """Time goes on whatever one does; reward and end of an episode are in a table, features are the time as one-hot."""

    def __init__(self, length: int = 12, discrete: bool = False):
        super().__init__()
        self.spaces = Spaces(image=(64, 64, 3), action_dim=2, discrete=discrete)
        self.feature_dim = length
        g = torch.Generator().manual_seed(3)
        self.rewards = nn.Parameter(torch.randn(length, generator=g))
        self.going_on = nn.Parameter(torch.rand(length, generator=g))
        self.actions: list[Tensor] = []

    def initial(self, batch: int) -> Time:
        return Time(torch.zeros(batch))

    def imagine(self, latent: Time, action: Tensor, generator=None) -> Time:
        self.actions.append(action.detach())
        return Time(latent.time + 1)

    def features(self, latent: Time) -> Tensor:
        return nn.functional.one_hot(latent.time.long(), self.feature_dim).to(self.rewards.dtype)

    def reward(self, latent: Time) -> Tensor:
        return self.rewards[latent.time.long()]

    def continues(self, latent: Time) -> Tensor:
        return self.going_on[latent.time.long()]


class Point(NamedTuple):
    x: Tensor


class Linear(World):
    """x' = A x + B a + noise; reward c x; the episode goes on with a probability that is the same everywhere."""

    def __init__(self, size: int = 3, actions: int = 2, going_on: float = 0.97):
        super().__init__()
        self.spaces = Spaces(image=(64, 64, 3), action_dim=actions, discrete=False)
        self.feature_dim = size
        g = torch.Generator().manual_seed(5)
        self.a = nn.Parameter(0.5 * torch.randn(size, size, generator=g))
        self.b = nn.Parameter(torch.randn(size, actions, generator=g))
        self.c = nn.Parameter(torch.randn(size, generator=g))
        self.going_on = going_on

    def initial(self, batch: int) -> Point:
        return Point(torch.zeros(batch, self.feature_dim))

    def imagine(self, latent: Point, action: Tensor, generator=None) -> Point:
        return Point(latent.x @ self.a.T + action @ self.b.T + 0.1 * torch.randn(latent.x.shape, generator=generator))

    def features(self, latent: Point) -> Tensor:
        return latent.x

    def reward(self, latent: Point) -> Tensor:
        return latent.x @ self.c

    def continues(self, latent: Point) -> Tensor:
        return torch.full(latent.x.shape[:-1], self.going_on)


def actor_config(layers: int = 0, continuous: str = "bounded_normal", **changes) -> ActorConfig:
    values = dict(
        layers=layers, units=8, norm="none", activation="elu", output_scale=1.0, continuous=continuous, unimix=0.01,
        exploration_noise=0.0, evaluation="mode",
    )  # fmt: skip
    return ActorConfig(**(values | changes))  # pyright: ignore[reportArgumentType]


def critic_config(layers: int = 0) -> HeadConfig:
    return HeadConfig(layers=layers, units=8, norm="none", activation="elu", output="normal", output_scale=1.0)


def v1(model: WorldModel, layers: int = 0) -> dreamer_v1.DreamerV1:
    return dreamer_v1.Config(
        actor=actor_config(layers, "tanh_normal"), critic=critic_config(layers), imagination_horizon=HORIZON,
        discount=DISCOUNT, lam=LAM, scales={"actor": 1.0, "critic": 1.0},
    ).build(model)  # fmt: skip


def v2(model: WorldModel, gradient: str = "auto", layers: int = 0) -> dreamer_v2.DreamerV2:
    return dreamer_v2.Config(
        actor=actor_config(layers, "truncated_normal"), critic=critic_config(layers), imagination_horizon=HORIZON,
        actor_gradient=gradient, discount=DISCOUNT, lam=LAM, entropy=0.1, slow_every=100,  # pyright: ignore
        scales={"actor": 1.0, "critic": 1.0},
    ).build(model)  # fmt: skip


def v3(model: WorldModel, starts: int = 0) -> dreamer.Dreamer:
    return dreamer.Config(
        actor=actor_config(), critic=critic_config(), imagination_horizon=HORIZON, imagination_starts=starts,
        discount=DISCOUNT, lam=LAM, entropy=0.1, return_rate=0.5, return_floor=1.0, slow_rate=0.02, slow_weight=0.7,
        scales={"actor": 1.0, "critic": 1.0, "replay_critic": 0.3},
    ).build(model)  # fmt: skip


def tables(agent: Agent) -> tuple[Tensor, Tensor]:
    """Values and slow values of every time, made different."""
    slow = agent.slow_critic if hasattr(agent, "slow_critic") else agent.critic
    nn.init.normal_(slow.mlp.output.weight)
    return agent.critic(torch.eye(12)).mean, slow(torch.eye(12)).mean


def starts(make_batch: Callable[..., Sequence], discrete: bool = False) -> tuple[Time, Sequence]:
    """A batch [2, 5] with a time limit and a terminal step in it, and its latents."""
    batch = make_batch(discrete, size=2, length=5)
    return Time(torch.randint(0, 8, (2, 5), generator=torch.Generator().manual_seed(1)).float()), batch._replace(
        action=batch.action[..., :2], prev_action=batch.prev_action[..., :2]
    )


def assert_same(got: Tensor, expected: Tensor, parameters: list[Tensor]) -> None:
    """Values and gradients."""
    torch.testing.assert_close(got, expected)
    a, b = (torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (got, expected))
    assert any(g is not None and (g != 0).any() for g in b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(torch.zeros(()) if x is None else x, torch.zeros(()) if y is None else y)


# --------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(("discrete", "last"), [(False, 0), (True, 0), (False, 3), (True, 2)])
def test_v3_agrees_with_its_equations(discrete: bool, last: int, make_batch):
    """``last`` steps of each sequence start dreams and are replayed, or all."""
    model = Clock(discrete=discrete)
    agent, (latent, batch) = v3(model, last), starts(make_batch, discrete)
    value, slow = tables(agent)
    terms = agent.loss(model, latent, batch).terms
    r, c, v = model.rewards.detach(), model.going_on.detach(), value.detach()
    actions = torch.stack(model.actions, 1)
    latent, batch = Time(latent.time[:, -last:]), Sequence(*(x[:, -last:] for x in batch[:6]), batch.prev_action)
    returns, weights = (torch.zeros(latent.time.numel(), HORIZON) for _ in range(2))
    for n, t0 in enumerate(latent.time.flatten().int().tolist()):
        ahead = v[t0 + HORIZON]
        for t in reversed(range(HORIZON)):
            s = t0 + t + 1
            ahead = returns[n, t] = r[s] + DISCOUNT * c[s] * ((1 - LAM) * v[s] + LAM * ahead)
            weights[n, t] = torch.prod(DISCOUNT * c[t0 : t0 + t + 1])
    times = latent.time.flatten().long()[:, None] + torch.arange(HORIZON)
    range_ = 0.5 * (torch.quantile(returns, 0.95) - torch.quantile(returns, 0.05))  # from 0, at a rate of 0.5
    advantage = (returns - v[times]) / range_.clamp_min(1)
    policy = reference_policy(agent.actor, nn.functional.one_hot(times, 12).float())
    log_prob, entropy = policy.log_prob(actions), policy.entropy()
    everything = list(agent.parameters())[:-2]  # the slow critic's two have no gradient
    assert_same(terms["actor"], -(weights * (log_prob * advantage + 0.1 * entropy)).mean(), everything)
    now = value[times]
    critic = weights * ((now - returns) ** 2 + 0.7 * (now - slow[times].detach()) ** 2) / 2
    assert_same(terms["critic"], critic.mean(), everything)
    boot, when = returns[:, 0].reshape(latent.time.shape), latent.time.long()
    assert_same(terms["replay_critic"], reference_replay(batch, boot, value[when], slow[when]), everything)


def test_v3_refuses_to_replay_a_single_step(debug_run):
    with pytest.raises(ValueError, match=r"agent\.imagination_starts: must be 0 or at least 2"):
        debug_run("dreamer", None, "agent.imagination_starts=1")
    assert debug_run("dreamer", None, "agent.imagination_starts=2").agent.imagination_starts == 2


def reference_policy(actor: Actor, features: Tensor) -> td.Distribution:
    raw = actor.mlp(features)
    if actor.spaces.discrete:
        return td.OneHotCategorical(probs=0.99 * raw.softmax(-1) + 0.01 / raw.shape[-1])
    mean, std = raw.chunk(2, -1)
    return td.Independent(td.Normal(mean.tanh(), 0.9 * (std + 2).sigmoid() + 0.1), 1)


def reference_replay(batch: Sequence, boot: Tensor, value: Tensor, slow: Tensor) -> Tensor:
    """DreamerV3's replay loss, step by step: nothing follows a terminal step, a time limit is followed by its value."""
    total, (size, length) = torch.zeros(()), batch.reward.shape
    for b in range(size):
        ahead = boot[b, -1]
        for t in reversed(range(length - 1)):
            after = (1 - LAM) * boot[b, t + 1] + LAM * ahead
            if batch.is_last[b, t + 1]:
                after = boot[b, t + 1]
            if batch.is_terminal[b, t + 1]:
                after = torch.zeros(())
            ahead = batch.reward[b, t + 1] + DISCOUNT * after
            if not batch.is_last[b, t]:  # the step after it belongs to another episode
                total = total + (value[b, t] - ahead) ** 2 / 2 + 0.7 * (value[b, t] - slow[b, t].detach()) ** 2 / 2
    return total / (size * (length - 1))


@pytest.mark.parametrize(
    ("is_last", "is_terminal", "expected"),
    [
        ([], [], [33.274225, 36.695, 39.0]),
        ([2], [2], [3.61, 2.0, None]),
        ([2], [], [26.695, 29.0, None]),
    ],
)
def test_v3_replay_targets_golden_values(is_last, is_terminal, expected):
    """Rewards 9, 1, 2, 3 and bootstraps 10, 20, 30, 40; a step that ends an episode is no target."""
    agent = v3(Clock())
    flags = torch.zeros(2, 1, 4, dtype=torch.bool)
    flags[0, 0, is_last], flags[1, 0, is_terminal] = True, True
    batch = Sequence(
        obs=torch.zeros(1, 4, 64, 64, 3, dtype=torch.uint8), action=torch.zeros(1, 4, 2),
        reward=torch.tensor([[9.0, 1, 2, 3]]), is_first=torch.zeros(1, 4, dtype=torch.bool),
        is_last=flags[0], is_terminal=flags[1], prev_action=torch.zeros(1, 2),
    )  # fmt: skip
    features = torch.eye(12)[:4][None]
    agent.critic.mlp.output.weight = nn.Parameter(torch.zeros(1, 12))
    agent.slow_critic.mlp.output.weight.data.zero_()
    loss = agent._replay_loss(features, batch, torch.tensor([[10.0, 20, 30, 40]]))
    (gradient,) = torch.autograd.grad(loss, agent.critic.mlp.output.weight)  # -target / 3 where a step counts
    got = (-3 * gradient[0, :3]).tolist()
    assert got == pytest.approx([0.0 if e is None else e for e in expected])


def test_v1_agrees_with_its_equations(make_batch):
    model = Clock()
    agent, (latent, batch) = v1(model), starts(make_batch)
    value, _ = tables(agent)
    terms = agent.loss(model, latent, batch).terms
    r, c, v = model.rewards.detach(), DISCOUNT * model.going_on.detach(), value.detach()
    actor, critic = torch.zeros(()), torch.zeros(())
    for t0 in latent.time.flatten().int().tolist():
        ahead = v[t0 + HORIZON]
        for s in reversed(range(t0 + 1, t0 + HORIZON)):  # the start is not among the states, the last one bootstraps
            ahead = r[s] + c[s] * ((1 - LAM) * v[s + 1] + LAM * ahead)
            weight = torch.prod(c[t0 + 1 : s])
            actor, critic = actor - weight * ahead, critic + weight * (value[s] - ahead) ** 2 / 2
    torch.testing.assert_close(terms["actor"], actor / (10 * (HORIZON - 1)))
    assert_same(terms["critic"], critic / (10 * (HORIZON - 1)), list(agent.parameters()))


@pytest.mark.parametrize("discrete", [False, True])
def test_v2_agrees_with_its_equations(discrete: bool, make_batch):
    model = Clock(discrete=discrete)
    agent, (latent, batch) = v2(model, "score"), starts(make_batch, discrete)
    value, slow = tables(agent)
    terms = agent.loss(model, latent, batch).terms
    r, c, v = model.rewards.detach(), DISCOUNT * model.going_on.detach(), slow.detach()
    actor, critic = torch.zeros(()), torch.zeros(())
    for n, t0 in enumerate(latent.time.flatten().int().tolist()):
        target, ahead = {}, v[t0 + HORIZON]
        for t in reversed(range(HORIZON)):
            s = t0 + t
            ahead = target[t] = r[s] + c[s] * ((1 - LAM) * v[s + 1] + LAM * ahead)
            critic = critic + torch.prod(c[t0:s]) * (value[s] - ahead) ** 2 / 2
        for t in range(HORIZON - 1):
            policy = agent.actor(nn.functional.one_hot(torch.tensor([t0 + t]), 12).float())
            log_prob = policy.log_prob(model.actions[t][n : n + 1])
            objective = log_prob * (target[t + 1] - v[t0 + t]) + 0.1 * policy.entropy()
            actor = actor - torch.prod(c[t0 : t0 + t]) * objective.sum()
    everything = list(agent.parameters())[:-2]
    assert_same(terms["actor"], actor / (10 * (HORIZON - 1)), everything)
    assert_same(terms["critic"], critic / (10 * HORIZON), everything)


@pytest.mark.parametrize(("make", "last_that_counts"), [(v1, 2), (v2, 2), (v3, 1)])
def test_nothing_beyond_a_predicted_end_has_weight(make, last_that_counts: int, make_batch):
    """The episode certainly ends at time 2 and the dream begins at 0."""
    model = Clock()
    model.going_on.data[2] = 0.0
    agent = make(model)
    value, _ = tables(agent)
    batch = make_batch(size=2, length=5)
    batch = batch._replace(action=batch.action[..., :2], prev_action=batch.prev_action[..., :2])
    critic = agent.loss(model, Time(torch.zeros(2, 5)), batch).terms["critic"]
    (gradient,) = torch.autograd.grad(critic, agent.critic.mlp.output.weight)
    assert gradient[0, last_that_counts] != 0 and (gradient[0, last_that_counts + 1 :] == 0).all()


# ------------------------------------------------------------------------------------------ gradients of the actor


@pytest.mark.parametrize("make", [v1, lambda model, layers: v2(model, "pathwise", layers)], ids=["v1", "v2"])
def test_the_pathwise_gradient_is_that_of_finite_differences(make, make_batch, double: None):
    """In a linear world. What the policy sees is held at what it saw at first: that path is detached (V1)."""
    model = Linear()
    agent = make(model, layers=1)
    _, batch = starts(make_batch)
    latent = Point(torch.randn(2, 5, 3))
    original, seen = agent.actor.forward, []

    def loss(features: list[Tensor] | None) -> Tensor:
        torch.manual_seed(7)
        replayed = iter(features or [])

        def forward(feature: Tensor) -> object:
            seen.append(feature.detach())
            return original(next(replayed) if features else feature)

        agent.actor.forward = forward
        return agent.loss(model, latent, batch).terms["actor"]

    parameters = list(agent.actor.parameters())
    gradient = torch.autograd.grad(loss(None), parameters)
    first = list(seen)
    for parameter, got in zip(parameters, gradient, strict=True):
        direction = torch.randn_like(parameter)
        ends = []
        for epsilon in (1e-5, -1e-5):
            parameter.data += epsilon * direction
            ends.append(loss(first).item())
            parameter.data -= epsilon * direction
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs(expected) > 1e-4
        assert (got * direction).sum().item() == pytest.approx(expected, rel=1e-5)


def test_score_mode_does_not_differentiate_the_dynamics(make_batch):
    """The pathwise gradient depends on how the action drives the state, the score gradient only on what came out."""
    _, batch = starts(make_batch)
    latent = Point(torch.randn(2, 5, 3))
    for gradient in ("score", "pathwise"):
        model = Linear()
        agent = v2(model, gradient, layers=1)
        flags = []
        imagine = model.imagine
        model.imagine = lambda *args: flags.append(torch.is_grad_enabled()) or imagine(*args)  # noqa: B023
        actor = agent.loss(model, latent, batch).terms["actor"]
        assert set(flags) == {gradient == "pathwise"}
        found = torch.autograd.grad(actor, list(model.parameters()), allow_unused=True, retain_graph=True)
        assert found == (None, None, None)
        assert torch.autograd.grad(actor, agent.actor.mlp.output.weight)[0].abs().sum() > 0


def test_v2_chooses_the_gradient_by_the_kind_of_action():
    assert v2(Clock(discrete=False)).pathwise and not v2(Clock(discrete=True)).pathwise
    assert v2(Clock(discrete=True), "pathwise").pathwise and not v2(Clock(), "score").pathwise


@pytest.mark.parametrize("make", [v1, v2, v3])
def test_an_actor_step_leaves_the_world_model_and_the_critic_as_they_were(make, make_batch):
    model = Linear()
    agent = make(model)
    _, batch = starts(make_batch)
    before = {name: p.detach().clone() for m in (model, agent) for name, p in m.named_parameters()}
    optimizer = torch.optim.SGD([p for m in (model, agent) for p in m.parameters() if p.requires_grad], 0.1)
    agent.loss(model, Point(torch.randn(2, 5, 3)), batch).terms["actor"].backward()
    optimizer.step()
    changed = {name for m in (model, agent) for name, p in m.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith("actor.") for name in changed)
    assert all(p.requires_grad for p in model.parameters()), "frozen was not undone"


# ------------------------------------------------------------------------------------- scales, targets, dreams


def test_the_return_range_is_the_distance_of_percentiles_from_zero_up():
    scale = ReturnRange(0.01, 1.0)
    returns = torch.arange(0, 1001.0).reshape(7, -1)
    assert scale(returns).item() == pytest.approx(9.0) and scale.value.item() == pytest.approx(9.0)
    assert scale(returns).item() == pytest.approx(0.99 * 9 + 9)


def test_advantages_do_not_depend_on_the_scale_of_rewards():
    returns = 10 * torch.randn(64, 15)
    small, large = ReturnRange(0.01, 1.0), ReturnRange(0.01, 1.0)
    for _ in range(700):
        a, b = returns / small(returns), 1000 * returns / large(1000 * returns)
    torch.testing.assert_close(a, b, rtol=0.01, atol=0)
    assert small.value.item() == pytest.approx((returns.quantile(0.95) - returns.quantile(0.05)).item(), rel=0.01)


def test_tiny_returns_are_not_scaled_up():
    scale = ReturnRange(0.01, 1.0)
    for _ in range(1000):
        assert scale(1e-3 * torch.randn(64)).item() == 1.0


def test_the_return_range_is_saved():
    scale, other = ReturnRange(0.01, 1.0), ReturnRange(0.01, 1.0)
    scale(torch.arange(1000.0))
    other.load_state_dict(scale.state_dict())
    assert other.value == scale.value > 0


def test_v3_slow_critic_follows_as_a_moving_average():
    agent = v3(Clock())
    for p in agent.critic.parameters():
        nn.init.constant_(p, 3.0)
    for p in agent.slow_critic.parameters():
        nn.init.zeros_(p)
    for n in range(1, 51):
        agent.after_update(n)
    for p in agent.slow_critic.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 3 * (1 - 0.98**50)))


def test_v2_slow_critic_is_copied_every_100_updates():
    agent = v2(Clock())
    assert torch.equal(agent.slow_critic.mlp.output.weight, agent.critic.mlp.output.weight)
    before = agent.slow_critic.mlp.output.weight.clone()
    nn.init.normal_(agent.critic.mlp.output.weight)
    for n in range(1, 100):
        agent.after_update(n)
    assert torch.equal(agent.slow_critic.mlp.output.weight, before)
    agent.after_update(100)
    assert torch.equal(agent.slow_critic.mlp.output.weight, agent.critic.mlp.output.weight)
    assert not agent.slow_critic.mlp.output.weight.requires_grad


def test_move_target_at_rate_one_copies_exactly():
    source, target = nn.Linear(7, 7), nn.Linear(7, 7)
    move_target(target, source, 1.0)
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, source.bias)


def test_frozen_lets_gradients_pass_and_restores_flags():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)
    with frozen(layer):
        out = layer(x).sum()
    out.backward()
    assert layer.weight.grad is None and x.grad is not None and x.grad.abs().sum() > 0
    assert layer.weight.requires_grad and not layer.bias.requires_grad
    with pytest.raises(RuntimeError), frozen(layer, layer):
        raise RuntimeError
    assert layer.weight.requires_grad and not layer.bias.requires_grad


def test_a_dream_starts_at_its_start_and_actions_lead_to_the_next_latent():
    model = Linear()
    start = Point(torch.randn(6, 3))
    policy = nn.Linear(3, 2)
    dreamed = dream(model, policy, start, 5, torch.Generator().manual_seed(2))
    assert dreamed.features.shape == (6, 6, 3) and dreamed.action.shape == (6, 5, 2)
    assert torch.equal(dreamed.latent.x[:, 0], start.x)
    torch.testing.assert_close(dreamed.action, policy(dreamed.features[:, :-1]))
    g, latent = torch.Generator().manual_seed(2), start
    for t in range(5):
        latent = model.imagine(latent, dreamed.action[:, t], g)
        assert torch.equal(latent.x, dreamed.latent.x[:, t + 1])
    (gradient,) = torch.autograd.grad(dreamed.action[:, 3].sum(), policy.weight)
    torch.testing.assert_close(gradient, dreamed.features[:, 3].detach().sum(0).expand(2, 3))


def test_flatten_posterior_keeps_order_and_drops_the_graph():
    x = torch.randn(2, 5, 3, requires_grad=True)
    flat = flatten_posterior(Point(x * 1))
    assert torch.equal(flat.x, x.reshape(10, 3)) and not flat.x.requires_grad


# --------------------------------------------------------------------------------------------------- the actor


def test_exploration_noise_on_continuous_actions_is_normal_and_clipped():
    actor = Actor(3, Spaces((64, 64, 3), 2, False), actor_config(exploration_noise=0.3))
    nn.init.zeros_(actor.mlp.output.weight)
    features, g = torch.randn(20_000, 3), torch.Generator().manual_seed(0)
    assert torch.equal(actor.act(features, explore=False, generator=g), torch.zeros(20_000, 2))
    quiet = Actor(3, Spaces((64, 64, 3), 2, False), actor_config())
    nn.init.zeros_(quiet.mlp.output.weight)
    quiet.mlp.output.bias.data = actor.mlp.output.bias.data = torch.tensor([0.0, 0.0, -99.0, -99.0])  # std 0.1
    plain, noisy = (a.act(features, explore=True, generator=g) for a in (quiet, actor))
    assert plain.std().item() == pytest.approx(0.1, rel=0.02)
    assert noisy.std().item() == pytest.approx((0.1**2 + 0.3**2) ** 0.5, rel=0.02)
    actor.mlp.output.bias.data[:2] = 99.0
    assert actor.act(features, explore=True, generator=g).max() == 1.0


def test_exploration_on_discrete_actions_is_epsilon_greedy():
    actor = Actor(3, Spaces((64, 64, 3), 4, True), actor_config(exploration_noise=0.2, unimix=0.0))
    actor.mlp.output.bias.data = torch.tensor([99.0, 0, 0, 0])
    action = actor.act(torch.zeros(20_000, 3), explore=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(action.sum(-1), torch.ones(20_000)) and set(action.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(action.mean(0), torch.tensor([0.85, 0.05, 0.05, 0.05]), atol=0.01, rtol=0)


@pytest.mark.parametrize(("evaluation", "same"), [("mode", True), ("sample", False)])
def test_evaluation_takes_the_mode_or_a_sample(evaluation: str, same: bool):
    actor = Actor(3, Spaces((64, 64, 3), 2, False), actor_config(evaluation=evaluation))
    features, g = torch.randn(5, 3), torch.Generator().manual_seed(0)
    first, second = (actor.act(features, explore=False, generator=g) for _ in range(2))
    assert torch.equal(first, second) == same


def test_random_actions_are_uniform():
    g, like = torch.Generator().manual_seed(0), torch.zeros(())
    continuous = random_actions(20_000, 2, False, g, like)
    assert continuous.min() >= -1 and continuous.max() <= 1
    assert continuous.std().item() == pytest.approx(3**-0.5, rel=0.02) and abs(continuous.mean().item()) < 0.02
    discrete = random_actions(20_000, 4, True, g, like)
    torch.testing.assert_close(discrete.mean(0), torch.full((4,), 0.25), atol=0.015, rtol=0)
