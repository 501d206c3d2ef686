"""M2AC: which imagined transitions count, what is taken from their rewards, and by whom they were imagined.

``one_vs_rest``, the uncertainty of a prediction, has its golden values in ``test_ensemble.py``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_error import HORIZON, Plane, Values, m2ac_config, m2ac_shares, standing, steve_weights
from small import three_members
from torch import Tensor

from agents.branching import Schedule
from agents.m2ac import deal, kept_share, least, move_dealt, unlike_the_rest
from agents.soft import Transitions, replayed_transitions
from worldmodels.base import map_latent

Build = Callable[..., Any]
LENGTH = 3
each_ensemble = pytest.mark.parametrize("name", ["ensemble-v1", "ensemble-v3"])
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """An ensemble of three that has no weight at zero, its agent of that name, and changes to the agent's config."""

    def made(agent: str, name: str, discrete: bool = False, **changes: Any) -> tuple[Any, Any]:
        return three_members(debug_run(agent, name), make_spaces(discrete), **changes)

    return made


def always(length: int) -> Schedule:
    return Schedule(begin=0, end=1, first=length, last=length)


def steps(weights: list[list[float]], reward: float = 1.0) -> list[Transitions]:
    """Transitions of H steps of N rows with these weights; the rest is of no matter."""
    made = []
    for weight in torch.tensor(weights):
        blank = torch.zeros(len(weight), 2)
        made.append(Transitions(blank, blank, torch.full_like(weight, reward), blank, torch.ones_like(weight), weight))
    return made


# ------------------------------------------------------------------------------------------------ what counts


def test_shares_of_the_paper() -> None:
    assert [kept_share(h, 3, 0.25) for h in range(3)] == pytest.approx([0.375, 0.25, 0.125])
    expected = [0.4167, 0.3333, 0.25, 0.1667, 0.0833]
    assert [kept_share(h, 5, 0.25) for h in range(5)] == pytest.approx(expected, abs=5e-5)
    for length in (1, 2, 7, 10):
        shares = [kept_share(h, length, 0.25) for h in range(length)]
        assert sum(shares) / length == pytest.approx(0.25)
        assert [kept_share(h, length, (length + 1) / 2) for h in range(length)] == [1.0] * length


def test_as_many_count_as_the_share_says_and_none_that_does_not_is_surer() -> None:
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        uncertainty, living = torch.rand(40, generator=g), (torch.rand(40, generator=g) < 0.8).float()
        for most in (0.0, 0.9, 5.0, 13.7, 39.0):
            mask = least(uncertainty, living, torch.tensor(most)) * living
            assert mask.sum() == min(int(most), int(living.sum()))
            out = (living * (1 - mask)).bool()
            if mask.any() and out.any():
                assert uncertainty[mask.bool()].max() <= uncertainty[out].min()


def test_only_the_order_of_uncertainties_matters() -> None:
    uncertainty, living = torch.randn(30).exp(), torch.rand(30)
    expected = least(uncertainty, living, torch.tensor(6.0))
    assert 0 < expected.sum() < 30
    for change in (torch.log, lambda u: 3 * u + 1, lambda u: u**3):
        assert torch.equal(least(change(uncertainty), living, torch.tensor(6.0)), expected)


def test_rows_that_have_ended_take_no_place_and_others_as_much_as_they_are_living() -> None:
    uncertainty = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    mask = least(uncertainty, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), torch.tensor(2.0))
    assert mask[2:].tolist() == [1, 1, 0], "the two that are over are no part of the two"
    assert least(uncertainty, torch.full((5,), 0.5), torch.tensor(1.5)).tolist() == [1, 1, 1, 0, 0]
    for seed in range(5):
        living = torch.rand(3000, generator=torch.Generator().manual_seed(seed))
        mask = least(torch.rand(3000), living, living.sum(dtype=torch.float64))
        assert mask.sum() == 3000, "all are all, whatever rounding makes of a long sum"


def test_non_stop_rows_may_count_again_and_hard_stop_rows_do_not() -> None:
    """H 3 of 8 rows: 3, 2 and 1 count. The surest at one step are the least sure at the next."""
    rising, rows = torch.arange(8.0), [[1.0] * 8] * 3
    uncertainty = [rising, rising.flip(0), rising]
    counts = {}
    for mode in ("non-stop", "hard-stop"):
        agent = m2ac_config(3, mode=mode).build(Plane(0.0, 0))
        found, metrics = agent.masked(steps(rows), uncertainty, torch.tensor(8.0))
        counts[mode] = [step.weight.nonzero().flatten().tolist() for step in found]
        assert [metrics[f"kept_{h}"].item() for h in range(3)] == [3 / 8, 2 / 8, 1 / 8]
    assert counts == {"non-stop": [[0, 1, 2], [6, 7], [0]], "hard-stop": [[0, 1, 2], [1, 2], [1]]}
    agent = m2ac_config(3).build(Plane(0.0, 0))
    dead = [[0.0, 0.0, *[1.0] * 6]] * 3  # 6 starts: floor of 2.25, 1.5, 0.75
    found, _ = agent.masked(steps(dead), [rising] * 3, torch.tensor(6.0))
    assert [step.weight.nonzero().flatten().tolist() for step in found] == [[2, 3], [2], []]


