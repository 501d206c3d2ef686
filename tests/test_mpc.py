"""Planning agents: what a plan is scored by, how particles move through an ensemble, and acting on small worlds."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Generator, Tensor, nn

from agents import mpc, pets
from agents.imagination import follow, imagined_returns, move_particles
from agents.pets import propagate
from agents.planning import CEM, RandomShooting
from worldmodels.base import Decoding, Ensembled, Rewarded, Spaces, WorldModel, choose


class Particle(NamedTuple):
    x: Tensor  # [*B, A]
    member: Tensor  # [*B, 1] of the last step
    dealt: Tensor  # [*B, 1] how often the member changed


class Drift(WorldModel, Rewarded, Decoding, Ensembled):
    """x' = x + 0.2 action + c_k + sigma noise, each member k with its own c; reward -|x|; ends where x[0] > 0.9."""

    def __init__(self, dim: int = 1, offsets: tuple[float, ...] = (0.0,), sigma: float = 0.0, discrete: bool = False):
        super().__init__()
        self.spaces = Spaces((64, 64, 3), dim, discrete)
        self.feature_dim, self.num_members, self.sigma = dim, len(offsets), sigma
        self.offsets = nn.Parameter(torch.tensor(offsets))

    def initial(self, batch: int) -> Particle:
        return self.at(torch.zeros(batch, self.spaces.action_dim))

    def at(self, x: Tensor) -> Particle:
        return Particle(x, torch.full((*x.shape[:-1], 1), -1.0), torch.zeros(*x.shape[:-1], 1))

    def noise(self, latent: Particle, generator: Generator | None) -> Tensor | float:
        return self.sigma * torch.randn(latent.x.shape, generator=generator) if self.sigma else 0.0

    def imagine(self, latent: Particle, action: Tensor, generator: Generator | None = None) -> Particle:
        return latent._replace(x=latent.x + 0.2 * action + self.offsets.mean() + self.noise(latent, generator))

    num_rewards = 1

    def reward_members(self, latent: Particle) -> Tensor:
        return self.reward(latent)[None]

    def imagine_members(self, latent: Particle, action: Tensor, generator: Generator | None = None) -> Particle:
        k = torch.arange(float(self.num_members)).view(-1, *[1] * (latent.x.ndim - 1))
        x = latent.x + 0.2 * action + self.offsets.view_as(k) + self.noise(latent, generator)
        changed = latent.dealt + ((latent.member >= 0) & (latent.member != k)).float()
        return Particle(x, k.expand_as(latent.member), changed)

    def imagine_mean(self, latent: Particle, action: Tensor, generator: Generator | None = None) -> Particle:
        return latent._replace(x=latent.x + 0.2 * action + self.offsets.mean())

    def match_moments(self, latent: Particle, generator: Generator | None = None) -> Particle:
        mean, std = latent.x.mean(0), latent.x.std(0, correction=0)
        return latent._replace(x=mean + std * torch.randn(latent.x.shape, generator=generator))

    def features(self, latent: Particle) -> Tensor:
        return latent.x

    def reward(self, latent: Particle) -> Tensor:
        return -latent.x.abs().sum(-1)

    def continues(self, latent: Particle) -> Tensor:
        return (latent.x[..., 0] <= 0.9).float()

    def decode(self, latent: Particle) -> Tensor:
        raise AssertionError("planning never draws")

    def refused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("planning neither observes nor learns")

    observe = loss = filter = rollout = member_stats = one_vs_rest = disagreement = refused
    member_moments = member_log_prob = refused


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def cem(**changes: Any) -> CEM:
    values = dict(
        type="cem", horizon=3, iterations=8, candidates=200, elites=20, initial_std=0.5, min_std=0.0, momentum=0.1,
        sampling="truncated", warm_start=True, epsilon=0.0, result="mean",
    )  # fmt: skip
    return CEM(**(values | changes))  # pyright: ignore[reportArgumentType]


def config(kind: Any = mpc.Config, **changes: Any) -> Any:
    values = dict(
        planner=cem(), particles=1, discount=1.0, stop_at_end=False, exploration_noise=0.0, rows=10_000
    )  # fmt: skip
    return kind(**(values | changes))


def returns(model: Drift, start: Tensor, actions: Tensor, **changes: Any) -> Tensor:
    values: dict[str, Any] = dict(particles=1, discount=1.0, stop_at_end=False, bf16_rows=0) | changes
    shape: dict[str, Any] = dict(futures=actions.shape[1], horizon=actions.shape[2])
    act = follow(actions, values["particles"])
    return imagined_returns(model, model.at(start), act, move_particles(model, generator()), **shape, **values)


