"""Plan2Explore: what the members disagree on arrives where it should, and nothing else is learned from.

The disagreement itself, its golden values and where it is high, is in ``test_ensemble.py``.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from small import awake
from torch import Tensor, nn

from agents import plan2explore
from agents.actor import ActorConfig
from agents.imagination import Dream
from agents.plan2explore import doubted
from worldmodels.base import Ensembled, Rewarded, Sequence, Spaces, WorldModel
from worldmodels.heads import HeadConfig
from worldmodels.latents import Gaussian

Build = Callable[..., Any]
DISCOUNT, LAM, HORIZON, LENGTH = 0.9, 0.8, 4, 12


class Time(NamedTuple):
    time: Tensor  # [*B], a whole number


class Clock(WorldModel, Rewarded, Ensembled):
    """Time goes on whatever one does. Of the step from ``time`` by action 1 or 0 member k says ``said[k, time]``, times
    one or nothing: the paper's ensemble of means. To predict the task's reward is an error."""

    def __init__(self, said: Tensor, discrete: bool = True):
        super().__init__()
        self.spaces = Spaces(image=(64, 64, 3), action_dim=2, discrete=discrete)
        self.feature_dim, self.num_members, self.num_rewards, self.said = LENGTH, len(said), 1, said
        self.predictions = Gaussian(type="gaussian", variables=said.shape[-1], min_std=0.0).members()
        self.actions: list[Tensor] = []

    def imagine(self, latent: Time, action: Tensor, generator: object = None) -> Time:
        self.actions.append(action)
        return Time(latent.time + 1)

    def features(self, latent: Time) -> Tensor:
        return nn.functional.one_hot(latent.time.long(), LENGTH).float()

    def continues(self, latent: Time) -> Tensor:
        return 1 - 0.05 * latent.time

    def disagreement(self, latent: Time, action: Tensor) -> Tensor:
        mean = self.said[:, latent.time.long()] * action[..., 1:]
        return self.predictions.disagreement(torch.cat([mean, torch.ones_like(mean)], -1))

    def unused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("not a matter of exploring")

    initial = observe = loss = filter = rollout = reward = reward_members = unused
    imagine_members = imagine_mean = match_moments = member_stats = one_vs_rest = unused
    member_moments = member_log_prob = unused


def explorer(model: WorldModel, **changes: Any) -> plan2explore.Plan2Explore:
    values: dict[str, Any] = dict(
        actor=ActorConfig(
            layers=0, units=8, norm="none", activation="elu", output_scale=1.0, continuous="bounded_normal",
            unimix=0.01, exploration_noise=0.0, evaluation="mode",
        ),
        critic=HeadConfig(layers=0, units=8, norm="none", activation="elu", output="normal", output_scale=1.0),
        imagination_horizon=HORIZON, imagination_starts=0, discount=DISCOUNT, lam=LAM, entropy=0.1, return_rate=0.5,
        return_floor=1.0, slow_rate=0.02, slow_weight=0.7, scale=2.0, scales={"actor": 1.0, "critic": 1.0},
    )  # fmt: skip
    return plan2explore.Config(**(values | changes)).build(model)


def posterior(make_batch: Build, size: int = 2) -> tuple[Time, Sequence]:
    g = torch.Generator().manual_seed(1)
    return Time(torch.randint(0, LENGTH - HORIZON, (size, 5), generator=g).float()), make_batch(size=size, length=5)


@pytest.fixture
def ensemble(debug_run: Build, make_spaces: Build) -> Build:
    """A real ensemble of that name that has no weight at zero, and its explorer."""

    def made(name: str, discrete: bool = False) -> tuple[Any, Any]:
        run = debug_run("plan2explore", name)
        torch.manual_seed(0)
        model = run.world_model.build(make_spaces(discrete))
        agent = run.agent.build(model)
        awake(model, agent, seed=7)
        return model, agent

    return made


# --------------------------------------------------------------------------------------------------- the reward


def test_a_doubt_arrives_with_the_latent_that_the_step_leads_to() -> None:
    """Members that say (1, 2), (3, 2) and (5, 2) of the step from time 2: variances 8/3 and 0, mean 4/3."""
    said = torch.zeros(3, LENGTH, 2)
    said[:, 2] = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    model = Clock(said)
    latent = Time(torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [2.0, 3.0, 4.0]]))
    taken = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    doubt = doubted(model, Dream(latent, model.features(latent), taken))
    torch.testing.assert_close(doubt, torch.tensor([[0.0, 0.0, 4 / 3], [0.0, 4 / 3, 0.0], [0.0, 0.0, 0.0]]))


def test_returns_are_those_of_the_doubts_alone(make_batch: Build) -> None:
    """Equation by equation, of every start, with an action's own doubt; ``Clock.reward`` would raise."""
    model = Clock(torch.randn(3, LENGTH, 2, generator=torch.Generator().manual_seed(4)))
    agent, (latent, batch) = explorer(model), posterior(make_batch)
    awake(agent.critic, seed=2)
    value = agent.critic(torch.eye(LENGTH)).mean.detach()
    losses = agent.loss(model, latent, batch)
    actions = torch.stack(model.actions, 1)
    variance = model.said.var(0, correction=0).mean(-1)
    returns, gained, weights = torch.zeros(10, HORIZON), torch.zeros(10, HORIZON), torch.zeros(10, HORIZON)
    for n, start in enumerate(latent.time.flatten().int().tolist()):
        ahead = value[start + HORIZON]
        for t in reversed(range(HORIZON)):
            arrived = start + t + 1
            gained[n, t] = variance[start + t] * actions[n, t, 1]
            live = DISCOUNT * (1 - 0.05 * arrived)
            ahead = returns[n, t] = 2 * gained[n, t] + live * ((1 - LAM) * value[arrived] + LAM * ahead)
            weights[n, t] = torch.prod(DISCOUNT * (1 - 0.05 * torch.arange(start, arrived)))
    torch.testing.assert_close(losses.metrics["return"], returns.mean())
    torch.testing.assert_close(losses.metrics["disagreement"], gained.mean())
    now = value[latent.time.flatten().long()[:, None] + torch.arange(HORIZON)]
    slow = agent.slow_critic(torch.eye(LENGTH)).mean[latent.time.flatten().long()[:, None] + torch.arange(HORIZON)]
    critic = weights * ((now - returns) ** 2 + 0.7 * (now - slow) ** 2) / 2
    torch.testing.assert_close(losses.terms["critic"].detach(), critic.mean())


