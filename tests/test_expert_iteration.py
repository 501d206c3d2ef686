"""AlphaZero, MuZero and expert iteration where everything is known: a chain of places, a linear world, plain loops."""

import itertools
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import small
import torch
import torch.nn.functional as F
from linear import Linear, Point
from torch import Generator, Tensor, nn

from agents import alphazero, exit, muzero
from agents.actor import ActorConfig
from agents.alphazero import AlphaZero
from agents.apprentice import DrawnActions, TreeExpert, imitation
from agents.exit import ExIt, SequenceExpert
from agents.muzero import MuZero
from agents.planning import CEM, PUCT, Gumbel, RandomShooting, Root, Step
from agents.reanalyse import Lesson, scale_gradient, unroll
from agents.training.benchmark import acting
from worldmodels.base import Rewarded, Sequence, Spaces, Teachable, WorldModel, choose
from worldmodels.distributions import Bernoulli, OneHot, SquashedNormal, UnitNormal
from worldmodels.heads import HeadConfig

ROOT = Path(__file__).parents[1]
PLACES, START, GAMMA = 5, 1, 0.95
RIGHT, LEFT = 1, 0
BEST = torch.tensor([0.0, GAMMA**2, GAMMA, 1.0, 0.0])  # V of going right


class Place(NamedTuple):
    here: Tensor  # one-hot [*B, 5]


class Chain(WorldModel, Rewarded):
    """Left or right; 0.1 on arrival at the left end, 1 at the right one, and each of them is an end."""

    def __init__(self, decoy: float = 0.1):
        super().__init__()
        self.spaces, self.feature_dim = Spaces((1, 1, 3), 2, True), PLACES
        self.earned = torch.tensor([decoy, 0.0, 0.0, 0.0, 1.0])
        self.asked: list[int] = []

    def imagine(self, latent: Place, action: Tensor, generator: Generator | None = None) -> Place:
        self.asked.append(len(action))
        place = latent.here.argmax(-1) + 2 * action.argmax(-1) - 1
        return at(place.clamp(0, PLACES - 1))

    def features(self, latent: Place) -> Tensor:
        return latent.here

    def reward(self, latent: Place) -> Tensor:
        return latent.here @ self.earned

    def continues(self, latent: Place) -> Tensor:
        return 1 - latent.here[..., 0] - latent.here[..., -1]

    def unused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("everything is seen")

    initial = observe = loss = filter = rollout = unused


def at(places: Any) -> Place:
    return Place(F.one_hot(torch.as_tensor(places), PLACES).float())


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def gumbel(simulations: int) -> Gumbel:
    return Gumbel(type="gumbel", simulations=simulations, max_depth=simulations, considered=16, c_visit=50.0,
                  c_scale=0.1, stretch=True, least_range=0.01)  # fmt: skip


def puct(simulations: int) -> PUCT:
    return PUCT(type="puct", simulations=simulations, max_depth=simulations, c1=1.25, c2=19652.0, stretch="tree",
                least_range=0.01, noise=0.25, noise_share=0.25, temperature=1.0)  # fmt: skip


def tree(search: Any) -> TreeExpert:
    return TreeExpert(type="tree", search=search, drawn=DrawnActions(count=6, wide=2, widening=3.0))


def sequences(planner: Any, start: str = "apprentice") -> SequenceExpert:
    return SequenceExpert(type="sequences", start=start, planner=planner, particles=1, stop_at_end=True, rows=1000)  # pyright: ignore[reportArgumentType]


def values(terms: tuple[str, ...], **changes: Any) -> Any:
    """Tables: one layer from features to logits and to a value, 0 at first."""
    actor = ActorConfig(
        layers=0, units=1, norm="none", activation="elu", output_scale=0.0, continuous="squashed_normal", unimix=0.0,
        exploration_noise=0.0, evaluation="mode",
    )  # fmt: skip
    critic = HeadConfig(layers=0, units=1, norm="none", activation="elu", output="normal", output_scale=0.0)
    common = dict(
        actor=actor, critic=critic, control="expert", discount=GAMMA, return_steps=2, entropy=0.0,
        expert=tree(gumbel(8)), scales=dict.fromkeys(terms, 1.0),
    )  # fmt: skip
    return common | changes


