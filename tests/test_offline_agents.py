"""Offline agents: what doubt is and costs, who is held down where, what is cloned, and that a frozen model is frozen.

Golden values are worked out by hand or stated in the papers' terms; the disagreement has its own in
``test_ensemble.py``, rollouts by random members theirs in ``test_m2ac.py``.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from model_error import Plane, Values, standing
from small import awake, soft_config, three_members
from test_resume import run, state_of
from torch import Tensor, nn
from torch.distributions import Categorical as Choice
from torch.distributions import Normal

from agents import bc, mopo, offline_dv2
from agents.actor import ActorConfig
from agents.branching import Schedule
from agents.m2ac import move_by_any_member
from agents.multiplier import Multiplier
from agents.penalties import Kind, Penalty, PenaltyConfig, doubt, log_prob_std, max_sigma, mean_spread, meandis
from agents.soft import replayed_transitions
from agents.training.cli import parse
from agents.training.logging import read_metrics
from agents.training.record import choose_player, record
from agents.training.run import build_networks
from worldmodels.base import Ensembled, Rewarded, Spaces, WorldModel, map_latent
from worldmodels.ensemble import bootstrap_weights
from worldmodels.heads import HeadConfig
from worldmodels.latents import Categorical, Gaussian
from worldmodels.layers import MemberMLP

Build = Callable[..., Any]
KINDS: tuple[Kind, ...] = get_args(Kind)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_ensemble = pytest.mark.parametrize("name", ["ensemble-v1", "ensemble-v3"])
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


def always(length: int) -> Schedule:
    return Schedule(begin=0, end=1, first=length, last=length)


def priced(kind: Kind = "meandis", weight: float = 1.0, rate: float = 0.0) -> PenaltyConfig:
    return PenaltyConfig(kind=kind, weight=weight, rate=rate)


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """An ensemble of three that has no weight at zero, its agent of that name, and changes to the agent's config."""

    def made(agent: str, name: str, discrete: bool = False, **changes: Any) -> tuple[Any, Any]:
        return three_members(debug_run(agent, name), make_spaces(discrete), **changes)

    return made


class Place(NamedTuple):
    x: Tensor  # [*B, 2]


class Bandit(WorldModel, Rewarded, Ensembled):
    """The place that follows is the action. It is believed to pay its second number, of which the members know less."""

    def __init__(self) -> None:
        super().__init__()
        self.spaces, self.feature_dim, self.num_members, self.num_rewards = Spaces((64, 64, 3), 2, True), 2, 3, 1
        self.predictions = Gaussian(type="gaussian", variables=2, min_std=0.0).members()

    def imagine(self, latent: Place, action: Tensor, generator: object = None) -> Place:
        return Place(action)

    def features(self, latent: Place) -> Tensor:
        return latent.x

    def reward(self, latent: Place) -> Tensor:
        return latent.x[..., 1]

    def continues(self, latent: Place) -> Tensor:
        return torch.ones_like(latent.x[..., 0])

    def member_stats(self, latent: Place, action: Tensor) -> Tensor:
        apart = torch.tensor([-1.0, 0.0, 1.0]).view(3, *[1] * action.ndim) * torch.tensor([0.0, 1.0])
        return torch.cat([action + apart * action, torch.zeros(3, *action.shape)], -1)

    def member_moments(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictions.moments(stats)

    def unused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("not a matter of a bandit")

    initial = observe = loss = filter = rollout = reward_members = imagine_members = imagine_mean = unused
    match_moments = one_vs_rest = member_log_prob = disagreement = unused


# ------------------------------------------------------------------------------------------------ what doubt is


def test_meandis_of_three_heads_is_that_of_the_paper() -> None:
    heads = Categorical(type="categorical", variables=1, classes=2, unimix=0.0).members()
    stats = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.3, 0.7]]).log()[:, None]
    torch.testing.assert_close(meandis(*heads.moments(stats)), torch.tensor([0.1885618]))


