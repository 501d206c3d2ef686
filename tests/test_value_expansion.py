"""Value expansion: targets of every horizon against the papers' golden values, closed forms and each other."""

import dataclasses
import math
from typing import Any, NamedTuple

import pytest
import torch
from small import soft_config
from torch import Generator, Tensor, nn

from agents import dyna, maac, mve, sac, steve
from agents.branching import Schedule
from agents.returns import expansions, horizon_weights, lambda_return
from agents.soft import Transitions
from worldmodels.base import Ensembled, Rewarded, Spaces, WorldModel

GAMMA, LENGTH = 0.9, 12
KINDS = {
    sac.SAC: sac.Config,
    mve.MVE: mve.Config,
    steve.STEVE: steve.Config,
    dyna.Dyna: dyna.Config,
    maac.MAAC: maac.Config,
}


class Time(NamedTuple):
    time: Tensor  # [*B, 1]


class Line(WorldModel, Rewarded, Ensembled):
    """Time goes on by 1, with member k by 1 + drift_k; reward and going on are tables of it, interpolated.

    Reward member k adds ``reward_drift[k]`` to every reward.
    """

    def __init__(
        self,
        reward: list[float],
        going_on: list[float] | None = None,
        drift: tuple[float, ...] = (0.0,),
        reward_drift: tuple[float, ...] = (0.0,),
    ):
        super().__init__()
        self.spaces, self.feature_dim, self.num_members = Spaces((64, 64, 3), 2, False), 1, len(drift)
        self.num_rewards, self.reward_drift = len(reward_drift), torch.tensor(reward_drift)
        self.rewards, self.drift = torch.tensor(reward), torch.tensor(drift)
        self.going = torch.ones(LENGTH) if going_on is None else torch.tensor(going_on)

    def imagine(self, latent: Time, action: Tensor, generator: Generator | None = None) -> Time:
        return Time(latent.time + 1)

    def imagine_members(self, latent: Time, action: Tensor, generator: Generator | None = None) -> Time:
        return Time(latent.time + 1 + self.drift.view(-1, *[1] * (latent.time.ndim - 1)))

    def features(self, latent: Time) -> Tensor:
        return latent.time

    def reward(self, latent: Time) -> Tensor:
        return at(self.rewards, latent.time)

    def reward_members(self, latent: Time) -> Tensor:
        return self.reward(latent) + self.reward_drift.view(-1, *[1] * (latent.time.ndim - 1))

    def continues(self, latent: Time) -> Tensor:
        return at(self.going, latent.time)

    def unused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("not a matter of value expansion")

    initial = observe = loss = filter = rollout = imagine_mean = match_moments = unused
    member_stats = member_moments = member_log_prob = one_vs_rest = disagreement = unused


def at(table: Tensor, time: Tensor) -> Tensor:
    low = time[..., 0].floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], time[..., 0] - low)


class Table(nn.Module):
    """Members' values as tables of time, the same for every action."""

    def __init__(self, *values: list[float]):
        super().__init__()
        self.values, self.members = [torch.tensor(v) for v in values], len(values)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return torch.stack([at(v, features) for v in self.values])


def config(kind: Any, members: int = 2, **changes: Any) -> Any:
    return soft_config(kind, discount=GAMMA, members=members, **changes)


def made(kind: Any, model: Line, *values: list[float], alpha: float = 0.0, **changes: Any) -> Any:
    """An agent whose target critics are tables and whose entropy costs ``alpha``."""
    torch.manual_seed(0)
    defaults: Any = {mve.MVE: {"reduction": "last", "lam": 0.0}, maac.MAAC: {"step_clip": 0.0}}
    agent = config(KINDS[kind], members=len(values), **(defaults.get(kind, {}) | changes)).build(model)
    agent.target_critics = Table(*values)
    agent.temperature.log.data.fill_(math.log(alpha) if alpha else -math.inf)
    return agent


def posterior(time: float) -> Time:
    """One sequence of two steps, of which the second is at ``time``."""
    return Time(torch.tensor([[[time - 1], [time]]]))