def alphazero_on(model: Any, **changes: Any) -> AlphaZero:
    return alphazero.Config(**values(("actor", "critic"), reanalysed=0, unroll=0, **changes)).build(model)


def exit_on(model: Any, **changes: Any) -> ExIt:
    return exit.Config(**values(("actor", "critic"), memory=500, batch=64, **changes)).build(model)


def windows(places: list[list[int]], model: Chain) -> tuple[Place, Sequence]:
    """Episodes one after the other: each ends where a window is at an end of the chain."""
    place = torch.tensor(places)
    action = F.one_hot((place.diff(dim=1, append=place[:, -1:]) > 0).long(), 2).float()
    terminal = (place == 0) | (place == PLACES - 1)
    first = torch.cat([torch.zeros_like(terminal[:, :1]), terminal[:, :-1]], 1)
    obs = torch.zeros(*place.shape, 1, 1, 3, dtype=torch.uint8)
    reward = model.reward(at(place))
    return at(place), Sequence(obs, action, reward, first, terminal, terminal, torch.zeros(len(place), 2))


# ----------------------------------------------------------------------------------------------- the search on latents


@pytest.mark.parametrize("search", [gumbel(6), puct(6)], ids=["gumbel", "puct"])
def test_the_targets_are_what_a_search_on_the_tables_finds(search: Any):
    model = Chain()
    agent = alphazero_on(model, expert=tree(search))
    small.awake(agent, seed=3)
    latent, batch = windows([[1, 2, 3, 4, 1, 2], [2, 1, 0, 1, 2, 3]], model)
    logits, value = agent.actor(at(range(PLACES)).here).log_probs, agent.critic(at(range(PLACES)).here).mean

    def step(place: Place, action: Tensor, generator: Generator | None) -> Step:
        where = (place.here.argmax(-1) + 2 * action - 1).clamp(0, PLACES - 1)
        ended = (where == 0) | (where == PLACES - 1)
        return Step(at(where), model.earned[where], GAMMA * (~ended).float(), logits[where], value[where])

    flat = latent.here.argmax(-1).flatten()
    torch.manual_seed(5)
    found = search(Root(logits[flat], value[flat], at(flat)), step, None, explore=True)
    torch.manual_seed(5)
    lesson = agent.reanalyse(model, latent, batch)
    torch.testing.assert_close(lesson.weights, found.weights.view(2, 6, 2))
    torch.testing.assert_close(lesson.value, found.value.view(2, 6))
    assert torch.equal(lesson.actions[1, 3], torch.eye(2)) and lesson.weights.std() > 0.05


def test_returns_are_real_rewards_and_then_the_searchs_value():
    model = Chain()
    agent = alphazero_on(model, return_steps=2)
    small.awake(agent, seed=3)
    latent, batch = windows([[2, 3, 4, 1, 0, 2]], model)
    lesson = agent.reanalyse(model, latent, batch)
    nu = lesson.value[0]
    expected = [GAMMA * 1.0, 1.0, nu[2], 0.1, nu[4], nu[5]]  # of ends their own value, which no loss sees
    torch.testing.assert_close(lesson.returns[0], torch.tensor([float(x) for x in expected]))
    latent, batch = windows([[1, 2, 1, 2]], model)
    agent = alphazero_on(model, return_steps=1)
    lesson = agent.reanalyse(model, latent, batch)
    torch.testing.assert_close(lesson.returns[0, :3], GAMMA * lesson.value[0, 1:])


def test_only_the_last_steps_are_searched_and_no_more():
    model = Chain()
    agent = alphazero_on(model)
    agent.config = replace(agent.config, reanalysed=3, unroll=2)
    latent, batch = windows([[1, 2, 1, 2, 3, 2, 3, 2]] * 4, model)
    agent.loss(model, latent, batch)
    assert model.asked == [12] * 8 + [8, 4], "8 simulations from 4 x 3 roots, 2 steps of the rest of each window"