def test_what_a_step_earns_in_lompo() -> None:
    found = log_prob_std(torch.tensor([[-1.0], [-2.0], [-4.0]]))
    torch.testing.assert_close(found, torch.tensor([1.2472191]))
    torch.testing.assert_close(1 - 5 * found, torch.tensor([-5.2360956]))


def test_golden_values_of_the_others() -> None:
    """Means (-1, 1), (1, 1), (3, 1): 2, 0 and 2 from their mean; deviations (3, 4) have norm 5."""
    mean, std = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [3.0, 1.0]]), torch.tensor([[0.1, 0.1], [3.0, 4.0], [2.0, 2.0]])
    assert meandis(mean, std).item() == pytest.approx(4 / 3)
    assert mean_spread(mean, std).item() == 2 and max_sigma(mean, std).item() == 5


def test_moments_and_log_probabilities_are_those_of_torch() -> None:
    normals = Gaussian(type="gaussian", variables=4, min_std=0.1).members()
    stats, sample = torch.randn(3, 5, 8), torch.randn(5, 4)
    mean, std = normals.moments(stats)
    torch.testing.assert_close((mean, std), (stats[..., :4], stats[..., 4:].div(2).exp()))
    torch.testing.assert_close(normals.log_prob(stats, sample), Normal(mean, std).log_prob(sample).sum(-1))
    kind = Categorical(type="categorical", variables=3, classes=4, unimix=0.01)
    stats = torch.randn(3, 5, 12)
    sample = kind.sample(torch.randn(5, 12), None)
    p = kind._probs(stats).transpose(-1, -2)  # [3, 5, variables, classes]
    log_prob = Choice(p).log_prob(sample.view(5, 4, 3).argmax(1)).sum(-1)
    torch.testing.assert_close(kind.members().log_prob(stats, sample), log_prob)
    mean, std = kind.members().moments(stats)
    draws = kind.sample(stats.expand(20000, -1, -1, -1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(0), std, atol=0.02, rtol=0)


@each_ensemble
@each_kind
def test_members_that_are_the_same_are_not_in_doubt(name: str, kind: Kind, build: Build, make_batch: Build) -> None:
    """Unless what is asked for is their own width."""
    model, _ = build("mopo", name)
    latent, action = model.filter(make_batch()), torch.rand(3, 8, 3)
    arrived = model.imagine(map_latent(lambda part: part.flatten(0, 1), latent), action.flatten(0, 1))
    arrived = map_latent(lambda part: part.unflatten(0, (3, 8)), arrived)
    before = doubt(kind, model, latent, action, arrived)
    assert before.shape == (3, 8) and (before > 0).all()
    for weights in model.members.network.parameters():
        weights.data[:] = weights.data[:1].clone()
    after = doubt(kind, model, latent, action, arrived)
    assert (after > 0.1).all() if kind == "max_sigma" else after.abs().max() < 1e-5


class Shore(nn.Module, Ensembled):
    """Members that learned what follows from actions of [-0.3, 0.3]."""

    def __init__(self) -> None:
        super().__init__()
        self.predictions = Gaussian(type="gaussian", variables=2, min_std=0.1).members()
        self.network = MemberMLP(5, 1, 32, 2, 4, norm="none", activation="silu")
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-2)
        seen, weight = torch.rand(400, 1) * 0.6 - 0.3, bootstrap_weights(5, torch.arange(400) // 10)
        posterior = torch.cat([torch.sin(3 * seen), torch.cos(3 * seen), torch.full((400, 2), -3.0)], -1)
        for _ in range(150):
            optimizer.zero_grad()
            (weight * self.predictions.kl(posterior, self.member_stats(None, seen))).sum(0).mean().backward()
            optimizer.step()

    def member_stats(self, latent: None, action: Tensor) -> Tensor:
        return self.network(action.expand(5, *action.shape))

    def member_moments(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictions.moments(stats)

    def member_log_prob(self, stats: Tensor, arrived: Place) -> Tensor:
        return self.predictions.log_prob(stats, arrived.x)

    def disagreement(self, latent: None, action: Tensor) -> Tensor:
        return self.predictions.disagreement(self.member_stats(latent, action))

    def unused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("not a matter of doubt")

    reward_members = imagine_members = imagine_mean = match_moments = one_vs_rest = unused


def test_doubt_grows_as_actions_leave_the_data() -> None:
    torch.manual_seed(0)
    shore = Shore()
    for kind in KINDS:
        if kind == "max_sigma":  # their own width, which nothing was learned about out there
            continue
        found = []
        for far in (0.15, 0.5, 0.75, 1.0):
            action = torch.tensor([[far], [-far]])
            arrived = Place(shore.predictions.mean(shore.member_stats(None, action)).detach())
            found.append(doubt(kind, shore, None, action, arrived).mean().item())
        assert found == sorted(found) and found[-1] > 3 * found[0], kind


# ------------------------------------------------------------------------------------------------- its unit


@each_ensemble
@each_kind
def test_a_doubt_of_one_is_the_mean_one_of_the_data(name: str, kind: Kind, build: Build, make_batch: Build) -> None:
    model, _ = build("mopo", name)
    batch = make_batch()
    latent = model.filter(batch)
    action, weight = batch.action[:, :-1].flatten(0, 1), (~batch.is_last[:, :-1]).float().flatten()
    left, right = (map_latent(lambda p, at=at: p[:, at].flatten(0, 1), latent) for at in (slice(7), slice(1, 8)))
    penalty = Penalty(priced(kind, rate=0.1))
    penalty.calibrate(model, latent, action, weight)
    found = penalty(model, left, action, right)
    assert ((weight * found).sum() / weight.sum()).item() == pytest.approx(1, rel=1e-5)
    other = 1 - weight
    penalty.calibrate(model, latent, action, other)
    first, second = ((w * doubt(kind, model, left, action, right)).sum() / w.sum() for w in (weight, other))
    assert penalty.recorded.item() == pytest.approx((0.9 * first + 0.1 * second).item(), rel=1e-5)
    penalty.calibrate(model, latent, action, torch.zeros_like(weight))
    assert penalty.recorded.item() == pytest.approx((0.9 * first + 0.1 * second).item(), rel=1e-5), "no step, no word"
    raw = Penalty(priced(kind))(model, left, action, right)
    torch.testing.assert_close(raw, doubt(kind, model, left, action, right))


def test_a_lambda_that_follows_finds_what_doubt_may_cost() -> None:
    """A constant doubt of 0.5 that is to cost 1.5: lambda 3, from below and from above."""
    for initial in (0.1, 40.0):
        multiplier = Multiplier(initial, 1.5)
        optimizer = torch.optim.Adam(multiplier.parameters(), 0.05)
        for _ in range(400):
            optimizer.zero_grad()
            multiplier.loss(multiplier.value * torch.full((6,), 0.5)).mean().backward()
            optimizer.step()
        assert multiplier.value.item() == pytest.approx(3, rel=0.01)


# --------------------------------------------------------------------------------------------- offline dreamer


def dreamer(model: WorldModel, weight: float, **changes: Any) -> offline_dv2.OfflineDV2:
    values: dict[str, Any] = dict(
        actor=ActorConfig(
            layers=0, units=8, norm="none", activation="elu", output_scale=1.0, continuous="bounded_normal",
            unimix=0.01, exploration_noise=0.0, evaluation="mode",
        ),
        critic=HeadConfig(layers=0, units=8, norm="none", activation="elu", output="normal", output_scale=1.0),
        imagination_horizon=2, imagination_starts=0, discount=0.9, lam=0.8, entropy=0.0, return_rate=0.5,
        return_floor=1.0, slow_rate=0.02, slow_weight=1.0, penalty=priced(weight=weight), target=0.0,
        scales={"actor": 1.0, "critic": 1.0},
    )  # fmt: skip
    return offline_dv2.Config(**(values | changes)).build(model)


def lived(make_batch: Build) -> tuple[Place, Any]:
    batch = make_batch(discrete=True, size=8, length=5)
    batch = batch._replace(action=batch.action[..., :2])
    return Place(torch.nn.functional.one_hot(torch.randint(2, (8, 5)), 2).float()), batch


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_what_the_members_do_not_know_is_left_alone_where_it_costs(weight: float, make_batch: Build) -> None:
    """The action that is believed to pay 1 has a doubt of 2/3."""
    model = Bandit()
    agent, (latent, batch) = dreamer(model, weight), lived(make_batch)
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], 0.1)
    for update in range(60):
        optimizer.zero_grad()
        losses = agent.loss(model, latent, batch)
        sum(losses.terms.values(), torch.zeros(())).backward()
        optimizer.step()
        agent.after_update(update + 1)
    chance = agent.actor(torch.eye(2)).log_prob(torch.tensor([[0.0, 1.0]] * 2)).exp()
    assert (chance > 0.85).all() if not weight else (chance < 0.15).all()