def real(reward: float, live: float = 1.0, time: float = 0.0, weight: float = 1.0) -> Transitions:
    features = torch.tensor([[time - 1]]), torch.tensor([[time]])
    numbers = (torch.tensor([x]) for x in (reward, live, weight))
    first, second, third = numbers
    return Transitions(features[0], torch.zeros(1, 2), first, features[1], second, third)


def ramp(start: float = 0.0) -> list[float]:
    return [float(start + i) for i in range(LENGTH)]


def flat(value: float) -> list[float]:
    return [value] * LENGTH


@torch.no_grad()
def test_mve_golden_values() -> None:
    """gamma .9, H 2, rewards .5 (real), 1, 2 and a value of 10: 10.31, 10.9, 11."""
    model = Line([0.0, 1.0, 2.0, *[0.0] * 9])
    agent = made(mve.MVE, model, flat(10.0), flat(10.5), horizon=2, td_k=True)
    lessons = agent.lessons(model, posterior(0.0), real(0.5))
    assert lessons.target.tolist() == pytest.approx([10.31, 10.9, 11.0])
    assert lessons.features.flatten().tolist() == [-1.0, 0.0, 1.0]
    assert torch.allclose(lessons.weight, torch.full((2, 3), 0.5)), "H + 1 rows are divided by H"
    alone = made(mve.MVE, model, flat(10.0), flat(10.5), horizon=2, td_k=False).lessons(
        model, posterior(0.0), real(0.5)
    )
    assert alone.target.tolist() == pytest.approx([10.31]) and torch.equal(alone.weight, torch.ones(2, 1))


@torch.no_grad()
def test_without_a_horizon_mve_and_steve_are_td() -> None:
    model = Line(ramp())
    for alpha in (0.0, 0.5):
        plain = made(sac.SAC, model, ramp(3.0), ramp(4.0), alpha=alpha)
        torch.manual_seed(5)
        expected = plain.lessons(model, posterior(2.0), real(0.5, time=2.0))
        agent = made(mve.MVE, model, ramp(3.0), ramp(4.0), alpha=alpha, horizon=0, td_k=True)
        torch.manual_seed(5)
        found = agent.lessons(model, posterior(2.0), real(0.5, time=2.0))
        assert torch.equal(found.target, expected.target) and torch.equal(found.weight, expected.weight)
    ensemble = made(steve.STEVE, model, ramp(3.0), ramp(4.0), horizon=0, reduction="inverse_variance", lam=0.0)
    target = ensemble.lessons(model, posterior(2.0), real(0.5, time=2.0)).target
    assert target.item() == pytest.approx(0.5 + GAMMA * 5.5), "the mean of the critics, not the least"


@torch.no_grad()
def test_with_all_weight_on_the_last_horizon_steve_is_mve() -> None:
    model = Line(ramp(), going_on=[0.9] * LENGTH)
    shared: dict[str, Any] = dict(alpha=0.3, horizon=3)
    expanded = made(mve.MVE, model, ramp(3.0), ramp(3.0), td_k=False, **shared)
    weighted = made(steve.STEVE, model, ramp(3.0), ramp(3.0), reduction="last", lam=0.0, **shared)
    targets = []
    for agent in (expanded, weighted):
        agent.actor.load_state_dict(expanded.actor.state_dict())
        agent.actor.mlp.output.bias.data[2:] = -20  # almost no noise: the two draw it in another order
        targets.append(agent.lessons(model, posterior(1.0), real(0.5, time=1.0)).target.item())
    assert targets[0] == pytest.approx(targets[1], rel=0.15) and abs(targets[0]) > 3
    for agent in (expanded, weighted):  # without entropy to the digit
        agent.temperature.log.data.fill_(-math.inf)
    a, b = (x.lessons(model, posterior(1.0), real(0.5, time=1.0)).target.item() for x in (expanded, weighted))
    assert a == pytest.approx(b, rel=1e-6)


