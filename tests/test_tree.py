"""Tree search against closed forms, a plain search of one tree, and the trees of DeepMind's mctx."""

import dataclasses
import itertools
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Generator, Tensor

from agents.planning import (
    PUCT,
    Gumbel,
    Recurrent,
    Root,
    Sampled,
    Searched,
    Step,
    TreeSearch,
    by_index,
    draw_actions,
    noise,
)
from agents.planning.gumbel import completed, halving, mixed_value, proportional
from agents.planning.noise import dirichlet_noise, gumbel_noise
from agents.planning.puct import bonus, by_siblings, by_tree, exploration_rate
from agents.planning.tree import NONE, Nodes
from worldmodels.strict import from_dict, to_dict

ROOT = Path(__file__).parents[1]


def puct(simulations: int, **more: Any) -> PUCT:
    """MuZero's values."""
    values: dict[str, Any] = {"max_depth": simulations, "c1": 1.25, "c2": 19652.0, "stretch": "tree"}
    values |= {"least_range": 0.01, "noise": 0.25, "noise_share": 0.25, "temperature": 1.0}
    return PUCT(**{"type": "puct", "simulations": simulations} | values | more)


def gumbel(simulations: int, **more: Any) -> Gumbel:
    """The values for Atari."""
    values: dict[str, Any] = {"max_depth": simulations, "considered": 16, "c_visit": 50.0, "c_scale": 0.1}
    values |= {"stretch": True, "least_range": 1e-8}
    return Gumbel(**{"type": "gumbel", "simulations": simulations} | values | more)


SEARCHES: dict[str, Callable[..., TreeSearch]] = {
    "puct": puct,
    "puct-siblings": lambda n, **more: puct(n, stretch="siblings", **more),
    "gumbel": gumbel,
    "gumbel-plain": lambda n, **more: gumbel(n, stretch=False, c_scale=1.0, **more),
}
every_search = pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)


class State(NamedTuple):
    place: Tensor  # int64 [B]
    memory: Tensor  # float32 [B, 2]; changes nothing, tells paths apart


class World(NamedTuple):
    """Tables over places and actions; what a policy and a value say of each place."""

    next: Tensor
    reward: Tensor
    discount: Tensor
    logits: Tensor
    value: Tensor

    def root(self, places: Tensor) -> Root:
        memory = torch.zeros(len(places), 2)
        return Root(self.logits[places], self.value[places], State(places, memory))

    def step(self, state: State, action: Tensor, generator: Generator | None) -> Step:
        edge, place = (state.place, action), self.next[state.place, action]
        embedding = State(place, torch.stack([state.memory[:, 0] + 1, state.memory[:, 1] * 4 + action], 1))
        return Step(embedding, self.reward[edge], self.discount[edge], self.logits[place], self.value[place])


def world(actions: int = 4, places: int = 30, seed: int = 0) -> World:
    """A random one; one edge in ten is an end."""
    g = generator(seed)
    edges = (places, actions)
    discount = (torch.rand(edges, generator=g) > 0.1) * 0.95
    reward, logits = (torch.randn(edges, generator=g) for _ in range(2))
    return World(torch.randint(places, edges, generator=g), reward, discount, logits, torch.randn(places, generator=g))


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def search(
    one: TreeSearch, of: World, places: Tensor | None = None, explore: bool = True, seed: int = 0, **more: Any
) -> Searched:
    return one(
        of.root(torch.arange(6) if places is None else places), of.step, generator(seed), explore=explore, **more
    )


def parts(found: Searched) -> list[Tensor]:
    tree = found.tree._asdict()
    return [*found[:-1], *tree.pop("embedding"), *tree.values()]


def assert_same(one: Searched, other: Searched, rows: Any = slice(None), others: Any = slice(None)) -> None:
    for a, b in zip(parts(one), parts(other), strict=True):
        assert torch.equal(a[rows], b[others])


def nodes(logits: Any, value: Any, visits: Any, q: Any, low: float = 0.0, high: float = 1.0) -> Nodes:
    """One node by itself."""
    row = [torch.tensor(part, dtype=torch.float32)[None, None] for part in (logits, value, visits, q)]
    return Nodes(*row, torch.tensor([[low]]), torch.tensor([[high]]))


# What every search promises