@pytest.mark.parametrize("search", [gumbel(1), puct(1)], ids=["gumbel", "puct"])
def test_with_one_simulation_the_expert_is_the_apprentice(search: Any):
    for model, latent in ((Chain(), at([1, 2, 3])), (Linear(), Point(torch.randn(3, 1), torch.zeros(3, 1)))):
        for agent in (alphazero_on(model, expert=tree(search)), exit_on(model, expert=tree(search))):
            small.awake(agent, seed=1)
            carry = agent.initial(3, torch.device("cpu"))
            action, _ = agent.act(model, latent, carry, explore=False, generator=generator())
            torch.testing.assert_close(action, agent.actor(model.features(latent)).mode)


def test_the_search_solves_the_chain():
    """Nothing learned, 400 simulations see past the decoy; with the right values at the leaves 8 do."""
    model, places = Chain(), at([1, 2, 3])
    agent = alphazero_on(model, expert=tree(puct(400)))
    action, _ = agent.act(model, at([1]), None, explore=False, generator=generator())
    assert (action.argmax(-1) == RIGHT).all()
    for search in (puct(8), gumbel(8)):
        agent = alphazero_on(model, expert=tree(search))
        agent.critic.mlp.output.weight.data.copy_(BEST[None])
        advice = agent.config.expert(agent, model, places, GAMMA, explore=False, generator=generator())
        assert (advice.action.argmax(-1) == RIGHT).all() and (advice.weights[:, RIGHT] > 0.6).all()


def test_who_acts():
    model = Chain()
    for agent in (alphazero_on(model, control="apprentice"), exit_on(model, control="apprentice")):
        carry = agent.initial(1, torch.device("cpu"))
        model.asked.clear()
        agent.act(model, at([1]), carry, explore=False, generator=generator())
        assert not model.asked and agent.simulations == 0
        agent.act(model, at([1]), carry, explore=True, generator=generator())
        assert len(model.asked) == 8
    assert alphazero_on(model).simulations == exit_on(model).simulations == 8
    assert (
        exit_on(model, expert=sequences(RandomShooting(type="random_shooting", horizon=2, candidates=3))).simulations
        == 0
    )


def test_what_a_search_costs_and_brings_is_measured_by_its_simulations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acting, "matmul_peak", lambda *_: 1.0)  # takes a second, and is not asked about
    (row,) = acting.act(["alphazero"], ["--task", "toy:catch", "--preset", "debug"], [2], 2).rows
    assert row["simulations_per_s"] == pytest.approx(3 * row["actions_per_s"])
    set_simulations = runpy.run_path(str(ROOT / "results/search-that-teaches/measure.py"))["set_simulations"]
    for agent in (alphazero_on(Chain()), exit_on(Chain())):
        for simulations in (4, 0, 32):
            set_simulations(agent, simulations)
            assert agent.simulations == simulations


# ----------------------------------------------------------------------------------------------------------- imitation