@torch.no_grad()
def test_a_perfect_model_and_value_give_one_target_at_every_horizon() -> None:
    reward = [0.3 * i for i in range(LENGTH)]
    value = [0.0] * LENGTH  # of time t: what follows, up to the end of the table, where all is over
    going_on = [1.0] * (LENGTH - 1) + [0.0]
    for t in reversed(range(LENGTH - 1)):
        value[t] = reward[t + 1] + GAMMA * going_on[t + 1] * value[t + 1]
    model, targets = Line(reward, going_on), []
    for horizon in (0, 1, 4, 9):
        agent = made(mve.MVE, model, value, value, horizon=horizon, td_k=True)
        targets.append(agent.lessons(model, posterior(2.0), real(0.7, time=2.0)).target[0].item())
    assert targets == pytest.approx([0.7 + GAMMA * value[2]] * 4)
    biased = made(mve.MVE, model, [v + 5 for v in value], [v + 5 for v in value], horizon=4, td_k=True)
    error = biased.lessons(model, posterior(2.0), real(0.7, time=2.0)).target[0].item() - targets[0]
    assert error == pytest.approx(GAMMA**5 * 5), "a constant error of the value shrinks by gamma^(H + 1)"
    over = made(mve.MVE, model, flat(99.0), flat(99.0), horizon=11, td_k=True)
    assert over.lessons(model, posterior(2.0), real(0.7, time=2.0)).target[0].item() == pytest.approx(targets[0])


@torch.no_grad()
def test_nothing_is_expected_after_a_terminal_step_and_imagined_rows_of_it_do_not_count() -> None:
    model = Line(ramp())
    agent = made(mve.MVE, model, ramp(3.0), ramp(3.0), horizon=2, td_k=True)
    lessons = agent.lessons(model, posterior(1.0), real(0.5, live=0.0, time=1.0))
    assert lessons.target[0].item() == 0.5 and lessons.weight.tolist() == [[0.5, 0.0, 0.0]] * 2
    ensemble = made(
        steve.STEVE, Line(ramp(), drift=(0.0, 0.2)), ramp(3.0), ramp(5.0), horizon=2, reduction="mean", lam=0.0
    )
    found = ensemble.candidates(ensemble_model := Line(ramp(), drift=(0.0, 0.2)), posterior(1.0), real(0.5, 0.0, 1.0))
    assert ensemble_model.num_members == 2 and torch.equal(found, torch.full((3, 2, 1, 2, 1), 0.5))
    ends = Line(ramp(), going_on=[1.0, 1.0, 0.0, *[1.0] * 9])  # the first imagined step from time 1 is the last
    rows = made(mve.MVE, ends, ramp(3.0), ramp(3.0), horizon=2, td_k=True)
    lessons = rows.lessons(ends, posterior(1.0), real(0.5, time=1.0))
    assert lessons.target.tolist()[:2] == pytest.approx([0.5 + GAMMA * 2.0, 2.0]), "the reward of the end counts"
    assert lessons.weight.tolist() == [[0.5, 0.5, 0.0]] * 2, "what is never reached teaches nothing"


def test_expansions_are_td_first_and_the_full_return_last() -> None:
    reward, live, value = (torch.rand(4, 7, generator=Generator().manual_seed(i)) for i in range(3))
    found = expansions(reward, live, value)
    assert torch.allclose(found[0], reward[0] + live[0] * value[0])
    assert torch.allclose(found[-1], lambda_return(reward.T, live.T, value.T, 1.0)[:, 0], atol=1e-6)
    assert torch.allclose(found[1], reward[0] + live[0] * (reward[1] + live[1] * value[1]))
    lam = 0.7
    weights = horizon_weights(found[:, None], "lambda", lam)
    assert torch.allclose((weights * found).sum(0), lambda_return(reward.T, live.T, value.T, lam)[:, 0], atol=1e-6)