def test_the_price_of_doubt_is_taught_what_doubt_costs(make_batch: Build) -> None:
    model = Bandit()
    scales = {"actor": 1.0, "critic": 1.0, "multiplier": 1.0}
    agent, (latent, batch) = dreamer(model, 1.5, target=0.6, scales=scales), lived(make_batch)
    terms, metrics = agent.loss(model, latent, batch)
    cost = metrics["price"] * metrics["doubt"]
    torch.testing.assert_close(terms["multiplier"].detach(), math.log(1.5) * (cost - 0.6))
    terms["multiplier"].backward()
    assert agent.multiplier is not None and agent.multiplier.log.grad is not None
    torch.testing.assert_close(agent.multiplier.log.grad, cost - 0.6)


def test_the_reward_is_that_of_the_paper_and_what_is_said_about_it(
    make_batch: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Bandit()
    agent, (latent, batch) = dreamer(model, 1.5), lived(make_batch)
    seen: list[tuple[Any, Tensor]] = []
    learn = agent.learn

    def watched(model: WorldModel, dreamed: Any, reward: Tensor) -> Any:
        seen.append((dreamed, reward))
        return learn(model, dreamed, reward)

    monkeypatch.setattr(agent, "learn", watched)
    metrics = agent.loss(model, latent, batch).metrics
    reward, taken = seen[0][1], seen[0][0].action[..., 1]
    torch.testing.assert_close(reward[:, 1:], taken - 1.5 * taken * 2 / 3)
    assert metrics["doubt"].item() == pytest.approx(taken.mean().item() * 2 / 3)
    assert metrics["penalty_to_reward"].item() == pytest.approx(1.0), "1.5 * 2/3 of every reward"
    assert metrics["imagined_reward"] == taken.mean() and metrics["recorded_reward"] == batch.reward.mean()


def test_a_target_without_a_price_to_begin_with_is_refused(debug_run: Build) -> None:
    with pytest.raises(ValueError, match=r"agent\.target: needs a penalty\.weight above 0"):
        debug_run("offline-dv2-tuned", None, "agent.penalty.weight=0")
    with pytest.raises(ValueError, match=r"agent\.penalty\.weight: must be at least 0"):
        debug_run("lompo", None, "agent.penalty.weight=-1")
    with pytest.raises(ValueError, match=r"agent\.penalty\.rate: must be at most 1"):
        debug_run("lompo", None, "agent.penalty.rate=2")


# ------------------------------------------------------------------------------------------------ mopo and lompo


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_real_rewards_are_whole_and_imagined_ones_are_less_their_doubt(rate: float) -> None:
    """All doubts of a plane whose members add constants are alike, so one in units of the data's is 1."""
    latent, real = standing(60)
    lessons = []
    for weight in (0.0, 0.5):
        torch.manual_seed(1)
        config = soft_config(
            mopo.Config, discount=0.9, temperature=1e-6, rollout=always(2), real_ratio=0.3,
            penalty=priced("mean_spread", weight, rate),
        )  # fmt: skip
        agent = config.build(Plane(0.0, 0))
        agent.target_critics = Values()
        lessons.append(agent.lessons(Plane(0.0, 0), latent, real))
    free, paid = lessons
    taken = free.target - paid.target
    assert taken[:60].abs().max() == 0, "of recorded transitions nothing is taken"
    offset = Plane(0.0, 0).offset
    unit = 1.0 if rate else (offset - offset.mean(0)).norm(dim=-1).max().item()
    torch.testing.assert_close(taken[60:], torch.full((120,), 0.5 * unit), rtol=1e-3, atol=1e-5)
    assert paid.metrics["doubt"].item() == pytest.approx(unit, rel=1e-3)


@torch.no_grad()
@each_ensemble
@both_kinds
@pytest.mark.parametrize("agent", ["mopo", "lompo", "combo"])
def test_at_no_price_it_is_mbpo_with_random_members(
    agent: str, name: str, discrete: bool, build: Build, make_batch: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = dict(rollout=always(2), real_ratio=0.3)
    free = {} if agent == "combo" else {"penalty": priced("log_prob_std", weight=0.0, rate=0.1)}
    model, offline = build(agent, name, discrete, **shared, **free)
    _, plain = build("mbpo", name, discrete, **shared)
    plain.load_state_dict({key: value for key, value in offline.state_dict().items() if key != "penalty.recorded"})
    batch = make_batch(discrete)
    latent = model.filter(batch)
    real = replayed_transitions(model.features(latent), batch)
    monkeypatch.setattr(model, "imagine", move_by_any_member(model))
    found = []
    for each in (offline, plain):
        torch.manual_seed(5)
        found.append(each.lessons(model, latent, real))
    assert len(found[0].target) == 21 * 3 and found[0].target.std() > 0
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))