def test_imitation_is_the_cross_entropy():
    weights = torch.tensor([[0.7, 0.3], [0.0, 1.0]])
    policy = OneHot(torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), 0.0)  # 1/4 and 3/4
    loss = imitation(policy, torch.eye(2).expand(2, -1, -1), weights)
    expected = [0.7 * math.log(4) + 0.3 * math.log(4 / 3), math.log(2)]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_imitation_of_drawn_actions_is_by_log_densities():
    raw, actions = torch.randn(3, 4), torch.rand(3, 5, 2) * 1.8 - 0.9
    weights = torch.rand(3, 5).softmax(-1)
    normal = torch.distributions.Normal(raw[:, None, :2], raw[:, None, 2:].exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    expected = -(weights * squashed.log_prob(actions).sum(-1)).sum(-1)
    torch.testing.assert_close(imitation(SquashedNormal(raw), actions, weights), expected, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- unrolled losses


def test_unrolling_follows_the_real_actions_as_far_as_the_episode():
    model = Chain()
    latent, batch = windows([[1, 2, 3, 4, 1, 2, 1, 0]], model)
    path = unroll(model, latent, batch, 3, 1.0)
    assert [place.here.shape[1] for place, _ in path] == [8, 7, 6, 5]
    for k, (place, reached) in enumerate(path):
        there = latent.here[:, k:]
        assert torch.equal(place.here[reached == 1], there[reached == 1])
    assert path[1].reached[0].tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert path[3].reached[0].tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"^unroll 8 .* --replay\.length$"):
        unroll(model, latent, batch, 8, 1.0)


def test_half_of_the_gradient_passes_each_step_and_all_of_it_reaches_the_dynamics():
    model = Linear(a=1.0, b=1.0)
    start = torch.tensor([[[1.0], [0.0], [0.0], [0.0], [0.0], [0.0]]], requires_grad=True)
    u = torch.tensor([[[0.5], [-1.0], [2.0], [3.0], [-0.25], [0.0]]])
    no = torch.zeros(1, 6, dtype=torch.bool)
    obs = torch.zeros(1, 6, 64, 64, 3, dtype=torch.uint8)
    batch = Sequence(obs, u, torch.zeros(1, 6), no, no, no, torch.zeros(1, 1))
    path = unroll(model, Point(start, torch.zeros(1, 6, 1)), batch, 5, 0.5)
    for k, (point, _) in enumerate(path):
        torch.testing.assert_close(point.s[0, 0, 0], 1 + u[0, :k, 0].sum())
        (to_start, *to_b) = torch.autograd.grad(point.s[0, 0, 0], [start, *([model.b] if k else [])], retain_graph=True)
        assert to_start[0, 0, 0] == 0.5**k
        if k:
            halves = torch.tensor([0.5 ** (k - 1 - j) for j in range(k)])
            torch.testing.assert_close(to_b[0], (halves * u[0, :k, 0]).sum())
    assert scale_gradient(u, 0.5) is u, "nothing to scale"


class Taught(Linear, Teachable):
    """Its reward is a head on s."""

    def __init__(self) -> None:
        super().__init__(a=0.9, b=0.5)
        self.head, self.ends = nn.Linear(1, 1), nn.Linear(1, 1)

    def reward(self, latent: Point) -> Tensor:
        return self.head(latent.s)[..., 0]

    def prediction_losses(self, latent: Point, reward: Tensor, continues: Tensor) -> tuple[Tensor, Tensor]:
        return UnitNormal(self.head(latent.s)).loss(reward), Bernoulli(self.ends(latent.s)).loss(continues)


def test_muzeros_terms_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    model, size, length, steps = Taught(), 3, 6, 3
    config = muzero.Config(**values(("actor", "critic", "reward", "continue"), reanalysed=0, unroll=steps,
                                    gradient_share=0.5))  # fmt: skip
    agent = config.build(model)
    small.awake(agent, seed=4)
    last, terminal = torch.zeros(size, length, dtype=torch.bool), torch.zeros(size, length, dtype=torch.bool)
    last[0, 2] = terminal[0, 2] = last[1, 3] = True
    s, u, reward = torch.randn(size, length, 1), torch.randn(size, length, 1).tanh(), torch.randn(size, length)
    obs = torch.zeros(size, length, 64, 64, 3, dtype=torch.uint8)
    batch = Sequence(obs, u, reward, torch.zeros_like(last), last, terminal, torch.zeros(size, 1))
    shape = (size, length, 4)
    lesson = Lesson(torch.rand(*shape, 1) * 2 - 1, torch.rand(shape).softmax(-1), s[..., 0], torch.randn(size, length))
    monkeypatch.setattr(MuZero, "reanalyse", lambda *_: lesson)
    found = agent.loss(model, Point(s, torch.zeros_like(s)), batch).terms

    parts: dict[str, dict[int, list[Tensor]]] = {name: {} for name in found}
    for b in range(size):
        for t in range(length):
            now = s[b, t]
            for k in range(min(steps, length - 1 - t) + 1):
                if k and last[b, t + k - 1]:
                    break
                now = now if k == 0 else model.a * now + model.b * u[b, t + k - 1]
                if k:
                    ends = model.ends(now)[0]
                    miss = F.binary_cross_entropy_with_logits(ends, 1 - terminal[b, t + k].float())
                    parts["reward"].setdefault(k, []).append(0.5 * (model.head(now)[0] - reward[b, t + k]) ** 2)
                    parts["continue"].setdefault(k, []).append(miss)
                if not terminal[b, t + k]:
                    policy, critic = agent.actor(now), agent.critic(now)
                    logs = torch.stack([policy.log_prob(action) for action in lesson.actions[b, t + k]])
                    parts["actor"].setdefault(k, []).append(-(lesson.weights[b, t + k] * logs).sum())
                    parts["critic"].setdefault(k, []).append(0.5 * (critic.mean - lesson.returns[b, t + k]) ** 2)
    for name, by_step in parts.items():
        means = {k: torch.stack(losses).mean() for k, losses in by_step.items()}
        expected = means.pop(0, torch.tensor(0.0)) + sum(means.values()) / steps
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    model = Linear()
    with pytest.raises(ValueError, match="^reanalysed must be 0 or more than unroll, 4, not 3$"):
        alphazero.Config(**values(("actor", "critic"), reanalysed=3, unroll=4))
    with pytest.raises(ValueError, match="needs a world model that is Teachable"):
        muzero.Config(**values(("actor",), reanalysed=0, unroll=1, gradient_share=0.5)).build(model)
    with pytest.raises(ValueError, match="^unroll must be 1 or more here, not 0: 0 is alphazero$"):
        muzero.Config(**values(("actor",), reanalysed=0, unroll=0, gradient_share=0.5))
    with pytest.raises(ValueError, match=r"^count must be 1 or more"):
        DrawnActions(count=2, wide=3, widening=1.0)
    with pytest.raises(ValueError, match=r"^memory and batch"):
        exit.Config(**values(("actor", "critic"), memory=0, batch=1))


# ------------------------------------------------------------------------------------------------ experts of sequences


def test_an_expert_of_one_draw_is_imitated_as_it_is():
    model = Chain()
    agent = exit_on(model, expert=sequences(RandomShooting(type="random_shooting", horizon=3, candidates=1)))
    small.awake(agent, seed=2)
    carry, places = agent.initial(3, torch.device("cpu")), at([1, 2, 3])
    action, carry = agent.act(model, places, carry, explore=True, generator=generator())
    agent.collected(model.features(places), action, carry, torch.ones(3, dtype=torch.bool))
    assert torch.equal(agent.ring.targets[:3, 0], torch.cat([action, torch.ones(3, 1)], -1))
    latent, batch = windows([[1, 2, 3, 4]], model)
    loss = agent.loss(model, latent, batch).terms["actor"]
    torch.manual_seed(0)
    features, labels, _ = agent.ring.draw(64, held_out=False)
    expected = -agent.actor(features).log_prob(labels[:, 0, :2]).mean()
    torch.manual_seed(0)
    torch.testing.assert_close(agent.imitated(held_out=False)[0], expected)
    assert loss.isfinite() and agent.ring.written == 3


def cem(std: float, horizon: int = 3) -> CEM:
    return CEM(type="cem", horizon=horizon, iterations=2, candidates=4, elites=2, initial_std=std, min_std=0.0,
               momentum=0.0, sampling="clip", warm_start=True, epsilon=0.0, result="mean")  # fmt: skip


def test_a_search_for_sequences_begins_with_what_the_apprentice_would_do():
    model = Linear()
    latent = Point(torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 1))
    for start, same in (("apprentice", True), ("plan", False)):
        agent = exit_on(model, expert=sequences(cem(1e-6), start))
        small.awake(agent, seed=2)
        carry = agent.initial(2, torch.device("cpu"))
        with torch.no_grad():
            action, carry = agent.act(model, latent, carry, explore=False, generator=generator())
            mode = agent.actor(latent.s).mode
        assert torch.allclose(action, mode, atol=1e-4) == same
        later = agent.act(model, latent, carry, explore=False, generator=generator())[1]
        assert torch.allclose(later.mean, carry.mean, atol=1e-4) and later.begun.all()