@torch.no_grad()
def test_mve_has_the_baselines_of_steve() -> None:
    """Without entropy and with members that agree, each reduction is the same target in both."""
    model = Line(ramp(), going_on=[0.9] * LENGTH)
    targets = {}
    for reduction in ("last", "mean", "lambda"):
        shared: dict[str, Any] = dict(horizon=3, reduction=reduction, lam=0.25)
        one = made(mve.MVE, model, ramp(3.0), ramp(3.0), td_k=False, **shared)
        other = made(steve.STEVE, model, ramp(3.0), ramp(3.0), **shared)
        a, b = (x.lessons(model, posterior(1.0), real(0.5, time=1.0)).target.item() for x in (one, other))
        assert a == pytest.approx(b, rel=1e-6)
        targets[reduction] = a
    assert len(set(targets.values())) == 3


def test_inverse_variance_golden_values() -> None:
    half = torch.tensor([1.0, 0.5**0.5, 0.5])  # std of two samples around the means 1, 2, 4
    samples = torch.tensor([1.0, 2.0, 4.0])[:, None] + half[:, None] * torch.tensor([-1.0, 1.0])
    weights = horizon_weights(samples[..., None], "inverse_variance", 0.0)[:, 0]
    assert weights.tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert (weights * samples.mean(1)).sum().item() == pytest.approx(3.0)
    sharp = horizon_weights(torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]])[..., None], "inverse_variance", 0.0)
    assert sharp[:, 0].tolist() == pytest.approx([1e-8, 1.0, 2.5e-9], rel=1e-3)
    alike = horizon_weights(torch.ones(3, 4, 2), "inverse_variance", 0.0)
    assert torch.allclose(alike, torch.full((3, 2), 1 / 3)), "no disagreement anywhere: every horizon counts alike"
    scaled = horizon_weights(1000 * samples[..., None], "inverse_variance", 0.0)[:, 0]
    assert torch.allclose(scaled, weights, atol=1e-6)


@torch.no_grad()
def test_the_worse_a_member_the_less_its_horizons_count() -> None:
    weights = []
    for drift in (0.0, 0.05, 0.2, 0.5):
        model = Line(ramp(), drift=(0.0, 0.0, 0.0, drift))
        agent = made(steve.STEVE, model, ramp(3.0), ramp(3.2), horizon=3, reduction="inverse_variance", lam=0.0)
        samples = agent.candidates(model, posterior(1.0), real(0.5, time=1.0)).flatten(1, 3)
        weights.append(horizon_weights(samples, "inverse_variance", 0.0)[1:].sum().item())
    assert weights == sorted(weights, reverse=True) and weights[-1] < 0.5 < weights[0] and len(set(weights)) == 4


@torch.no_grad()
def test_members_keep_their_trajectories_and_may_change_places() -> None:
    drifts = ((0.0, 0.1, 0.3), (0.3, 0.0, 0.1))
    targets = []
    for drift in drifts:
        model = Line([float(i * i) for i in range(LENGTH)], drift=drift)
        agent = made(steve.STEVE, model, ramp(3.0), ramp(3.2), horizon=3, reduction="inverse_variance", lam=0.0)
        found = agent.candidates(model, posterior(1.0), real(0.5, time=1.0))
        for k, d in enumerate(drift):  # closed form: at 1 + j (1 + d) after j steps
            times = [1 + j * (1 + d) for j in range(4)]
            total, factor = 0.5, GAMMA
            for time in times[1:]:
                total += factor * at(model.rewards, torch.tensor([[time]])).item()
                factor *= GAMMA
            assert found[-1, k, 0, 0].item() == pytest.approx(total + factor * (3.0 + times[-1]), rel=1e-5)
        targets.append(agent.lessons(model, posterior(1.0), real(0.5, time=1.0)).target.item())
    assert targets[0] == pytest.approx(targets[1])