def test_the_penalty_and_what_is_said_about_it() -> None:
    agent = m2ac_config(1, penalty=0.5, kept=0.5).build(Plane(0.0, 0))
    (found,), metrics = agent.masked(steps([[1.0] * 4], -2.0), [torch.tensor([4.0, 1.0, 3.0, 2.0])], torch.tensor(4.0))
    assert found.reward.tolist() == [-4.0, -2.5, -3.5, -3.0] and found.weight.tolist() == [0, 1, 0, 1]
    said = {key: value.item() for key, value in metrics.items()}
    assert said == {"kept_0": 0.5, "uncertainty_kept": 1.5, "uncertainty_dropped": 3.5, "penalty_to_reward": 3 / 8}


@torch.no_grad()
def test_the_target_of_a_transition_that_counts() -> None:
    """A member moves it, the reward on arrival less alpha u, then the value: checked on what the lessons say."""
    latent, real = standing(60)
    lessons = []
    for penalty in (0.0, 0.5):
        torch.manual_seed(1)
        agent = m2ac_config(2, penalty=penalty, kept=1.5).build(Plane(0.0, 0))
        agent.target_critics = Values()
        lessons.append(agent.lessons(Plane(0.0, 0), latent, real))
    free, paid = lessons
    arrived = free.features[120:]  # where the first imagined step led to
    value = 0.4 * arrived.sum(-1) + 0.9 * (2 * arrived.sum(-1) - 0.2)
    torch.testing.assert_close(free.target[60:120], value, rtol=1e-4, atol=1e-4)
    taken = free.target - paid.target
    assert taken[:60].abs().max() == 0 and (taken[60:] > 0).all(), "of real transitions nothing is taken"
    assert taken[60:].mean().item() == pytest.approx(0.5 * paid.metrics["uncertainty_kept"].item(), rel=1e-3)


# ------------------------------------------------------------------------------------------- who imagines them