def test_a_plan_is_worth_the_rewards_it_arrives_in() -> None:
    model = Drift()
    actions = torch.tensor([[[1.0], [1.0]], [[-1.0], [0.0]]])[None]  # B 1, N 2, H 2
    start = torch.tensor([[0.2]])  # to 0.4, 0.6 and to 0.0, 0.0
    assert torch.allclose(returns(model, start, actions), torch.tensor([[-1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(returns(model, start, actions, discount=0.5), torch.tensor([[-0.7, 0.0]]), atol=1e-6)


def test_nothing_counts_after_an_end_but_the_reward_that_comes_with_it_does() -> None:
    model, actions = Drift(), torch.ones(1, 1, 3, 1)
    start = torch.tensor([[0.6]])  # 0.8, 1.0 (the end), 1.2

    def value(features: Tensor) -> Tensor:
        return 10 + 0 * features[..., 0]

    assert returns(model, start, actions).item() == pytest.approx(-3.0)
    assert returns(model, start, actions, stop_at_end=True).item() == pytest.approx(-1.8)
    assert returns(model, start, actions, stop_at_end=True, value=value).item() == pytest.approx(-1.8)
    discounted = -0.8 - 0.5 * 1.0 - 0.25 * 1.2 + 0.125 * 10
    assert returns(model, start, actions, discount=0.5, value=value).item() == pytest.approx(discounted)


def test_particles_average_the_models_noise() -> None:
    model = Drift(sigma=0.3)
    one, many = (returns(model, torch.zeros(1, 1), torch.zeros(1, 400, 1, 1), particles=p) for p in (1, 100))
    assert many.mean().item() == pytest.approx(-0.3 * (2 / torch.pi) ** 0.5, abs=0.01)
    assert many.std().item() == pytest.approx(one.std().item() / 10, rel=0.2)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_the_agent_goes_where_reward_is(discrete: bool) -> None:
    model = Drift(dim=2, discrete=discrete)
    agent = mpc.MPC(config(planner=cem(sampling="clip", min_std=1e-3)), model)
    latent = model.at(torch.tensor([[0.5, 0.0], [-1.0, -0.05], [0.1, -0.9]]))
    carry = agent.initial(3, torch.device("cpu"))
    action, after = agent.act(model, latent, carry, explore=False, generator=generator())
    if discrete:  # adds 0.2 to one of the two
        assert action[1:].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    else:
        assert torch.allclose(action[:, 0], torch.tensor([-1.0, 1.0, -0.5]), atol=0.15)
        assert action[2, 1] == pytest.approx(1.0, abs=0.15)
    assert not carry.begun.any() and after.begun.all()
    fresh = choose(torch.tensor([True, False, True]), agent.initial(3, torch.device("cpu")), after)
    assert torch.equal(fresh.mean[0], carry.mean[0]) and torch.equal(fresh.mean[1], after.mean[1])
    assert fresh.begun.tolist() == [False, True, False]


def test_environments_do_not_talk_and_nothing_is_learned() -> None:
    model = Drift(dim=2)
    agent = mpc.MPC(config(), model)
    start = torch.tensor([[0.5, 0.0], [-0.5, 0.3]])
    elsewhere = torch.tensor([[0.5, 0.0], [0.9, -0.9]])
    carry = agent.initial(2, torch.device("cpu"))
    a, b = (agent.act(model, model.at(x), carry, explore=False, generator=generator())[0] for x in (start, elsewhere))
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    assert not a.requires_grad and all(p.grad is None for p in model.parameters())


def test_what_fits_in_memory_at_once_changes_nothing() -> None:
    model = Drift(dim=2)
    latent, found = model.at(torch.full((2, 2), 0.5)), []
    for rows in (10_000, 7):
        agent = mpc.MPC(config(rows=rows), model)
        found.append(agent.search(model, latent, agent.initial(2, torch.device("cpu")), generator()))
    assert torch.equal(found[0].actions, found[1].actions)


@pytest.mark.parametrize(("least", "fast"), [(0, False), (12, True), (13, False)])
def test_enough_latents_at_once_are_imagined_in_bf16(least: int, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Drift):
        def imagine(self, latent: Particle, action: Tensor, generator: Generator | None = None) -> Particle:
            assert len(latent.x) == 12 and torch.is_autocast_enabled("cpu") == fast
            return super().imagine(latent, action, generator)

    monkeypatch.setattr("agents.imagination.multiplies_bf16", lambda device: True)
    assert returns(Asked(), torch.zeros(2, 1), torch.zeros(2, 3, 1, 1), particles=2, bf16_rows=least).shape == (2, 3)
    assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr("agents.imagination.multiplies_bf16", lambda device: False)
    if not fast:
        returns(Asked(), torch.zeros(2, 1), torch.zeros(2, 3, 1, 1), particles=2, bf16_rows=1)


@pytest.mark.parametrize("name", ["rssm-planet", "rssm-v3", "ensemble-v1", "vae-rnn"])
def test_imagining_in_bf16_changes_returns_by_its_rounding(
    name: str, debug_run: Any, make_spaces: Any, constant_noise: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 bits of precision candidates are worth nearly the same, and in nearly the same order."""
    monkeypatch.setattr("agents.imagination.multiplies_bf16", lambda device: True)
    model = debug_run("none", name).world_model.build(make_spaces())
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    latent, actions = model.initial(2), torch.rand(2, 50, 5, 3) * 2 - 1
    shape: dict[str, Any] = dict(futures=50, particles=1, horizon=5, discount=1.0, stop_at_end=True)
    with torch.no_grad():
        slow, fast = (
            imagined_returns(model, latent, follow(actions, 1), move_particles(model), bf16_rows=rows, **shape)
            for rows in (0, 1)
        )
    assert fast.dtype == torch.float32 and not torch.equal(slow, fast)
    assert (slow - fast).abs().mean() < 0.1 * slow.std()
    for one, other in zip(slow, fast, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.95


def test_exploring_adds_noise_and_stays_in_bounds() -> None:
    model = Drift(dim=2)
    agent, latent = mpc.MPC(config(exploration_noise=5.0), model), model.at(torch.zeros(64, 2))
    carry = agent.initial(64, torch.device("cpu"))
    plain, noisy = (agent.act(model, latent, carry, explore=e, generator=generator())[0] for e in (False, True))
    assert plain.abs().max() < 0.3 and noisy.abs().max() == 1 and (noisy.abs() == 1).float().mean() > 0.7


# ----------------------------------------------------------------------------------------------------------- PETS


def roll(model: Drift, kind: str, particles: int, steps: int) -> Particle:
    move, latent = propagate(model, kind, generator()), model.at(torch.zeros(particles, 1, 1))
    for _ in range(steps):
        latent = move(latent, torch.zeros(particles, 1, 1))
    return latent


def test_spread_of_particles_is_that_of_the_sheet() -> None:
    """Offsets c, noise sigma, H steps: H^2 Var(c) + H sigma^2 for TSinf, H (Var(c) + sigma^2) for TS1 (closed form)."""
    offsets, sigma, steps, particles = (-0.1, 0.0, 0.05, 0.15), 0.1, 5, 100_000
    model, spread = Drift(offsets=offsets, sigma=sigma), torch.tensor(offsets).var(correction=0).item()
    mean = steps * sum(offsets) / 4
    kept, dealt = (roll(model, kind, particles, steps).x for kind in ("TSinf", "TS1"))
    assert kept.var().item() == pytest.approx(steps**2 * spread + steps * sigma**2, rel=0.05)
    assert dealt.var().item() == pytest.approx(steps * (spread + sigma**2), rel=0.05)
    grouped = kept.view(4, -1)
    assert grouped.mean(1).var(correction=0).item() == pytest.approx(steps**2 * spread, rel=0.05)
    assert grouped.var(1).mean().item() == pytest.approx(steps * sigma**2, rel=0.05)
    # fitted to all particles at every step, a normal forgets who is whose, as TS1 does; to a member's own, it does not
    assert roll(model, "MM", particles, steps).x.var().item() == pytest.approx(steps * (spread + sigma**2), rel=0.05)
    own = roll(model, "DS", particles, steps).x
    assert own.var().item() == pytest.approx(steps**2 * spread + steps * sigma**2, rel=0.05)
    for x in (kept, dealt, own):
        assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert roll(model, "E", 1, steps).x.item() == pytest.approx(mean, abs=1e-6)


def test_a_particle_keeps_its_bootstrap_under_tsinf_and_is_dealt_a_new_one_under_ts1() -> None:
    model = Drift(offsets=(0.0,) * 5)
    kept, dealt = (roll(model, kind, 20, 8) for kind in ("TSinf", "TS1"))
    assert kept.dealt.sum() == 0 and kept.member.flatten().tolist() == sorted([0.0, 1.0, 2.0, 3.0, 4.0] * 4)
    assert dealt.dealt.float().mean() > 7 * 0.6  # of 7 changes 4 in 5
    assert sorted(dealt.member.flatten().tolist()) == kept.member.flatten().tolist(), "each member has its share"


def test_with_one_deterministic_member_pets_is_cem() -> None:
    model = Drift(dim=2)
    latent, device = model.at(torch.tensor([[0.5, -0.2], [0.1, 0.9]])), torch.device("cpu")
    plain = mpc.MPC(config(), model)
    carry = plain.initial(2, device)
    expected, _ = plain.act(model, latent, carry, explore=False, generator=generator())
    for kind in ("E", "TSinf"):
        agent = pets.PETS(config(pets.Config, propagation=kind), model)
        action, _ = agent.act(model, latent, carry, explore=False, generator=generator())
        assert torch.equal(action, expected), kind


def test_random_shooting_picks_the_best_of_what_it_draws() -> None:
    model = Drift(dim=1)
    agent = mpc.MPC(config(planner=RandomShooting(type="random_shooting", horizon=2, candidates=500)), model)
    carry = agent.initial(1, torch.device("cpu"))
    found = agent.search(model, model.at(torch.tensor([[0.3]])), carry, generator())
    assert found.score.item() == pytest.approx(-0.1, abs=0.04)  # 0.1 after the first action, 0 after the second
    assert found.actions[0, 0, 0].item() == pytest.approx(-1.0, abs=0.1)


@pytest.mark.parametrize(("kind", "particles", "says"), [("TS1", 3, "multiple of 2"), ("E", 2, "no noise")])
def test_particles_that_cannot_be_dealt_are_refused(kind: str, particles: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pets.PETS(config(pets.Config, propagation=kind, particles=particles), Drift(offsets=(0.0, 1.0)))