def test_of_discrete_actions_a_search_begins_half_way_to_what_the_apprentice_would_do():
    model = Chain()
    agent = exit_on(model, expert=sequences(cem(1.0)))
    agent.actor.mlp.output.weight.data[RIGHT] = 20.0  # always right
    expert = agent.config.expert
    assert isinstance(expert, SequenceExpert)
    mean = expert.foretold(agent, model, at([1]), agent.space, generator())
    torch.testing.assert_close(mean, torch.tensor([0.25, 0.75]).expand(1, 3, 2))


# ------------------------------------------------------------------------------------------------------------ learning


def collect(agent: Any, model: Chain, steps: int, seed: int) -> tuple[Place, Sequence]:
    """What an agent lives through from every place, and then from the start again and again."""
    g, starts = generator(seed), torch.tensor([1, 2, 3] * 3)
    envs = len(starts)
    place, carry, first = at(starts), agent.initial(envs, torch.device("cpu")), torch.ones(envs, dtype=torch.bool)
    rows = []
    for _ in range(steps):
        action, carry = agent.act(model, place, carry, explore=True, generator=g)
        agent.collected(model.features(place), action, carry, first)
        ended = model.continues(place) == 0
        rows.append((place.here, action, model.reward(place), first, ended))
        place = choose(ended, at([START] * envs), model.imagine(place, action))
        first = ended
    here, action, reward, begun, ended = (torch.stack(part, 1) for part in zip(*rows, strict=True))
    obs = torch.zeros(envs, steps, 1, 1, 3, dtype=torch.uint8)
    return Place(here), Sequence(obs, action, reward, begun, ended, ended, torch.zeros(envs, 2))