@torch.no_grad()
def test_disagreement_on_rewards_takes_weight_from_what_is_imagined() -> None:
    """Reward members that differ by d: the targets are spread, all but the first, and their mean is that of rewards."""
    weights, targets = [], []
    for drift in (0.0, 0.5, 2.0):
        model = Line(ramp(), reward_drift=(-drift, drift))
        agent = made(steve.STEVE, model, ramp(3.0), ramp(3.2), horizon=3, reduction="inverse_variance", lam=0.0)
        found = agent.candidates(model, posterior(1.0), real(0.5, time=1.0))
        assert found.shape == (4, 1, 2, 2, 1) and torch.equal(found[0, :, 0], found[0, :, 1])
        torch.testing.assert_close(found[1, 0, 1] - found[1, 0, 0], torch.full((2, 1), 2 * GAMMA * drift))
        samples = found.flatten(1, 3)
        weights.append(horizon_weights(samples, "inverse_variance", 0.0)[1:].sum().item())
        targets.append(samples[-1].mean().item())
    assert weights == sorted(weights, reverse=True) and weights[-1] < 0.1 < weights[0]
    assert targets == pytest.approx(targets[:1] * 3)


@torch.no_grad()
def test_the_first_horizon_has_the_variance_of_the_critics_and_never_all_weight() -> None:
    """Dynamics agree and critics do not: std gamma^(i + 1) d / 2 at horizon i, so weights grow by 1 / gamma^2."""
    model = Line(ramp(), drift=(0.0, 0.0))
    for distance in (1e-2, 2.0):
        agent = made(
            steve.STEVE, model, ramp(3.0), ramp(3.0 + distance), horizon=2, reduction="inverse_variance", lam=0.0
        )
        samples = agent.candidates(model, posterior(1.0), real(0.5, time=1.0)).flatten(1, 3)
        weights = horizon_weights(samples, "inverse_variance", 0.0)[:, 0]
        shares = [1.0, GAMMA**-2, GAMMA**-4]
        assert weights.tolist() == pytest.approx([share / sum(shares) for share in shares], rel=1e-2)
    alike = made(steve.STEVE, model, ramp(3.0), ramp(3.0), horizon=2, reduction="inverse_variance", lam=0.0)
    samples = alike.candidates(model, posterior(1.0), real(0.5, time=1.0)).flatten(1, 3)
    assert horizon_weights(samples, "inverse_variance", 0.0).isfinite().all()


@torch.no_grad()
def test_one_random_member_learns_from_each_transition() -> None:
    model = Line(ramp(), drift=(0.0, 0.1))
    agent = made(steve.STEVE, model, ramp(), ramp(1), ramp(2), horizon=1, reduction="mean", lam=0.0)
    many = Transitions(*(part.expand(900, *part.shape[1:]) for part in real(0.5, time=1.0)))
    latent = Time(torch.tensor([[[0.0], [1.0]]]).expand(900, 2, 1))
    weight = agent.lessons(model, latent, many).weight
    assert torch.equal(weight.sum(0), torch.ones(900)) and (weight.sum(1) > 200).all()


def test_one_critic_has_no_variance_of_its_own_and_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        config(steve.Config, members=1, horizon=1, reduction="mean", lam=0.0)
    with pytest.raises(ValueError, match="0 or more"):
        dataclasses.replace(config(mve.Config, horizon=1, td_k=True, reduction="last", lam=0.0), horizon=-1)


# ----------------------------------------------------------------------------------------------------------- Dyna


def test_rollouts_grow_as_in_mbpo() -> None:
    """Golden values of the papers' schedules [20, 100, 1, 25] and [20, 150, 1, 15], in epochs."""
    ant = Schedule(begin=20, end=100, first=1, last=25)
    assert [ant(e) for e in (0, 20, 40, 60, 100, 150)] == [1, 1, 7, 13, 25, 25]
    hopper = Schedule(begin=20, end=150, first=1, last=15)
    assert [hopper(e) for e in (0, 20, 50, 85, 150)] == [1, 1, 4, 8, 15]
    with pytest.raises(ValueError, match="begin < end"):
        Schedule(begin=5, end=5, first=1, last=1)


def once(length: int) -> Schedule:
    return Schedule(begin=0, end=1, first=length, last=length)