@torch.no_grad()
@each_ensemble
def test_every_row_is_moved_by_its_member_and_doubted_by_the_rest(
    name: str, build: Build, make_batch: Build, constant_noise: None
) -> None:
    model, _ = build("m2ac", name)
    latent = map_latent(lambda part: part.flatten(0, 1)[:7], model.filter(make_batch()))
    action, place = torch.rand(7, 3), deal(7, 3, torch.device("cpu"))
    member = (place // 3).tolist()  # three places each
    moved, doubt = move_dealt(model, latent, action, place), unlike_the_rest(model, latent, action, place)
    each = model.imagine_members(
        map_latent(lambda part: part.expand(3, *part.shape), latent), action.expand(3, *action.shape)
    )
    divergence = model.one_vs_rest(model.member_stats(latent, action))
    assert len(set(member)) > 1 and doubt.std() > 0
    for row, k in enumerate(member):
        expected = map_latent(lambda part, k=k, row=row: part[k, row], each)
        map_latent(lambda a, b, row=row: torch.testing.assert_close(a[row], b), moved, expected)
        assert doubt[row].item() == pytest.approx(divergence[k, row].item(), rel=1e-4)


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_members_are_dealt_evenly(rows: int) -> None:
    group = -(-rows // 3)
    count = torch.zeros(rows, 3)
    for _ in range(1500):
        place = deal(rows, 3, torch.device("cpu"))
        assert len(place.unique()) == rows and place.min() >= 0 and place.max() < 3 * group
        count += torch.nn.functional.one_hot(place // group, 3)
    assert (count / 1500 - 1 / 3).abs().max() < 0.05, "every row is as likely to be of each member"


@torch.no_grad()
def test_members_that_agree_leave_no_doubt() -> None:
    model = Plane(0.0, 0)
    model.offset.zero_()
    latent, real = standing(50)
    doubt = unlike_the_rest(model, map_latent(lambda p: p[:, 0], latent), real.action, deal(50, 5, torch.device("cpu")))
    assert doubt.abs().max() < 1e-5


@torch.no_grad()
@each_ensemble
@both_kinds
def test_without_mask_and_penalty_it_is_mbpo_with_random_members(
    name: str, discrete: bool, build: Build, make_batch: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = dict(rollout=always(LENGTH), real_ratio=0.3)
    model, masked = build("m2ac", name, discrete, kept=(LENGTH + 1) / 2, penalty=0.0, **shared)
    _, plain = build("mbpo", name, discrete, **shared)
    plain.load_state_dict(masked.state_dict())
    batch = make_batch(discrete)
    latent = model.filter(batch)
    real = replayed_transitions(model.features(latent), batch)

    def random_member(now: Any, action: Tensor, generator: Any = None) -> Any:
        return move_dealt(model, now, action, deal(len(action), 3, action.device))

    monkeypatch.setattr(model, "imagine", random_member)
    found = []
    for agent in (masked, plain):
        torch.manual_seed(5)
        found.append(agent.lessons(model, latent, real))
    assert len(found[0].target) == 21 * (1 + LENGTH) and found[0].target.std() > 0
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))


@torch.no_grad()
@each_ensemble
@both_kinds
def test_a_quarter_of_what_is_imagined_counts_on_a_world_model(
    name: str, discrete: bool, build: Build, make_batch: Build
) -> None:
    model, agent = build("m2ac", name, discrete, rollout=always(2), real_ratio=0.2)
    batch = make_batch(discrete)
    latent = model.filter(batch)
    real = replayed_transitions(model.features(latent), batch)
    lessons = agent.lessons(model, latent, real)
    weight = lessons.weight[0].view(3, 21)
    assert weight[1:].sum().item() == pytest.approx(0.8 * 19, rel=1e-4) and weight[0].sum().item() == pytest.approx(3.8)
    assert (weight[1] > 0).sum() == 6, "a third of 19: two rows of the batch are no transitions and start nothing"
    assert lessons.metrics["uncertainty_kept"] < lessons.metrics["uncertainty_dropped"]


# -------------------------------------------------------------------------------------- a model that is wrong


def test_less_is_kept_where_the_model_is_wrong() -> None:
    shares = [m2ac_shares(noise, seed=0) for noise in (0.0, 0.01, 0.02, 0.05)]
    within, without = zip(*shares, strict=True)
    assert list(within) == sorted(within, reverse=True) and within[0] > 0.2 > 0.1 > within[2] and within[3] < 0.01
    assert abs(without[0] - 0.25) < 0.03 and all(share > 0.26 for share in without[1:]), "others take the places"


def test_steve_trusts_imagined_horizons_less_where_a_member_is_wrong() -> None:
    weights = [steve_weights(noise, seed=0) for noise in (0.0, 0.1, 0.3, 1.0)]
    within, without = zip(*weights, strict=True)
    assert list(within) == sorted(within, reverse=True) and within[0] > 0.6 and within[3] < 0.25
    assert max(without) - min(without) < 0.01


@torch.no_grad()
@each_ensemble
def test_noise_in_a_region_of_a_world_models_latents_is_avoided(name: str, build: Build, make_batch: Build) -> None:
    """The members of a real ensemble, wrong where the first number of the memory is above its median."""
    model, agent = build("m2ac", name, rollout=always(2))
    batch = make_batch(size=12)
    batch = batch._replace(is_last=torch.zeros_like(batch.is_last), is_terminal=torch.zeros_like(batch.is_terminal))
    latent = model.filter(batch)
    real = replayed_transitions(model.features(latent), batch)
    start = map_latent(lambda part: part[:, :-1].flatten(0, 1), latent)
    torch.manual_seed(2)
    action, _ = agent.decide(real.features)
    memory = model.imagine(start, action).deter[:, 0]  # of the step that the members predict
    border = memory.median()

    def disturb(module: Any, inputs: tuple[Tensor], stats: Tensor) -> Tensor:
        return stats + 3 * torch.randn_like(stats) * (inputs[0][..., :1] > border)

    kept = []
    for noisy in (False, True):
        hook = model.members.register_forward_hook(disturb) if noisy else None
        torch.manual_seed(2)  # the first actions are those above
        weight = agent.lessons(model, latent, real).weight[0, len(action) : 2 * len(action)]
        kept.append([(weight[where] > 0).float().mean().item() for where in (memory > border, memory <= border)])
        if hook:
            hook.remove()
    assert kept[1][0] < 0.5 * kept[0][0] and kept[1][1] > kept[0][1]


def test_the_picture_is_of_this_code() -> None:
    """Numbers under ``results`` come out again, up to what another version of torch may draw."""
    file = Path(__file__).parents[1] / "results/model-error/numbers.json"
    numbers = json.loads(file.read_text(encoding="utf-8"))
    for function, key in ((steve_weights, "steve"), (m2ac_shares, "m2ac")):
        for noise in (0.0, 0.02, 0.3):
            i = numbers["noise"].index(noise)
            within, without = function(noise, numbers["seeds"][1])
            assert within == pytest.approx(numbers[key]["inside"][i][1], abs=0.03)
            assert without == pytest.approx(numbers[key]["outside"][i][1], abs=0.03)


def test_impossible_masks_are_refused() -> None:
    for change in ({"kept": 0.0}, {"penalty": -1.0}):
        with pytest.raises(ValueError, match="kept must be above 0"):
            m2ac_config(HORIZON, **change)