def judged(agent: Any, model: Chain) -> tuple[float, float]:
    """The return of the apprentice alone, greedy, and its entropy at the places where something is to be decided."""
    place, total = at([START]), 0.0
    for t in range(10):
        place = model.imagine(place, agent.actor(model.features(place)).mode)
        total += GAMMA**t * model.reward(place).item()
        if model.continues(place) == 0:
            break
    return total, agent.actor(at([1, 2, 3]).here).entropy().mean().item()


def improves(agent: Any, model: Chain, lessons: Any, updates: int, lr: float) -> None:
    """Entropy falls and greedy returns never do, until the apprentice alone reaches the goal (the sheet's tenth)."""
    agent.actor.mlp.output.weight.data[LEFT, 1] = 0.1  # at first it goes left
    optimizer, history = torch.optim.Adam(agent.parameters(), lr=lr), [judged(agent, model)]
    for iteration in range(5):
        with torch.no_grad():
            latent, batch = lessons(iteration)
        for _ in range(updates):
            optimizer.zero_grad()
            sum(agent.loss(model, latent, batch).terms.values(), torch.zeros(())).backward()
            optimizer.step()
        history.append(judged(agent, model))
    returns, entropies = zip(*history, strict=True)
    assert returns[0] == 0 and returns[-1] == pytest.approx(GAMMA**2), returns
    assert all(b >= a for a, b in itertools.pairwise(returns)), returns
    assert entropies[-1] < 0.8 * entropies[0], entropies
    value = agent.critic(at([1, 2, 3]).here).mean
    assert (value.diff() > 0).all() and value[2] > 0.5, value


@pytest.mark.parametrize("search", [gumbel(6), puct(6)], ids=["gumbel", "puct"])
def test_alphazeros_apprentice_comes_to_reach_the_goal(search: Any):
    model = Chain(decoy=0.0)
    lesson = windows([[1, 2, 3, 4], [3, 2, 1, 0]], model)
    improves(alphazero_on(model, expert=tree(search), return_steps=1), model, lambda _: lesson, 4, 0.2)


SHOOTING = RandomShooting(type="random_shooting", horizon=3, candidates=32)


@pytest.mark.parametrize("expert", [tree(puct(6)), sequences(SHOOTING)], ids=["tree", "sequences"])
def test_the_apprentice_of_expert_iteration_comes_to_reach_the_goal(expert: Any):
    model = Chain(decoy=0.0)
    agent = exit_on(model, expert=expert, return_steps=4)
    improves(agent, model, lambda iteration: collect(agent, model, 5, iteration), 15, 0.1)