@torch.no_grad()
def test_dyna_without_imagined_transitions_is_sac() -> None:
    model = Line(ramp())
    plain = made(sac.SAC, model, ramp(3.0), ramp(4.0), alpha=0.5)
    for changes in (dict(rollout=once(3), real_ratio=1.0), dict(rollout=once(0), real_ratio=0.3)):
        agent = made(dyna.Dyna, model, ramp(3.0), ramp(4.0), alpha=0.5, **changes)
        found = []
        for learner in (plain, agent):
            torch.manual_seed(5)
            found.append(learner.lessons(model, posterior(2.0), real(0.5, time=2.0)))
        assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))


@torch.no_grad()
def test_imagined_transitions_obey_the_model_and_end_where_it_says() -> None:
    model = Line([float(10 * i) for i in range(LENGTH)], going_on=[1.0, 1.0, 1.0, 0.5, 0.0, *[1.0] * 7])
    agent = made(dyna.Dyna, model, flat(2.0), flat(7.0), rollout=once(5), real_ratio=0.25)
    lessons = agent.lessons(model, posterior(2.0), real(0.5, time=2.0))
    assert lessons.features.flatten().tolist() == [1.0, 1.0, 2.0, 3.0, 4.0, 5.0], "from the real state on"
    expected = [0.5 + GAMMA * 2, 20 + GAMMA * 2, 30 + GAMMA * 0.5 * 2, 40.0, 50 + GAMMA * 2, 60 + GAMMA * 2]
    assert lessons.target.tolist() == pytest.approx(expected), "the least of the critics, nothing after the end"
    # reached with chance 1, 1, 0.5, 0, 0: three quarters of the weight of the one real transition, shared out so
    assert lessons.weight[0].tolist() == pytest.approx([0.25, 0.3, 0.3, 0.15, 0.0, 0.0])
    assert lessons.metrics["rollout"] == 5


@torch.no_grad()
def test_a_step_across_episodes_starts_no_rollout() -> None:
    model = Line(ramp())
    agent = made(dyna.Dyna, model, flat(2.0), flat(2.0), rollout=once(2), real_ratio=0.5)
    pair = Transitions(*(torch.cat(parts) for parts in zip(real(0.5), real(0.7, weight=0.0), strict=True)))
    latent = Time(torch.tensor([[[0.0], [1.0]], [[0.0], [1.0]]]))
    weight = agent.lessons(model, latent, pair).weight[0]
    assert weight.tolist() == pytest.approx([0.5, 0.0, 0.25, 0.0, 0.25, 0.0])


def chained(agent: Any, model: Line, values: Tensor, sweeps: int) -> list[float]:
    """V(t) = E[r + gamma c V(t + 1)] of a greedy learner with one action, after lessons from one real transition."""
    for _ in range(sweeps):
        agent.target_critics = Table(values.tolist(), values.tolist())
        lessons = agent.lessons(model, posterior(1.0), real(0.0, time=1.0))
        for time, target, weight in zip(lessons.features[:, 0], lessons.target, lessons.weight[0], strict=True):
            if weight > 0:
                values[int(time)] = target.detach()
    return values[:sweeps].tolist()


def test_value_reaches_the_start_of_a_chain_through_imagination_alone() -> None:
    """Dyna on a chain: only the first real transition is ever seen, and imagination fills in what it leads to."""
    length = 6
    model = Line([0.0] * length + [1.0] * (LENGTH - length), going_on=[1.0] * length + [0.0] * (LENGTH - length))
    agent = made(dyna.Dyna, model, flat(0.0), flat(0.0), rollout=once(length), real_ratio=0.5)
    values = torch.zeros(LENGTH)
    assert chained(agent, model, values, length) == pytest.approx([GAMMA ** (length - 1 - t) for t in range(length)])


def test_a_model_that_is_overwritten_is_relearned_from() -> None:
    """The reward at the end of a chain turns into a loss: the model's table follows, and values after it."""
    length = 4
    ends = dict(going_on=[1.0] * length + [0.0] * (LENGTH - length))
    model = Line([0.0] * length + [1.0] * (LENGTH - length), **ends)
    agent = made(dyna.Dyna, model, flat(0.0), flat(0.0), rollout=once(length), real_ratio=0.5)
    values = torch.zeros(LENGTH)
    before = chained(agent, model, values, length)
    model.rewards = -2 * model.rewards
    assert chained(agent, model, values, length) == pytest.approx([-2 * value for value in before])