def test_members_that_are_the_same_give_no_return(make_batch: Build) -> None:
    model = Clock(torch.randn(1, LENGTH, 2).expand(3, -1, -1))
    agent, (latent, batch) = explorer(model, lam=1.0), posterior(make_batch)
    for parameter in agent.critic.parameters():
        nn.init.zeros_(parameter)
    metrics = agent.loss(model, latent, batch).metrics
    assert metrics["return"] == 0 and metrics["disagreement"] == 0 and metrics["advantage_abs"] == 0


def test_the_explorer_goes_where_members_disagree(make_batch: Build) -> None:
    """Only action 1 is in doubt."""
    model = Clock(torch.randn(3, LENGTH, 2))
    agent, (latent, batch) = explorer(model, entropy=0.0), posterior(make_batch, size=8)
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], 0.1)
    chance = []
    for update in range(40):
        optimizer.zero_grad()
        sum(agent.loss(model, latent, batch).terms.values(), torch.zeros(())).backward()
        optimizer.step()
        agent.after_update(update + 1)
        chance.append(
            agent.actor(torch.eye(LENGTH)[: LENGTH - 1])
            .log_prob(torch.tensor([[0.0, 1.0]] * (LENGTH - 1)))
            .exp()
            .mean()
        )
    assert chance[0] < 0.7 and chance[-1] > 0.85


# ----------------------------------------------------------------------------------- what it must not learn from


@pytest.mark.parametrize("name", ["ensemble-v1", "ensemble-v3"])
def test_no_task_reward_reaches_the_explorer(name: str, ensemble: Build, make_batch: Build) -> None:
    """Neither recorded nor predicted; the same change of the members does."""
    model, agent = ensemble(name)
    batch, latent = make_batch(), model.filter(make_batch())

    def learned(model: Any, batch: Sequence) -> list[Tensor]:
        torch.manual_seed(5)
        terms, metrics = copy.deepcopy(agent).loss(model, latent, batch)
        return [*terms.values(), *metrics.values()]

    before = learned(model, batch)
    rewarded, doubtful = copy.deepcopy(model), copy.deepcopy(model)
    heads = [part for part in (rewarded.rssm.reward_head, rewarded.reward_heads) if part is not None]
    awake(*heads, seed=8)
    assert not torch.equal(rewarded.reward(latent), model.reward(latent))
    after = learned(rewarded, batch._replace(reward=batch.reward + 100))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    awake(doubtful.members, seed=8)
    assert not all(torch.equal(x, y) for x, y in zip(before, learned(doubtful, batch), strict=True))


@pytest.mark.parametrize("name", ["ensemble-v1", "ensemble-v3"])
@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_no_term_of_the_explorer_reaches_the_world_model(
    name: str, discrete: bool, ensemble: Build, make_batch: Build
) -> None:
    model, agent = ensemble(name, discrete)
    batch = make_batch(discrete)
    latent, _ = model.loss(batch)
    total = sum(agent.loss(model, latent, batch).terms.values(), torch.zeros(()))
    assert not agent.teaches and torch.autograd.grad(total, agent.actor.mlp.output.weight, retain_graph=True)[0].any()
    assert set(torch.autograd.grad(total, list(model.parameters()), allow_unused=True)) == {None}


def test_without_its_scale_no_reward_shapes_the_world_model(
    debug_run: Build, ensemble: Build, make_batch: Build
) -> None:
    """``--world-model.rssm.scales.reward 0``, as the card says: the ensemble's own heads stop at the features."""
    model, _ = ensemble("ensemble-v3")
    scales = debug_run("plan2explore", None, "--world-model.rssm.scales.reward", "0").world_model.scales
    shared = [p for n, p in model.rssm.named_parameters() if not n.startswith("reward_head.")]
    gradients = []
    for reward in (0.0, 100.0):
        torch.manual_seed(3)
        batch = make_batch()
        _, losses = model.loss(batch._replace(reward=batch.reward + reward))
        total = sum((scales[name] * term for name, term in losses.terms.items()), torch.zeros(()))
        gradients.append(torch.autograd.grad(total, shared, retain_graph=True))
        reached = torch.autograd.grad(losses.terms["reward"], shared, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in reached), "with its scale one does"
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_nothing_to_explore_for_is_refused(debug_run: Build) -> None:
    with pytest.raises(ValueError, match=r"agent\.scale: must be above 0"):
        debug_run("plan2explore", None, "agent.scale=0")
    with pytest.raises(ValueError, match=r"agent\.imagination_starts: must be 0 or more"):
        debug_run("plan2explore", None, "agent.imagination_starts=-1")
    assert debug_run("plan2explore", None, "agent.imagination_starts=1").agent.imagination_starts == 1