# -------------------------------------------------------------------------------------------------------- combo


class Table(nn.Module):
    """Two critics that look at the action alone: ``[1, 2, 3]`` for one-hot ones, or the same for all."""

    members = 2

    def __init__(self, values: Tensor | float):
        super().__init__()
        self.values = values

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        found = (action * self.values).sum(-1) if isinstance(self.values, Tensor) else self.values + 0 * action[..., 0]
        return found.expand(2, *found.shape)


def test_the_soft_maximum_is_one_sum_over_all_actions_of_a_state(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    _, agent = build("combo", "ensemble-v3", True)
    agent.critics = Table(torch.tensor([1.0, 2.0, 3.0]))
    features = torch.randn(4, 5)
    torch.testing.assert_close(agent.soft_maximum(features), torch.full((2, 4), 3.4076060))
    _, agent = build("combo", "ensemble-v3", False)
    agent.critics = Table(7.0)
    monkeypatch.setattr(agent, "candidates", lambda f: (torch.zeros(len(f), 30, 3), torch.zeros(len(f), 30)))
    torch.testing.assert_close(agent.soft_maximum(features), torch.full((2, 4), 7 + math.log(30)))


def test_constant_values_leave_the_number_of_actions(build: Build, make_batch: Build) -> None:
    model, agent = build("combo", "ensemble-v3", True)
    agent.critics = Table(-4.0)
    batch = make_batch(True)
    terms = agent.loss(model, model.filter(batch), batch).terms
    torch.testing.assert_close(terms["conservative_critics"], torch.tensor(2 * math.log(3)))


def test_candidates_know_their_densities(build: Build) -> None:
    model, agent = build("combo", "ensemble-v3", actions=400)
    features = torch.randn(5, model.feature_dim)
    action, density = agent.candidates(features)
    assert action.shape == (5, 800, 3) and density.shape == (5, 800) and action.abs().max() <= 1
    torch.testing.assert_close(density[:, :400], torch.full((5, 400), -3 * math.log(2)))
    own = agent.policy(features.unsqueeze(1)).log_prob(action[:, 400:])
    torch.testing.assert_close(density[:, 400:], own, rtol=1e-2, atol=1e-2)
    assert not (action.requires_grad or density.requires_grad)


def test_without_rollouts_the_term_is_that_of_cql(build: Build, make_batch: Build) -> None:
    """Over all discrete actions at states of the data: log sum_a exp Q(s, a) - Q(s, a_data)."""
    model, agent = build("combo", "ensemble-v3", True, real_ratio=1.0, states=50)
    batch = make_batch(True)
    latent = model.filter(batch)
    real = replayed_transitions(model.features(latent), batch)
    lessons = agent.lessons(model, latent, real)
    assert len(lessons.target) == len(real.reward) == 21
    values = agent.critics(real.features, real.action)
    torch.manual_seed(3)
    found, _ = agent.caution(lessons, values, real)
    torch.manual_seed(3)
    chosen = torch.multinomial(real.weight.clamp_min(1e-8), 50, replacement=True)
    assert (real.weight[chosen] == 1).all(), "what is no transition is no state of the data"
    each = torch.stack([agent.critics(real.features, torch.eye(3)[a].expand(21, 3)) for a in range(3)], -1)
    expected = each[:, chosen].exp().sum(-1).log().mean(-1) - values[:, real.weight == 1].mean(-1)
    torch.testing.assert_close(found["conservative_critics"], expected.sum())


@both_kinds
def test_a_step_down_the_term_lifts_recorded_actions_over_others(
    discrete: bool, build: Build, make_batch: Build
) -> None:
    model, agent = build("combo", "ensemble-v3", discrete)
    batch, before = make_batch(discrete), None
    latent = model.filter(batch)
    for _ in range(2):
        torch.manual_seed(2)
        losses = agent.loss(model, latent, batch)
        gap = losses.metrics["value_recorded"] - losses.metrics["soft_maximum"]
        assert before is None or gap > before
        before = gap
        gradients = torch.autograd.grad(losses.terms["conservative_critics"], list(agent.critics.parameters()))
        for weights, gradient in zip(agent.critics.parameters(), gradients, strict=True):
            weights.data -= 0.05 * gradient


@both_kinds
def test_at_beta_zero_it_is_sac_on_the_mix(discrete: bool, build: Build, make_batch: Build) -> None:
    shared: dict[str, Any] = dict(rollout=always(2), real_ratio=0.3)
    model, conservative = build("combo", "ensemble-v3", discrete, **shared)
    _, free = build("mopo", "ensemble-v3", discrete, **shared, penalty=priced(weight=0.0))
    free.load_state_dict({**conservative.state_dict(), "penalty.recorded": torch.zeros(())})
    batch = make_batch(discrete)
    latent, terms = model.filter(batch), []
    for agent in (conservative, free):
        torch.manual_seed(5)
        terms.append(agent.loss(model, latent, batch).terms)
    assert terms[0].keys() - terms[1].keys() == {"conservative_critics"}
    assert all(torch.equal(terms[0][name], term) for name, term in terms[1].items())


# ----------------------------------------------------------------------------------------------------------- bc


@both_kinds
def test_what_is_cloned_is_every_action_that_was_taken(discrete: bool, debug_run: Build, make_batch: Build) -> None:
    spaces = Spaces(image=(64, 64, 3), action_dim=3, discrete=discrete)
    model = debug_run("bc").world_model.build(spaces)
    agent: bc.BC = debug_run("bc").agent.build(model)
    awake(model, agent, seed=3)
    batch = make_batch(discrete)
    latent = model.filter(batch)
    losses = agent.loss(model, latent, batch)
    log_prob: Any = agent.actor(model.features(latent))
    expected = log_prob.log_prob(batch.action)[~batch.is_last].mean()
    torch.testing.assert_close(losses.terms["actor"], -expected)
    other = batch._replace(
        action=torch.where(batch.is_last.unsqueeze(-1), -batch.action, batch.action), reward=batch.reward + 9
    )
    torch.testing.assert_close(agent.loss(model, latent, other).terms["actor"], -expected)


# ------------------------------------------------------------------------------------------------------- phases

LINE = "--task reach --preset debug --training.video-every 0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, shared = tmp_path_factory.mktemp("offline") / "data", {"num_envs": 2, "seed": 0}
    player = choose_player("random", "toy:reach", [], explore=False, random_share=0.0, **shared)
    record(player, folder, env_steps=200, **shared)
    return folder


def digest(state: dict[str, Tensor]) -> str:
    """One hash of names and numbers."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("agent", ["offline-dv2", "lompo", "combo"])
def test_no_number_of_the_world_model_changes_while_the_agent_learns(agent: str, data: Path, tmp_path: Path) -> None:
    states = {}
    for name, updates in {"short": 1, "long": 4}.items():
        words = f"--training.phases.1.updates {updates} --training.eval-every {5000 if name == 'long' else 0}"
        assert run(f"--agent {agent} --data {data} {LINE} {words} --run-dir {tmp_path}/{name}") == 0
        states[name] = state_of(tmp_path / name)
    assert (states["short"]["updates"], states["long"]["updates"]) == (4, 7)
    assert digest(states["short"]["model"]) == digest(states["long"]["model"])
    assert digest(states["short"]["agent"]) != digest(states["long"]["agent"])
    if agent != "combo":
        assert states["long"]["agent"]["penalty.recorded"] > 0, "a checkpoint knows the unit of doubt"
    entries = read_metrics(tmp_path / "long" / "metrics.jsonl")
    assert [entry["updates"] for entry in entries if "eval/return_mean" in entry] == [3, 7]


def test_the_agent_is_as_it_was_made_while_the_world_model_learns(data: Path, tmp_path: Path) -> None:
    phase = "'[{type: learn, updates: 3, optimizers: [model], batch: 2, length: 8}]'"
    words = f"--agent lompo --data {data} {LINE} --training.phases {phase} --run-dir {tmp_path}/run"
    assert run(words) == 0
    config = parse(f"--agent lompo {LINE}".split()).config
    state = state_of(tmp_path / "run")
    model, agent = build_networks(config, Spaces((64, 64, 3), 2, False))
    fresh = {name: value for name, value in agent.state_dict().items() if name != "updates"}
    assert all(torch.equal(state["agent"][name], value) for name, value in fresh.items())
    assert digest(state["model"]) != digest(model.state_dict())
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert not any("eval/return_mean" in entry for entry in entries), "nothing has learned to behave"


def test_episodes_are_played_along_the_way(data: Path, tmp_path: Path) -> None:
    words = "--training.phases.0.updates 5 --training.phases.0.eval_every 2"
    assert run(f"--agent bc --data {data} {LINE} {words} --run-dir {tmp_path}/run") == 0
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [entry["updates"] for entry in entries if "eval/return_mean" in entry] == [2, 4, 5]
    assert not (tmp_path / "run" / "replay").exists(), "and nothing is kept of them"


def test_data_that_the_task_does_not_look_like_are_refused(data: Path, tmp_path: Path) -> None:
    words = f"--agent bc --data {data} {LINE} --env.size 32 --run-dir {tmp_path}/run"
    with pytest.raises(ValueError, match=r"toy:reach is .*: --env\.size 64, or --training\.eval-every 0"):
        run(words)
    assert run(f"{words} --training.eval-every 0") == 0