@every_search
@pytest.mark.parametrize("simulations", [1, 2, 17])
def test_shapes_types_and_sums(make: Any, simulations: int):
    found = search(make(simulations), world())
    assert found.action.shape == found.value.shape == (6,)
    assert found.weights.shape == found.visits.shape == found.q.shape == (6, 4)
    assert found.action.dtype == found.visits.dtype == torch.int64
    assert found.weights.dtype == found.value.dtype == found.q.dtype == torch.float32
    assert (found.visits.sum(1) == simulations).all() and ((0 <= found.action) & (found.action < 4)).all()
    torch.testing.assert_close(found.weights.sum(1), torch.ones(6))
    assert (found.weights >= 0).all() and (found.q[found.visits == 0] == 0).all()
    assert found.tree.embedding.memory.shape == (6, simulations + 1, 2)


@every_search
def test_a_batch_is_its_rows(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Every row with a generator of its own: exactly what separate searches find."""
    rows: list[Generator] = []

    def by_row(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda shape, like, generator: torch.stack([draw(tuple(shape)[1:], generator=row) for row in rows])

    monkeypatch.setattr(noise, "random_normal", by_row(torch.randn))
    monkeypatch.setattr(noise, "random_uniform", by_row(torch.rand))
    invalid = torch.rand(6, 4, generator=generator(5)) < 0.3
    rows[:] = [generator(b) for b in range(6)]
    together = search(make(25), world(), invalid=invalid)
    for b in range(6):
        rows[:] = [generator(b)]
        alone = search(make(25), world(), torch.tensor([b]), invalid=invalid[b : b + 1])
        assert_same(together, alone, slice(b, b + 1))


@every_search
def test_rows_that_change_places_take_their_results_along(make: Any):
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    one, other = search(make(30), world(), explore=False), search(make(30), world(), order, explore=False)
    assert_same(one, other, order)


@every_search
def test_what_goes_wrong_in_one_row_stays_there(make: Any):
    sane = world()
    broken = sane._replace(value=sane.value.clone())
    broken.value[1] = torch.nan
    one, other = search(make(20), sane, explore=False), search(make(20), broken, explore=False)
    away = [b for b in range(6) if 1 not in one.tree.embedding.place[b]]
    assert away and other.value[1].isnan()
    assert_same(one, other, away, away)


@every_search
def test_noise_is_the_generators(make: Any):
    state = torch.get_rng_state()
    found = search(make(3), world())
    assert_same(found, search(make(3), world()))
    others = [search(make(3), world(), seed=seed) for seed in range(1, 9)]
    assert any(not torch.equal(found.visits, other.visits) for other in others)
    assert torch.equal(state, torch.get_rng_state())


@every_search
def test_without_exploring_there_is_no_noise(make: Any):
    found = search(make(20), world(), explore=False)
    for seed in range(1, 5):
        assert_same(found, search(make(20), world(), explore=False, seed=seed))
    torch.testing.assert_close(found.tree.logits[:, 0], world().logits[:6].log_softmax(-1))


@every_search
def test_one_simulation_takes_the_priors_best_action(make: Any):
    of = world(actions=9)
    found = search(make(1), of, torch.arange(30), explore=False)
    best = of.logits.argmax(1)
    assert torch.equal(found.action, best)
    assert torch.equal(found.visits, torch.nn.functional.one_hot(best, 9))


@every_search
def test_nothing_is_recorded_for_a_gradient(make: Any):
    of = world()
    learnt = of._replace(logits=of.logits.requires_grad_(), value=of.value.requires_grad_())
    found = search(make(5), learnt)
    assert not any(part.requires_grad for part in parts(found))


@every_search
def test_inputs_stay_as_they_were(make: Any):
    of = world()
    root = of.root(torch.arange(6))
    before = [root.logits.clone(), root.value.clone(), *(part.clone() for part in root.embedding)]
    make(10)(root, of.step, generator(), explore=True)
    for one, other in zip(before, [root.logits, root.value, *root.embedding], strict=True):
        assert torch.equal(one, other)


@every_search
def test_the_model_is_asked_once_for_every_simulation(make: Any):
    asked: list[tuple[int, ...]] = []

    def counted(state: State, action: Tensor, generator: Generator | None) -> Step:
        asked.append((*action.shape, *state.memory.shape))
        return world().step(state, action, generator)

    make(12)(world().root(torch.arange(6)), counted, None, explore=False)
    assert asked == [(6, 6, 2)] * 12


@every_search
def test_invalid_actions_are_never_taken_at_the_root(make: Any):
    invalid = torch.rand(6, 4, generator=generator(3)) < 0.5
    invalid[:, 3], invalid[0] = False, torch.tensor([True, True, True, False])
    for explore, simulations in itertools.product((True, False), (1, 3, 40)):
        found = search(make(simulations), world(), explore=explore, invalid=invalid)
        assert (found.visits[invalid] == 0).all() and (found.weights[invalid] == 0).all()
        assert not invalid[torch.arange(6), found.action].any()
        assert (found.visits.sum(1) == simulations).all() and found.value.isfinite().all()
    assert found.visits[0].tolist() == [0, 0, 0, 40]
    inside = found.tree.visits[:, 1:].sum((1, 2))
    assert (found.tree.visits[:, 1:].sum(1) * invalid).sum() > 0 and (inside > 0).all()  # only at the root


@every_search
def test_an_action_without_a_chance_is_as_good_as_invalid(make: Any):
    of, invalid = world(), torch.zeros(6, 4, dtype=torch.bool)
    invalid[2, :2] = invalid[4, 3] = True
    root = of.root(torch.arange(6))
    impossible = root._replace(logits=root.logits.masked_fill(invalid, -torch.inf))
    found = make(20)(impossible, of.step, generator(), explore=True)
    assert_same(found, make(20)(root, of.step, generator(), explore=True, invalid=invalid))


@every_search
def test_a_row_without_a_valid_action_is_searched_as_if_all_were(make: Any):
    """At the end of an episode; whatever is found there, it is finite, and the other rows do not notice."""
    invalid = torch.zeros(6, 4, dtype=torch.bool)
    invalid[2] = True
    found = search(make(20), world(), invalid=invalid)
    assert_same(found, search(make(20), world()))
    root = world().root(torch.arange(6))
    hopeless = root._replace(logits=torch.full_like(root.logits, -torch.inf))
    assert all(part.isfinite().all() for part in make(20)(hopeless, world().step, None, explore=True)[:-1])


@every_search
def test_statistics_are_those_of_the_tree(make: Any):
    """Visits of an edge are 1 and those below; Q is the reward and the discounted mean value of the child."""
    found = search(make(60), world())
    tree, means = found.tree, found.tree.first(61).mean_value
    used = 0
    for b, n in itertools.product(range(6), range(1, 61)):
        parent, action = tree.parent[b, n], tree.action[b, n]
        assert tree.child[b, parent, action] == n and parent < n
        assert tree.visits[b, parent, action] == 1 + tree.visits[b, n].sum()
        q = tree.total[b, parent, action] / tree.visits[b, parent, action]
        torch.testing.assert_close(q, tree.reward[b, n] + tree.discount[b, n] * means[b, n], rtol=1e-4, atol=1e-5)
        used += 1
    assert used == 360 and (tree.child != NONE).sum() == 360 and torch.equal(found.value, means[:, 0])


@every_search
def test_the_greatest_depth_is_kept_and_a_sampled_step_stays_what_it_was(make: Any):
    """Below the depth an edge is visited again and again; nothing of what was first said of it changes."""
    of, calls = world(actions=2), itertools.count()

    def noisy(state: State, action: Tensor, generator: Generator | None) -> Step:
        step = of.step(state, action, generator)
        return step._replace(value=step.value + next(calls))

    found = make(30, max_depth=2)(of.root(torch.arange(6)), noisy, None, explore=False)
    tree = found.tree
    assert tree.embedding.memory[..., 0][tree.parent != NONE].amax() == 2
    assert (found.visits.sum(1) == 30).all() and ((tree.parent != NONE).sum(1) <= 6).all()
    for b, n in (tree.parent != NONE).nonzero().tolist():
        if tree.embedding.memory[b, n, 0] == 2:
            edge = b, tree.parent[b, n], tree.action[b, n]
            q = tree.reward[b, n] + tree.discount[b, n] * tree.value[b, n]
            torch.testing.assert_close(tree.total[edge], tree.visits[edge] * q, rtol=1e-4, atol=1e-4)


@every_search
def test_nothing_counts_beyond_an_end(make: Any):
    """Places are either before or beyond the ends; whatever is said of those beyond, roots are searched alike."""
    of = world(actions=3, places=20)
    next_, discount = of.next % 10, torch.full_like(of.discount, 0.9)
    next_[:10, 0], discount[:10, 0] = torch.arange(10, 20), 0.0
    next_[10:] += 10
    one = of._replace(next=next_, discount=discount)
    other = one._replace(reward=one.reward.clone(), value=one.value.clone(), logits=one.logits.clone())
    other.reward[10:], other.value[10:], other.logits[10:] = -1000.0, 500.0, 0.0
    found, changed = search(make(60), one), search(make(60), other)
    assert (found.tree.embedding.place >= 10).any()
    for a, b in zip(found[:-1], changed[:-1], strict=True):
        assert torch.equal(a, b)


@every_search
def test_shapes_that_do_not_fit_are_refused(make: Any):
    of, root = world(), world().root(torch.arange(6))
    with pytest.raises(ValueError, match="value of 6 nodes has to be"):
        make(3)(root._replace(value=root.value[:, None]), of.step, None, explore=False)

    def wrong(state: State, action: Tensor, generator: Generator | None) -> Step:
        return of.step(state, action, generator)._replace(reward=torch.zeros(()))

    with pytest.raises(ValueError, match="reward of 6 nodes has to be"):
        make(3)(root, wrong, None, explore=False)
    with pytest.raises(ValueError, match="invalid has to be"):
        make(3)(root, of.step, None, explore=False, invalid=torch.zeros(6, 3, dtype=torch.bool))


def test_searches_are_values():
    """From YAML and back, chosen by ``type``; values out of range are refused by name."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        search: TreeSearch

    bad = {"simulations": 0, "max_depth": 0, "c2": 0.0, "least_range": 0.0, "noise": 0.0, "c1": -1.0, "considered": 0}
    bad |= {"temperature": -1.0, "noise_share": 1.5, "c_visit": -1.0, "c_scale": -0.1}
    refused = set()
    for one in (puct(8), gumbel(8)):
        values = to_dict(Config(search=one))
        assert from_dict(Config, values, "test") == Config(search=one)
        for name in bad.keys() & values["search"].keys():
            with pytest.raises(ValueError, match=name):
                from_dict(Config, {"search": values["search"] | {name: bad[name]}}, "test")
            refused.add(name)
    assert refused == bad.keys()


# mctx


def test_trees_are_those_of_mctx():
    """Every visit of every edge, with Gumbel noise and without, masks, ends, and a greatest depth."""
    compare = runpy.run_path(str(ROOT / "results/search-vs-mctx/compare.py"))["compare"]
    with np.load(ROOT / "tests/data/mctx.npz", allow_pickle=False) as arrays:
        rows = compare(dict(arrays))
    assert [row["search"] for row in rows] == ["puct"] * 4 + ["gumbel"] * 6
    assert max(row["deepest"] for row in rows) >= 10
    for row in rows:
        assert row["visits"] and row["nodes"] and row["best"], row
        assert row["weights"] < 1e-5 and row["value"] < 1e-5 and row["node_values"] < 1e-5, row


# pUCT


def test_exploration_rate_has_the_golden_values():
    rate = exploration_rate(torch.tensor([0.0, 50, 800, 20000], dtype=torch.float64), 1.25, 19652)
    torch.testing.assert_close(rate, torch.tensor([1.25005, 1.25259, 1.28995, 1.95199]).double(), atol=5e-6, rtol=0)


def test_bonus_by_hand():
    one = nodes([math.log(0.75), math.log(0.25)], 0.0, [3, 0], [0.0, 0.0])
    expected = [0.75 * 2 / 4 * 1.25, 0.25 * 2 * 1.25]  # n = 4
    torch.testing.assert_close(bonus(one, 1.25, 1e9)[0, 0], torch.tensor(expected))


def test_stretching_by_hand():
    one = nodes([0.0, 0.0, 0.0], 4.0, [1, 2, 0], [1.0, 2.0, 0.0], low=-1.0, high=3.0)
    torch.testing.assert_close(by_tree(one, 0.01)[0, 0], torch.tensor([0.5, 0.75, 0]))
    torch.testing.assert_close(by_tree(one, 8.0)[0, 0], torch.tensor([0.25, 0.375, 0]))  # a range below the least one
    # the node's own value is (4 + 1 + 4) / 4 = 2.25, above both
    torch.testing.assert_close(by_siblings(one, 0.01)[0, 0], torch.tensor([0, 1 / 1.25, 0]))
    new = nodes([0.0, 0.0], 1.0, [0, 0], [0.0, 0.0], low=torch.inf, high=-torch.inf)
    assert by_tree(new, 0.01).tolist() == by_siblings(new, 0.01).tolist() == [[[0, 0]]]


def test_a_tiny_tree_by_hand():
    """Two places; action 0 stays and earns 1, action 1 moves and earns 0; discount 0.5; values 2 and 10.

    From place 0, prior 0.6 and 0.4. 1: action 0, G = 1 + 0.5 * 2 = 2. 2: both at 0 after stretching a single Q, bonus
    0.6 sqrt(2) / 2 < 0.4 sqrt(2): action 1, G = 0 + 0.5 * 10 = 5. 3: action 1 has q = 1 and more bonus; below, prior
    0.4 and 0.6 the other way round: action 1 back to place 0, G = 0 + 0.5 (0 + 0.5 * 2) = 0.5, mean (5 + 0.5) / 2.
    """
    tiny = World(
        next=torch.tensor([[0, 1], [1, 0]]),
        reward=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        discount=torch.full((2, 2), 0.5),
        logits=torch.tensor([[0.6, 0.4], [0.4, 0.6]]).log(),
        value=torch.tensor([2.0, 10.0]),
    )
    found = search(puct(3), tiny, torch.tensor([0]), explore=False)
    assert found.visits.tolist() == [[1, 2]] and found.action.tolist() == [1]
    torch.testing.assert_close(found.q, torch.tensor([[2.0, 2.75]]))
    torch.testing.assert_close(found.value, torch.tensor([(2 + 2 + 5 + 0.5) / 4]))
    torch.testing.assert_close(found.weights, torch.tensor([[1 / 3, 2 / 3]]))
    tree = found.tree
    assert tree.parent.tolist() == [[NONE, 0, 0, 2]] and tree.action.tolist() == [[NONE, 0, 1, 1]]
    assert tree.embedding.place.tolist() == [[0, 0, 1, 0]] and tree.reward.tolist() == [[0, 1, 0, 0]]
    assert (tree.low.item(), tree.high.item()) == (1.0, 5.0)  # 0.5 * 2 from place 1; action 1 when it had been once


class Plain:
    """One node of a plain search of a single tree, written after MuZero's pseudocode and in double precision."""

    def __init__(self, of: World, place: int, reward: float = 0.0, discount: float = 0.0):
        self.place, self.reward, self.discount = place, reward, discount
        self.prior = of.logits[place].double().softmax(0).tolist()
        self.value = of.value[place].item()
        self.children: dict[int, Plain] = {}
        self.visits, self.total = [0] * len(self.prior), [0.0] * len(self.prior)


def plain_search(of: World, place: int, one: PUCT) -> tuple[list[int], float]:
    root, low, high = Plain(of, place), math.inf, -math.inf

    def score(node: Plain, a: int) -> float:
        n = 1 + sum(node.visits)
        q = (node.total[a] / node.visits[a] - low) / max(high - low, one.least_range) if node.visits[a] else 0.0
        return q + node.prior[a] * math.sqrt(n) / (1 + node.visits[a]) * (one.c1 + math.log((n + one.c2 + 1) / one.c2))

    for _ in range(one.simulations):
        node, path = root, []
        while True:
            action = max(range(len(node.prior)), key=lambda a: score(node, a))  # noqa: B023
            path.append((node, action))
            known = action in node.children
            if not known:
                edge = node.place, action
                node.children[action] = Plain(
                    of, int(of.next[edge]), of.reward[edge].item(), of.discount[edge].item()
                )  # fmt: skip
            node = node.children[action]
            if not known or len(path) == one.max_depth:
                break
        ahead = node.value
        for node, action in reversed(path):
            ahead = node.children[action].reward + node.children[action].discount * ahead
            node.visits[action] += 1
            node.total[action] += ahead
        for node, action in path:
            q = node.total[action] / node.visits[action]
            low, high = min(low, q), max(high, q)
            if node.children[action].discount == 0:
                break
    return root.visits, (root.value + sum(root.total)) / (1 + one.simulations)


@pytest.mark.parametrize("max_depth", [50, 3])
def test_the_batch_finds_what_a_plain_search_finds(max_depth: int):
    of, one = world(), puct(50, max_depth=max_depth)
    found = search(one, of, torch.arange(12), explore=False)
    for place in range(12):
        visits, value = plain_search(of, place, one)
        assert found.visits[place].tolist() == visits
        assert found.value[place].item() == pytest.approx(value, abs=1e-5)


def chain(value: Callable[[int], float]) -> World:
    """Five places in a row, a reward of 1 and the end at the right, a decoy of 0.1 and the end at the left."""
    next_ = torch.tensor([[max(0, s - 1), min(4, s + 1)] for s in range(5)])
    reward, discount = torch.zeros(5, 2), torch.full((5, 2), 0.95)
    reward[1, 0], reward[3, 1], discount[1, 0], discount[3, 1] = 0.1, 1.0, 0.0, 0.0
    return World(next_, reward, discount, torch.zeros(5, 2), torch.tensor([value(s) for s in range(5)]))


def test_a_chain_with_its_true_values_takes_eight_simulations():
    optimal = chain(lambda s: [0, 0.95**2, 0.95, 1, 0][s])
    found = search(puct(8), optimal, torch.tensor([1]), explore=False)
    assert found.visits.tolist() == [[1, 7]] and found.action.item() == 1
    torch.testing.assert_close(found.q[0, 0], torch.tensor(0.1))


def test_a_chain_without_values_takes_hundreds_and_few_follow_the_decoy():
    """Stretched to [0, 1], a decoy of 0.1 is as much as 1 before 1 was ever seen."""
    found = search(puct(400), chain(lambda s: 0.0), torch.tensor([1]), explore=False)
    assert found.action.item() == 1 and 0.75 < found.q[0, 1].item() < 0.95**2
    early = search(puct(50, temperature=0.0), chain(lambda s: 0.0), torch.ones(20, dtype=torch.int64))
    assert (early.action == 0).all()


def optimal_q(of: World) -> Tensor:
    q = torch.zeros_like(of.reward)
    for _ in range(600):
        q = of.reward + of.discount * q.amax(1)[of.next]
    return q


@every_search
def test_a_small_world_is_solved(make: Any):
    """Policy and value know nothing; what is clearly optimal is found."""
    of = world(actions=3)
    of = of._replace(discount=of.discount * 0.4, logits=of.logits * 0, value=of.value * 0)
    q = optimal_q(of)
    clear = q.topk(2, 1).values.diff(dim=1).squeeze(1) < -0.3
    found = search(make(60), of, torch.arange(30), explore=False)
    assert torch.equal(found.action[clear], q.argmax(1)[clear])
    assert clear.sum() >= 15 and (of.reward.argmax(1) != q.argmax(1))[clear].any()  # the greedy one is not enough


def test_drawn_actions_follow_the_visits():
    of = world()
    places, seeds = torch.zeros(4000, dtype=torch.int64), generator(1)
    for temperature in (1.0, 0.5):
        one = puct(12, noise_share=0.0, temperature=temperature)
        found = one(of.root(places), of.step, seeds, explore=True)
        share = found.visits[0] ** (1 / temperature)
        drawn = torch.bincount(found.action, minlength=4) / 4000
        torch.testing.assert_close(drawn, share / share.sum(), atol=0.03, rtol=0)
        assert (found.visits == found.visits[0]).all() and (share > 0).sum() > 1


def test_equal_visits_are_decided_by_the_prior():
    flat = world(actions=3)
    flat = flat._replace(reward=flat.reward * 0, value=flat.value * 0)
    found = search(puct(3, temperature=0.0, noise_share=0.0, c1=100.0), flat, torch.arange(30))
    equal = (found.visits == 1).all(1)
    assert equal.any() and torch.equal(found.action[equal], flat.logits.argmax(1)[equal])


def test_noise_at_the_root_has_its_share():
    of = world()
    found = puct(2, noise_share=0.25)(of.root(torch.zeros(3000, dtype=torch.int64)), of.step, generator(), explore=True)
    prior, mixed = of.logits[0].softmax(0), found.tree.logits[:, 0].exp()
    torch.testing.assert_close(mixed.mean(0), 0.75 * prior + 0.25 / 4, atol=0.01, rtol=0)
    assert (mixed >= 0.75 * prior - 1e-6).all() and mixed.std(0).amin() > 0.05
    torch.testing.assert_close(found.tree.logits[:, 1].exp(), of.logits.softmax(1)[found.tree.embedding.place[:, 1]])


# Noise


@pytest.mark.parametrize("concentration", [0.03, 0.25, 2.0])
def test_dirichlet_noise_has_beta_margins(concentration: float):
    valid = torch.ones(4000, 5, dtype=torch.bool)
    valid[:, 3] = False
    drawn = dirichlet_noise(valid, concentration, torch.zeros(4000, 5), generator())
    torch.testing.assert_close(drawn.sum(1), torch.ones(4000))
    assert (drawn[:, 3] == 0).all() and drawn.isfinite().all()
    for column in (0, 4):
        margin = scipy.stats.beta(concentration, 3 * concentration)
        edges = np.array([1e-6, 1e-3, 0.1, 0.3, 0.7, 0.99])
        observed = (drawn[:, column].numpy()[:, None] <= edges).mean(0)
        assert np.abs(observed - margin.cdf(edges)).max() < 0.025


def test_gumbel_noise_is_that():
    drawn = gumbel_noise(torch.zeros(5000), generator()).numpy()
    assert scipy.stats.kstest(drawn, scipy.stats.gumbel_r.cdf).pvalue > 0.01


# Gumbel


@pytest.mark.parametrize(
    ("considered", "simulations", "expected"),
    [
        (4, 8, [0] * 4 + [1, 1, 2, 2]),
        (4, 16, [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]),
        (16, 16, [0] * 16),
        (1, 3, [0, 1, 2]),
        (3, 5, [0, 0, 0, 1, 1]),
    ],
)
def test_halving_visits_in_the_golden_order(considered: int, simulations: int, expected: list[int]):
    assert list(halving(considered, simulations)) == expected


def bandit(logits: Tensor, reward: Tensor) -> tuple[Root, Recurrent]:
    """Every row a bandit of its own: one action, one reward, and the end."""

    def pull(row: Tensor, action: Tensor, generator: Generator | None) -> Step:
        zero = torch.zeros(len(row))
        return Step(row, reward[row, action], zero, logits[row], zero)

    return Root(logits, (logits.softmax(1) * reward).sum(1), torch.arange(len(logits))), pull


@pytest.mark.parametrize(
    ("considered", "simulations", "expected"),
    [
        (16, 50, [12, 12, 5, 5, 2, 2, 2, 2] + [1] * 8),
        (16, 200, [49, 49, 21, 21] + [9] * 4 + [3] * 8),
        (4, 16, [6, 6, 2, 2]),
    ],
)
def test_halving_ends_with_the_golden_counts(considered: int, simulations: int, expected: list[int]):
    g = generator()
    root, pull = bandit(torch.randn(5, considered, generator=g), torch.randn(5, considered, generator=g))
    found = gumbel(simulations)(root, pull, g, explore=True)
    assert found.visits.sort(1, descending=True).values.tolist() == [expected] * 5
    assert found.visits.gather(1, found.action[:, None]).tolist() == [[expected[0]]] * 5


def test_completed_values_have_the_golden_values():
    one = nodes([math.log(p) for p in (0.5, 0.3, 0.2)], 0.2, [2, 1, 0], [0.4, 0.1, 0.0])
    torch.testing.assert_close(mixed_value(one), torch.tensor([[0.265625]]))
    torch.testing.assert_close(completed(one)[0, 0], torch.tensor([0.4, 0.1, 0.265625]))
    raised = gumbel(2).raised(one)[0, 0]
    expected = [0.95945, 0.00318, 0.03737]
    torch.testing.assert_close(raised.softmax(0), torch.tensor(expected), atol=1e-5, rtol=0)
    stretched = (raised - one.logits[0, 0]) / (0.1 * 52)
    torch.testing.assert_close(stretched, torch.tensor([1, 0, 0.55208]), atol=1e-5, rtol=0)


def test_completed_values_survive_priors_and_visits_of_zero():
    untouched = nodes([math.log(0.5), math.log(0.5)], 0.7, [0, 0], [0.0, 0.0])
    torch.testing.assert_close(completed(untouched)[0, 0], torch.tensor([0.7, 0.7]))
    without_a_chance = nodes([0.0, -math.inf], 0.5, [0, 2], [0.0, 2.0])
    torch.testing.assert_close(mixed_value(without_a_chance), torch.tensor([[(0.5 + 2 * 2) / 3]]))


@pytest.mark.parametrize(("simulations", "best"), [(1, 0.2), (2, 0.486), (3, 1.0)])
def test_a_bandit_is_won_as_often_as_worked_out(simulations: int, best: float):
    """q = (0, 0, 1), pi = (0.5, 0.3, 0.2). The best action is among n drawn without replacement; the prior's top two
    never have it."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20000, 3)
    root, pull = bandit(logits, torch.tensor([0.0, 0, 1]).expand(20000, 3))
    found = gumbel(simulations, considered=simulations, c_scale=1.0, stretch=False)(
        root, pull, generator(), explore=True
    )
    assert (found.action == 2).float().mean().item() == pytest.approx(best, abs=0.012)
    calm = gumbel(simulations, considered=simulations, c_scale=1.0, stretch=False)(root, pull, None, explore=False)
    assert (calm.action == (2 if simulations == 3 else 0)).all()


@pytest.mark.parametrize("simulations", [1, 2, 12])
def test_the_policy_to_learn_is_better_than_the_prior(simulations: int):
    """In every single bandit where every action was tried, or one, by what v_mix then is; with 2 on average."""
    g = generator(simulations)
    logits, reward = 2 * torch.randn(2000, 6, generator=g), torch.randn(2000, 6, generator=g)
    root, pull = bandit(logits, reward)
    for stretch in (True, False):
        found = gumbel(simulations, stretch=stretch)(root, pull, g, explore=True)
        gain = ((found.weights - logits.softmax(1)) * reward).sum(1)
        assert gain.mean() > 0.1 and (simulations == 2 or gain.amin() > -1e-5)


def test_visits_inside_become_proportional_to_the_policy():
    policy, visits = torch.tensor([[[0.6, 0.3, 0.1]]]), torch.zeros(1, 1, 3)
    for _ in range(100):
        visits[0, 0, proportional(policy, visits)] += 1
    torch.testing.assert_close(visits / 100, policy, atol=0.0101, rtol=0)


# Sampled actions


def sampled(of: World, order: Tensor) -> tuple[Root, Recurrent]:
    """The world with one-hot actions, offered at each place in an order of its own."""
    one_hot = torch.eye(order.shape[1])

    def offer(state: State) -> tuple[Sampled, Tensor]:
        here = order[state.place]
        return Sampled(state, one_hot[here]), of.logits[state.place].gather(1, here)

    def move(state: State, action: Tensor, generator: Generator | None) -> Step:
        step = of.step(state, action.argmax(1), generator)
        embedding, logits = offer(step.embedding)
        return step._replace(embedding=embedding, logits=logits)

    root = of.root(torch.arange(6))
    embedding, logits = offer(root.embedding)
    return root._replace(embedding=embedding, logits=logits), by_index(move)


@every_search
def test_all_actions_as_samples_are_all_actions(make: Any):
    of = world()
    order = torch.rand(30, 4, generator=generator(2)).argsort(1)
    one, other = make(40)(*sampled(of, order), None, explore=False), search(make(40), of, explore=False)
    here = order[:6]
    assert torch.equal(one.visits, other.visits.gather(1, here)) and torch.equal(one.q, other.q.gather(1, here))
    torch.testing.assert_close(one.weights, other.weights.gather(1, here))
    assert torch.equal(here.gather(1, one.action[:, None]).squeeze(1), other.action)


def test_samples_of_a_continuous_bandit():
    """Each sample is worth what its action earns, and the best of them is found."""
    actions, logits = draw_actions(torch.zeros(50, 2), torch.ones(50, 2), 16, 0, 1.0, generator())
    target = torch.tensor([0.3, -0.5])

    def worth(action: Tensor) -> Tensor:
        return -(action - target).square().sum(-1)

    def move(state: Tensor, action: Tensor, generator: Generator | None) -> Step:
        zero = torch.zeros(50)
        return Step(Sampled(state, torch.zeros(50, 16, 2)), worth(action), zero, torch.zeros(50, 16), zero)

    embedding = Sampled(torch.zeros(50, 1), actions)
    for one in (puct(64, c1=20.0), gumbel(16)):
        found = one(Root(logits, torch.zeros(50), embedding), by_index(move), generator(), explore=False)
        seen = found.visits > 0
        torch.testing.assert_close(found.q[seen], worth(actions)[seen])
        best = worth(actions).argmax(1)
        assert torch.equal(found.visits.gather(1, best[:, None]).squeeze(1), found.visits.amax(1))
        torch.testing.assert_close(embedding.action(best), actions[torch.arange(50), best])
    assert torch.equal(found.action, best)


def test_draws_from_the_policy_itself_are_equally_likely():
    mean, std = torch.randn(3, 2), torch.rand(3, 2) + 0.5
    actions, logits = draw_actions(mean, std, 4000, 0, 1.0, generator())
    assert (logits == 0).all() and (actions.abs() <= 1).all()
    raw = actions.double().atanh()
    torch.testing.assert_close(raw.mean(1), mean.double(), atol=0.1, rtol=0)
    torch.testing.assert_close(raw.std(1), std.double(), atol=0.1, rtol=0)


def test_priors_of_draws_are_the_policys_density_over_the_proposals():
    mean, std = torch.tensor([[0.2, -0.4]]), torch.tensor([[0.5, 0.3]])
    actions, logits = draw_actions(mean, std, 16, 12, 3.0, generator())

    def squashed(scale: float) -> Tensor:
        normal = torch.distributions.Normal(mean.double(), scale * std.double())
        flow = torch.distributions.TransformedDistribution(normal, [torch.distributions.TanhTransform()])
        return flow.log_prob(actions[0].double()).sum(-1)

    policy, wide = squashed(1.0), squashed(3.0)
    expected = policy - torch.logaddexp(policy + math.log(4 / 16), wide + math.log(12 / 16))
    torch.testing.assert_close(logits[0].double(), expected, atol=1e-3, rtol=1e-3)
    assert logits.std() > 0.1


@pytest.mark.parametrize("wide", [10000, 20000])
def test_means_under_corrected_priors_are_those_of_the_policy(wide: int):
    actions, logits = draw_actions(torch.zeros(1, 1), torch.full((1, 1), 0.3), 20000, wide, 3.0, generator())
    square = actions.atanh().square().squeeze(2)
    assert (logits.softmax(1) * square).sum().item() == pytest.approx(0.09, rel=0.06)
    assert square.mean().item() > 0.3


@pytest.mark.parametrize(("count", "wide", "widening"), [(0, 0, 1.0), (4, 5, 3.0), (4, -1, 3.0), (4, 2, 0.0)])
def test_impossible_numbers_of_samples_are_refused(count: int, wide: int, widening: float):
    with pytest.raises(ValueError, match="widened"):
        draw_actions(torch.zeros(1, 1), torch.ones(1, 1), count, wide, widening, None)