# ----------------------------------------------------------------------------------------------------------- MAAC


def objective(agent: Any, model: Any, latent: Any, given: Transitions) -> Tensor:
    agent.critics = agent.target_critics
    return agent.objective(model, latent, given)[0]


def test_maac_golden_value() -> None:
    """All rewards 1, Q 10, gamma 0.9, H 3: 1 + 0.9 + 0.81 + 0.729 * 10 = 10."""
    model = Line(flat(1.0))
    agent = made(maac.MAAC, model, flat(10.0), flat(12.0), horizon=3, terminal_actions=5)
    assert objective(agent, model, posterior(1.0), real(0.5)).item() == pytest.approx(10.0)
    ends = Line(flat(1.0), going_on=[0.0, 1.0, *[1.0] * 10])  # the first imagined step, to time 0, is the last
    assert objective(agent, ends, posterior(0.0 + 0.0), real(0.5)).item() == pytest.approx(1.0 + 0.0)


def test_maac_without_a_horizon_climbs_what_sac_climbs() -> None:
    model = Line(ramp())
    plain = made(sac.SAC, model, ramp(3.0), ramp(4.0), alpha=0.5)
    agent = made(maac.MAAC, model, ramp(3.0), ramp(4.0), alpha=0.5, horizon=0, terminal_actions=5)
    found = []
    for learner in (plain, agent):
        torch.manual_seed(4)
        found.append(objective(learner, model, posterior(2.0), real(0.5, time=2.0)))
    assert torch.equal(*found)


class Point(NamedTuple):
    x: Tensor  # [*B, 1]


class Quadratic(Line):
    """x' = 0.9 x + 0.5 a, reward -(x'^2)."""

    def __init__(self) -> None:
        super().__init__(flat(0.0))
        self.spaces, self.slope = Spaces((64, 64, 3), 1, False), nn.Parameter(torch.tensor(0.9))

    def imagine(self, latent: Any, action: Tensor, generator: Generator | None = None) -> Any:
        return Point(self.slope * latent.x + 0.5 * action)

    def features(self, latent: Any) -> Tensor:
        return latent.x

    def reward(self, latent: Any) -> Tensor:
        return -latent.x[..., 0].square()

    def continues(self, latent: Any) -> Tensor:
        return torch.full(latent.x.shape[:-1], 0.95)


def test_maac_differentiates_through_the_model_and_leaves_it_alone(double: None) -> None:
    model = Quadratic().double()
    agent = made(maac.MAAC, model, flat(0.0), flat(0.0), horizon=4, terminal_actions=1).double()
    agent.critics = agent.target_critics = type("Q", (nn.Module,), {"members": 2, "forward": lambda self, f, a: (
        -(f[..., 0] ** 2 + 0.3 * a[..., 0] ** 2).expand(2, *f.shape[:-1]))})()  # fmt: skip
    weights = agent.actor.mlp.output.weight
    agent.actor.mlp.output.bias.data.copy_(torch.tensor([0.1, -1.0]))
    weights.data.copy_(torch.tensor([[-0.4], [0.2]]))
    latent = Point(torch.tensor([[[0.7], [0.0]]], dtype=torch.float64))
    given = Transitions(*(part.double() for part in real(0.0)))._replace(features=latent.x[:, 0])

    def climb(shift: float = 0.0) -> Tensor:
        torch.manual_seed(9)
        weights.data[0, 0] += shift
        value = agent.objective(model, latent, given)[0].sum()
        weights.data[0, 0] -= shift
        return value

    from agents.base import frozen

    with frozen(model):
        climb().backward()
    numeric = (climb(1e-5) - climb(-1e-5)).item() / 2e-5
    assert weights.grad is not None and abs(numeric) > 0.01
    assert weights.grad[0, 0].item() == pytest.approx(numeric, rel=1e-4)
    assert model.slope.grad is None
