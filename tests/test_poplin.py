"""POPLIN: what identifies it with PETS, search in weights, a toy, distillation, and the book-keeping of both."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from agents import mpc, pets, poplin
from agents.imagination import follow, imagined_returns, move_particles
from agents.memory import Ring
from agents.planning import CEM, ICEM, MPPI, Gradient, RandomShooting
from agents.poplin import POPLIN, PolicyNet
from agents.training.learner import Learner, parameter_groups
from agents.training.optim import AdamConfig
from worldmodels.base import Losses, Rewarded, Sequence, Spaces, WorldModel, choose
from worldmodels.replay.memory import Sample

CPU = torch.device("cpu")
VARIANTS = ["a-init", "a-replan", "p-sep", "p-uni"]
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def unused_batch() -> Sequence:
    flags = torch.zeros(1, 2, dtype=torch.bool)
    obs, action = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8), torch.zeros(1, 2, 2)
    return Sequence(obs, action, torch.zeros(1, 2), flags, flags, flags, prev_action=action[:, 0])


UNUSED = unused_batch()  # distillation looks at what was planned, not at the replay


class Point(NamedTuple):
    x: Tensor  # [*B, 4]: position and velocity


class Integrator(WorldModel, Rewarded):
    """Two double integrators: v' = v + dt a, p' = p + dt v', reward -(p'^2 + 0.1 v'^2). ``seen`` features of four."""

    dt = 0.3

    def __init__(self, seen: int = 4, sigma: float = 0.0, discrete: bool = False):
        super().__init__()
        self.spaces, self.feature_dim, self.sigma = Spaces((64, 64, 3), 2, discrete), seen, sigma
        self.force = nn.Parameter(torch.ones(()))

    def initial(self, batch: int) -> Point:
        return Point(torch.zeros(batch, 4))

    def starts(self, batch: int, seed: int = 0) -> Point:
        position = 3 * torch.rand(batch, 2, generator=generator(seed)) - 1.5
        return Point(torch.cat([position, torch.zeros(batch, 2)], 1))

    def imagine(self, latent: Point, action: Tensor, generator: torch.Generator | None = None) -> Point:
        p, v = latent.x.chunk(2, -1)
        v = v + self.dt * self.force * action
        if self.sigma:
            v = v + self.sigma * torch.randn(v.shape, generator=generator)
        return Point(torch.cat([p + self.dt * v, v], -1))

    def features(self, latent: Point) -> Tensor:
        return latent.x[..., : self.feature_dim]

    def reward(self, latent: Point) -> Tensor:
        p, v = latent.x.square().chunk(2, -1)
        return -(p + 0.1 * v).sum(-1)

    def continues(self, latent: Point) -> Tensor:
        return torch.ones(latent.x.shape[:-1])

    def refused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("planning neither observes nor learns")

    observe = loss = filter = rollout = refused


class Sure(Integrator):
    """Learns ``force`` from nothing, so that a learner has a world model with a loss."""

    def loss(self, batch: Any) -> tuple[Point, Losses]:
        return self.initial(2), Losses({"force": (self.force - 2).square()}, {})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cem(**changes: Any) -> CEM:
    values: dict[str, Any] = dict(
        type="cem", horizon=6, iterations=3, candidates=40, elites=6, initial_std=0.5, min_std=0.0, momentum=0.1,
        sampling="truncated", warm_start=True, epsilon=0.0, result="mean",
    )  # fmt: skip
    return CEM(**(values | changes))


def config(variant: str = "a-replan", **changes: Any) -> poplin.Config:
    values: dict[str, Any] = dict(
        variant=variant, propagation="model", planner=cem(), particles=1, discount=1.0, stop_at_end=False, rows=10**6,
        hidden=(8,), noise_on="all", control="plan", distill="bc", imaginary=0, memory=64, batch=16, distill_every=1,
        discriminator=(8,), entropy=1e-3,
    )  # fmt: skip
    return poplin.Config(**(values | changes))


def twins(model: Integrator, *configs: poplin.Config) -> list[Any]:
    """Agents with the same weights, none of them 0."""
    agents = [awake(one.build(model)) for one in configs]
    for agent in agents[1:]:
        agent.load_state_dict(agents[0].state_dict())
    return agents


def lived(agent: POPLIN, model: Integrator, steps: int = 4, batch: int = 3, seed: int = 0) -> Any:
    """Plan and remember from random latents; the last carry."""
    carry = agent.initial(batch, CPU)
    for i in range(steps):
        latent = model.starts(batch, seed + i)
        action, carry = agent.act(model, latent, carry, explore=True, generator=generator(i))
        agent.collected(model.features(latent), action, carry, torch.zeros(batch, dtype=torch.bool))
    return carry


def awake(module: nn.Module, size: float = 0.3) -> Any:
    g = generator(1)
    for parameter in module.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=g)
    return module


def silent(agent: POPLIN) -> POPLIN:
    """pi = 0."""
    for parameter in agent.acting.parameters():
        parameter.data.zero_()
    return agent


# ------------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize(("variant", "sigma"), [("a-init", 0.0), ("a-replan", 0.0), ("a-replan", 0.2)])
def test_without_a_policy_residuals_are_the_plans_of_pets_bit_by_bit(variant: str, sigma: float):
    """Sheet 1. With a sampled model A-Init has drawn for its own rollout before, so the draws are others."""
    model, planner = Integrator(sigma=sigma), cem(epsilon=1e-3, initial_std=0.5)
    plain = mpc.Config(planner=planner, particles=1, discount=1.0, stop_at_end=False, exploration_noise=0.0, rows=100)
    agents: list[Any] = [plain.build(model), silent(config(variant, planner=planner, rows=100).build(model))]
    lives = []
    for agent in agents:
        carry, g, life = agent.initial(5, CPU), generator(4), []
        for step in range(3):
            action, carry = agent.act(model, model.starts(5, step), carry, explore=True, generator=g)
            life += [action, carry.mean]
        lives.append(life)
    for one, other in zip(*lives, strict=True):
        assert torch.equal(one, other) and one.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_weights_of_a_policy_that_is_its_bias_are_residuals():
    """Sheet 2. A std small enough for no entry to reach the residuals' bounds."""
    model, latent = Integrator(seen=0), Integrator().starts(5)
    planner = cem(initial_std=0.1, horizon=3)
    residual, weights, constant = (
        silent(config(v, planner=planner, hidden=()).build(model)) for v in ("a-replan", "p-sep", "p-uni")
    )
    assert weights.space.dim == 2 and weights.space.bound is None and residual.space.bound == 1
    found = [a.search(model, latent, a.initial(5, CPU), generator())[0] for a in (residual, weights)]
    torch.testing.assert_close(found[0].actions, found[1].actions)
    plans = [a.plan(model, latent, a.initial(5, CPU), generator()) for a in (residual, weights, constant)]
    torch.testing.assert_close(plans[0], plans[1])
    assert plans[2].abs().sum() > 0 and torch.equal(plans[2], plans[2][:, :1].expand_as(plans[2]))
    best = constant.search(model, latent, constant.initial(5, CPU), generator())[0]
    open_loop = imagined_returns(
        model, latent, follow(best.best.expand(-1, 3, -1)[:, None], 1), move_particles(model),
        futures=1, particles=1, horizon=3, discount=1.0, stop_at_end=False, bf16_rows=0,
    )  # fmt: skip
    torch.testing.assert_close(open_loop[:, 0], best.score)


@pytest.mark.parametrize(("horizon", "feedback", "equal"), [(1, True, True), (5, False, True), (5, True, False)])
def test_init_is_replan_unless_a_policy_sees_what_residuals_did(horizon: int, feedback: bool, equal: bool):
    """Sheet 3."""
    model, planner = Integrator(), cem(horizon=horizon)
    agents = twins(model, *(config(v, planner=planner) for v in ("a-init", "a-replan")))
    if not feedback:
        for agent in agents:
            agent.acting.layers[0].weight.data.zero_()
    latent = model.starts(4)
    actions = [a.act(model, latent, a.initial(4, CPU), explore=False, generator=generator())[0] for a in agents]
    assert torch.allclose(*actions, atol=1e-5) == equal


# ------------------------------------------------------------------------------------------------- weights, batched


@pytest.mark.parametrize(("hidden", "noise_on"), [((7,), "all"), ((7, 6), "last"), ((), "all")])
def test_every_candidate_has_its_own_weights(hidden: tuple[int, ...], noise_on: str):
    """Sheet 4: as a loop over ``functional_call``; omega = 0 is exactly theta."""
    net = awake(PolicyNet(5, 3, hidden, noise_on))
    net.adapt(torch.randn(20, 5) * 2 + 1)
    features, omega = torch.randn(2, 4, 5), torch.randn(4, net.dim)
    names = [name for name, _ in net.named_parameters() if noise_on == "all" or name.startswith("layers.2.")]
    assert net.dim == sum(net.get_parameter(name).numel() for name in names)
    for m in range(4):
        changed, used = {}, 0
        for name in names:
            theta = net.get_parameter(name)
            changed[name] = theta + omega[m, used : used + theta.numel()].view_as(theta)
            used += theta.numel()
        one = functional_call(net, changed, (features[:, m],))
        torch.testing.assert_close(net(features, omega)[:, m], one, rtol=1e-5, atol=1e-5)
    assert torch.equal(net(features, torch.zeros_like(omega)), net(features))


def test_weights_begin_with_norms_of_one_and_a_hundredth():
    net: Any = PolicyNet(9, 2, (7,), "all")
    torch.testing.assert_close(net.layers[0].weight.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(net.layers[1].weight.norm(dim=1), torch.full((2,), 0.01))
    assert all((layer.bias == 0).all() for layer in net.layers)


def test_features_are_whitened_by_what_was_remembered_once_there_is_something():
    net, features = PolicyNet(3, 2, (), "all"), torch.randn(500, 3) * torch.tensor([2.0, 5.0, 1e-4]) + 3
    assert torch.equal(net.white(features), features)
    net.adapt(features)
    white = net.white(features)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.std(0, correction=0)[:2], torch.ones(2), atol=1e-4, rtol=0)
    assert net.std[2] == poplin.WHITENING_FLOOR
    net.adapt(features + 10)
    torch.testing.assert_close(net.mean, features.mean(0) + 1)


@each_variant
def test_chunks_of_candidates_change_nothing(variant: str):
    model, latent = Integrator(), Integrator().starts(3)
    agents = twins(model, *(config(variant, rows=rows) for rows in (10**6, 30)))
    found = [a.search(model, latent, a.initial(3, CPU), generator())[0].actions for a in agents]
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------------------------------ the toy


def gains(variant: str, initial_std: float, latent: Point, best: Tensor) -> Tensor:
    """How much of what long CEM gains over doing nothing is gained, for each start; theta = 0."""
    model = Integrator()
    planner = cem(horizon=12, iterations=5, candidates=500, elites=50, initial_std=initial_std)
    agent = silent(config(variant, planner=planner, hidden=()).build(model))
    plan = agent.plan(model, latent, agent.initial(len(latent.x), CPU), generator(1))
    nothing = returns(model, latent, torch.zeros_like(plan))
    return (returns(model, latent, plan) - nothing) / (best - nothing)


def returns(model: Integrator, latent: Point, plan: Tensor) -> Tensor:
    return imagined_returns(
        model, latent, follow(plan[:, None], 1), move_particles(model),
        futures=1, particles=1, horizon=plan.shape[1], discount=1.0, stop_at_end=False, bf16_rows=0,
    )[:, 0].detach()  # fmt: skip


def test_the_toy_is_gained_as_far_as_the_sheet_says():
    """Sheet 5, the worst of ten starts."""
    model, latent = Integrator(), Integrator().starts(10, 3)
    planner = cem(horizon=12, iterations=15, candidates=2000, elites=200)  # sheet: 4000 for 25, 1 % more
    long = silent(config("a-replan", planner=planner, hidden=()).build(model))
    best = returns(model, latent, long.plan(model, latent, long.initial(10, CPU), generator()))
    for variant, std, least in (("a-replan", 0.5, 0.85), ("a-init", 0.5, 0.85), ("p-sep", 0.1**0.5, 0.85),
                                ("p-uni", 0.1**0.5, 0.7), ("p-uni", 1.0, 0.9)):  # fmt: skip
        assert gains(variant, std, latent, best).min() > least, variant


# ------------------------------------------------------------------------------------------------- distillation


def optimise(agent: POPLIN, model: Integrator, updates: int, lr: float = 3e-3) -> None:
    """Updates by the learner itself."""
    adam = AdamConfig(type="adam", lr=lr, warmup=0, eps=1e-8, weight_decay=0.0, clip=1e3)
    names = ["model", *(name for name in ("policy", "discriminator") if agent.scales.get(name))]
    learner: Any = Learner(model, agent, dict.fromkeys(names, adam), {"force": 1.0}, "fp32")
    optimizers = learner.configure_optimizers()
    learner.optimizers = lambda: optimizers
    learner.manual_backward = Tensor.backward
    for _ in range(updates):
        learner.training_step(Sample(UNUSED, torch.zeros(1, 2, dtype=torch.long)), 0)


def remember(agent: POPLIN, features: Tensor, omega: Tensor) -> Tensor:
    """Steps at which the planner found ``omega``; what the policy with it does there."""
    targets = agent.acting(features[None], omega.expand(len(features), -1))[0].detach()
    agent.ring.add(features, targets[:, None])
    return targets


def test_avg_adds_the_mean_of_what_was_executed():
    """Sheet 6; the paper's code would have 0.2 here."""
    model = Integrator()
    agent: Any = config("p-sep", distill="avg", distill_every=10, hidden=()).build(model)
    for parameter in (*agent.policy.parameters(), *agent.acting.parameters()):
        parameter.data.fill_(1.0)
    carry = agent.initial(2, CPU)
    carry = carry._replace(omega=torch.tensor([[0.1], [0.3]]).expand(2, agent.policy.dim))
    agent.collected(torch.randn(2, 4), torch.zeros(2, 2), carry, torch.zeros(2, dtype=torch.bool))
    agent.after_update(9)
    assert (agent.acting.layers[0].weight == 1).all() and agent.generation == 0
    agent.after_update(10)
    for parameter in (*agent.policy.parameters(), *agent.acting.parameters()):
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, 1.2))
    assert agent.ring.written == 0 and (agent.omega_sum == 0).all() and agent.generation == 1
    agent.after_update(20)
    assert agent.generation == 1, "nothing to distil"
    assert agent.loss(model, None, UNUSED).terms == {} == agent.scales


def test_avg_remembers_the_weights_that_it_executed():
    model = Integrator()
    agent = awake(config("p-sep", distill="avg").build(model))
    latent = model.starts(3)
    carry = agent.initial(3, CPU)
    action, carry = agent.act(model, latent, carry, explore=True, generator=generator())
    torch.testing.assert_close(agent.acting(model.features(latent)[None], carry.omega)[0].clamp(-1, 1), action)
    agent.collected(model.features(latent), action, carry, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(agent.omega_sum, carry.omega.sum(0))


def test_bc_learns_what_shared_weights_would_do():
    """Sheet 6 and 9: on steps that were not learned from; then the policy that plans is the one that learned."""
    model = Sure()
    agent: Any = config("p-uni", memory=500, batch=64, distill_every=300).build(model)
    features, omega = torch.randn(500, 4), 0.5 * torch.randn(agent.policy.dim, generator=generator(2))
    targets = remember(agent, features, omega)
    held = slice(4, None, 5)

    def error() -> float:
        return (agent.policy(features[held]) - targets[held]).abs().mean().item()

    before = error()
    optimise(agent, model, 299, lr=1e-2)
    assert error() < 0.2 * before and agent.generation == 0
    assert not torch.equal(agent.acting.layers[0].weight, agent.policy.layers[0].weight)
    agent.after_update(300)
    for name, value in agent.acting.named_parameters():
        assert torch.equal(value, agent.policy.get_parameter(name)) and not value.requires_grad
    assert agent.generation == 1


def test_a_distilled_policy_is_better_without_planning():
    """Sheet 7."""
    model = Sure()
    agent = silent(config("p-uni", hidden=(), memory=500, batch=64, distill_every=200).build(model))
    damped = torch.tensor([[-1.0, 0, -1.2, 0], [0, -1.0, 0, -1.2]]).flatten()  # by hand: steers to the origin
    remember(agent, 0.7 * torch.randn(500, 4), torch.cat([damped, torch.zeros(2)]))
    latent, alone = model.starts(20), lambda now, t: agent.acting(model.features(now))
    before = returns(model, latent, agent.unroll(model, latent, alone, None).clamp(-1, 1))
    optimise(agent, model, 200, lr=1e-2)
    after = returns(model, latent, agent.unroll(model, latent, alone, None).clamp(-1, 1))
    assert (after > before).all() and after.mean() > 0.6 * before.mean()


def test_gan_teaches_both_players_and_approaches_the_planner():
    model = Sure()
    planner = cem(initial_std=0.01)
    agent = config("p-uni", hidden=(), distill="gan", memory=500, batch=64, distill_every=300, planner=planner)
    agent = agent.build(model)
    features = torch.randn(500, 4)
    targets = remember(agent, features, torch.cat([torch.zeros(8), torch.tensor([0.8, -0.5])]))
    before = (agent.policy(features) - targets).abs().mean().item()
    optimise(agent, model, 299)
    assert (agent.policy(features) - targets).abs().mean().item() < 0.5 * before


def test_players_get_gradients_of_their_own_only_from_one_backward():
    """Sheet 10. Each gets from the sum exactly what its own term gives it, and the planning copy nothing."""
    model = Integrator()
    agent = awake(config("p-sep", distill="gan", imaginary=2).build(model))
    lived(agent, model)
    torch.manual_seed(5)
    terms = agent.loss(model, None, UNUSED).terms
    assert terms.keys() == agent.scales.keys() == {"policy", "discriminator"}
    players = {name: list(agent.get_submodule(name).parameters()) for name in terms}
    alone = {name: torch.autograd.grad(terms[name], players[name], retain_graph=True) for name in terms}
    for name, other in (("policy", "discriminator"), ("discriminator", "policy")):
        assert set(torch.autograd.grad(terms[name], players[other], allow_unused=True, retain_graph=True)) == {None}
    sum(terms.values(), torch.zeros(())).backward()
    for name, parameters in players.items():
        for parameter, gradient in zip(parameters, alone[name], strict=True):
            assert torch.equal(parameter.grad, gradient) and gradient.abs().sum() > 0
    assert all(p.grad is None for m in (agent.acting, model) for p in m.parameters())


def test_gan_agrees_with_its_equations():
    model = Integrator()
    agent = awake(config("p-uni", hidden=(), distill="gan", memory=5, batch=3, entropy=0.1).build(model))
    features = torch.randn(5, 4)
    agent.ring.add(features[:1].expand(5, -1), torch.tensor([0.7, -0.2]).expand(5, 1, 2))
    agent.planner = cem(horizon=1, initial_std=1e-6)  # the fake is the policy
    terms = agent.loss(model, None, UNUSED).terms
    action = agent.policy(features[:1])
    judge = lambda a: agent.discriminator(torch.cat([features[0], a.flatten()])).sigmoid()  # noqa: E731
    true, false = judge(torch.tensor([0.7, -0.2])), judge(action)
    entropy = sum(-(d * d.log() + (1 - d) * (1 - d).log()) for d in (true, false)) / 2
    torch.testing.assert_close(terms["discriminator"], (-true.log() - (1 - false).log() - 0.1 * entropy).squeeze())
    torch.testing.assert_close(terms["policy"], -false.log().squeeze())


@pytest.mark.parametrize("distill", ["bc", "gan"])
def test_nothing_planned_yet_is_a_loss_of_zero_with_a_graph(distill: str):
    model = Integrator()
    agent = awake(config("p-uni", distill=distill).build(model))
    losses = agent.loss(model, None, UNUSED)
    assert all(term == 0 for term in losses.terms.values()) and all(value == 0 for value in losses.metrics.values())
    sum(losses.terms.values(), torch.zeros(())).backward()
    learning = [p for p in agent.parameters() if p.requires_grad]
    assert learning and all(p.grad is not None and (p.grad == 0).all() for p in learning)
    before = copy.deepcopy(agent.state_dict())
    agent.after_update(1)
    assert agent.generation == 0 and all(torch.equal(v, before[k]) for k, v in agent.state_dict().items())


# --------------------------------------------------------------------------------------------- what is remembered


def test_what_is_learned_from_and_what_is_held_out_never_meet():
    """Sheet 9, also when the ring has gone round."""
    for written in (1, 4, 5, 23, 60, 77):
        ring = Ring(30, 1, (1, 1))
        for i in range(written):
            ring.add(torch.tensor([[float(i)]]), torch.zeros(1, 1, 1))
        learned, _, some = ring.draw(2000, held_out=False)
        held, _, any_held = ring.draw(2000, held_out=True)
        assert some == 1 and any_held == (written >= 5)
        expected = set(map(float, range(max(0, written - 30), written)))
        seen = set(learned.flatten().tolist()), set(held.flatten().tolist()) if any_held else set()
        assert not seen[0] & seen[1] and seen[0] | seen[1] == expected
    assert Ring(30, 1, (1, 1)).draw(4, held_out=False)[2] == 0


def test_a_ring_keeps_the_newest_whatever_arrives_at_once():
    ring = Ring(4, 1, (1, 1))
    for rows in (3, 3, 7):
        start = float(ring.written)
        ring.add(torch.arange(start, start + rows)[:, None], torch.zeros(rows, 1, 1))
    assert sorted(ring.features.flatten().tolist()) == [9, 10, 11, 12] and ring.written == 13


@each_variant
def test_targets_are_what_was_executed(variant: str):
    """Of residuals the action, of weights what the network says before clipping."""
    model, latent = Integrator(), Integrator().starts(6)
    agent = awake(config(variant, planner=cem(initial_std=1.5, sampling="clip"), imaginary=3).build(model))
    action, carry = agent.act(model, latent, agent.initial(6, CPU), explore=True, generator=generator())
    assert torch.equal(carry.targets[:, 0].clamp(-1, 1), action) and carry.targets.shape == (6, 4, 2)
    assert (carry.targets[:, 0].abs() > 1).any() == (not agent.residual)
    agent.collected(model.features(latent), action, carry, torch.ones(6, dtype=torch.bool))
    assert torch.equal(agent.ring.features[:6], latent.x) and torch.equal(agent.ring.targets[:6], carry.targets)


def test_imaginary_data_are_the_best_first_entries_seen():
    model, latent = Integrator(), Integrator().starts(3)
    agent = silent(config("a-replan", imaginary=3, rows=30).build(model))
    seen = []
    inner = agent.planner

    class Spy:
        warm_start = True
        initial = inner.initial

        def __call__(self, score, plan, space, g):
            def spied(candidates):
                scores = score(candidates)
                scores[0] = -torch.inf  # the first row has no finite score, as far as the planner knows
                seen.append((candidates[:, :, 0], scores))
                return scores

            return inner(spied, plan, space, g)

    agent.planner = Spy()  # pyright: ignore[reportAttributeAccessIssue]
    _, carry = agent.act(model, latent, agent.initial(3, CPU), explore=True, generator=generator())
    entries, scores = (torch.cat(parts, 1) for parts in zip(*seen, strict=True))
    for row in (1, 2):
        best = entries[row][scores[row].argsort(descending=True)[:3]]
        torch.testing.assert_close(carry.targets[row, 1:], best)


def test_candidates_without_a_score_are_no_imaginary_data():
    model, latent = Integrator(), Integrator().starts(3)
    model.reward = lambda latent: torch.full(latent.x.shape[:-1], torch.nan)
    agent = awake(config("a-replan", imaginary=2).build(model))
    _, carry = agent.act(model, latent, agent.initial(3, CPU), explore=True, generator=generator())
    assert torch.equal(carry.targets, carry.targets[:, :1].expand_as(carry.targets))


# -------------------------------------------------------------------------------------------------- warm starts


@each_variant
def test_the_next_search_begins_where_this_one_ended(variant: str):
    """Sheet 8: shifted with a 0 appended; the one set of weights is kept."""
    model, latent = Integrator(), Integrator().starts(3)
    agent = awake(config(variant).build(model))
    found = agent.search(model, latent, agent.initial(3, CPU), generator())[0]
    _, carry = agent.act(model, latent, agent.initial(3, CPU), explore=True, generator=generator())
    shifted = torch.cat([found.actions[:, 1:], torch.zeros_like(found.actions[:, :1])], 1)
    assert torch.equal(carry.mean, found.actions if variant == "p-uni" else shifted)
    assert carry.mean.abs().sum() > 0 and found.actions.shape[1] == (1 if variant == "p-uni" else 6)


def test_a_planner_without_warm_start_keeps_no_weights():
    model = Integrator()
    agent = awake(config("p-uni", planner=cem(warm_start=False)).build(model))
    assert (lived(agent, model).mean == 0).all()


@each_variant
def test_a_search_begins_afresh_with_an_episode_and_after_distillation(variant: str):
    model, latent = Integrator(), Integrator().starts(3, 9)
    agent = awake(config(variant, planner=cem(initial_std=0.1)).build(model), 0.05)
    carry, fresh = lived(agent, model), agent.initial(3, CPU)

    def act(carry: Any) -> Tensor:
        return agent.act(model, latent, carry, explore=True, generator=generator(3))[0]

    new, old = act(fresh), act(carry)
    assert not torch.isclose(new, old).all(1).any()
    mixed = act(choose(torch.tensor([False, True, False]), fresh, carry))
    assert torch.equal(mixed, torch.where(torch.tensor([[False], [True], [False]]), new, old))
    agent.generation += 1
    assert torch.equal(act(carry), new)
    one_behind = carry._replace(generation=torch.tensor([1, 0, 1]))
    assert torch.equal(act(one_behind), torch.where(torch.tensor([[False], [True], [False]]), new, old))


# ---------------------------------------------------------------------------------------------------- contracts


@each_variant
@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_plans_are_imagined_valid_and_good(variant: str, sigma: float):
    model, latent = Integrator(sigma=sigma), Integrator().starts(3)
    agent = awake(config(variant, particles=2).build(model))
    plan = agent.plan(model, latent, agent.initial(3, CPU), generator())
    assert plan.shape == (3, 6, 2) and (plan.abs() <= 1).all()
    action, _ = agent.act(model, latent, agent.initial(3, CPU), explore=False, generator=generator())
    assert torch.equal(plan[:, 0], action)
    if not sigma:
        alone = agent.unroll(model, latent, lambda now, t: agent.acting(model.features(now)), None).clamp(-1, 1)
        assert (returns(model, latent, plan) > returns(model, latent, alone)).all()


@each_variant
@pytest.mark.parametrize(
    "planner",
    [
        ICEM(type="icem", horizon=4, iterations=2, candidates=12, elites=4, initial_std=0.5, momentum=0.1, decay=1.25,
             beta=2.0, kept=0.5),
        MPPI(type="mppi", horizon=4, iterations=2, candidates=12, elites=4, initial_std=0.5, min_std=0.05, max_std=2.0,
             momentum=0.1, temperature=0.5, control_cost=False),
        Gradient(type="gradient", horizon=4, iterations=2, candidates=3, initial_std=0.3, learning_rate=0.1),
    ],
    ids=lambda planner: planner.type,
)  # fmt: skip
def test_any_planner_searches_any_variant_and_leaves_no_gradient(variant: str, planner: Any):
    """Sheet 10."""
    model = Integrator()
    agent = awake(config(variant, planner=planner, imaginary=1).build(model))
    carry = lived(agent, model, steps=2)
    assert carry.mean.isfinite().all() and agent.ring.targets[:6].abs().sum() > 0
    assert all(p.grad is None for m in (agent, model) for p in m.parameters())
    assert not any(part.requires_grad for part in carry)


def test_distillation_leaves_the_world_model_alone():
    """Sheet 10."""
    model = Integrator()
    agent = awake(config("a-init").build(model))
    lived(agent, model)
    agent.loss(model, model.starts(2), UNUSED).terms["policy"].backward()
    assert all(p.grad is None for p in (*model.parameters(), *agent.acting.parameters()))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.policy.parameters())


def test_policy_control_executes_the_policy_alone_and_only_in_evaluation():
    model, latent = Integrator(), Integrator().starts(3)
    agent = awake(config("a-replan", control="policy").build(model))
    carry = agent.initial(3, CPU)
    action, kept = agent.act(model, latent, carry, explore=False, generator=generator())
    assert torch.equal(action, agent.acting(latent.x).clamp(-1, 1)) and kept is carry
    planned, _ = agent.act(model, latent, carry, explore=True, generator=generator())
    assert not torch.isclose(action, planned).all(1).any()


@pytest.mark.parametrize("distill", ["bc", "avg", "gan"])
def test_a_saved_agent_goes_on_exactly(distill: str):
    model, latent = Integrator(), Integrator().starts(3)
    agent, other = (config("p-sep", distill=distill).build(model) for _ in range(2))
    awake(agent)
    carry = lived(agent, model)
    agent.after_update(1)
    lived(agent, model, steps=2)
    other.load_state_dict(agent.state_dict(), strict=True)
    for loaded in (other, copy.deepcopy(agent)):
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in agent.state_dict().items())
        for name in ("act", "losses", "update"):
            torch.manual_seed(2)
            results = []
            for one in (agent, loaded):
                torch.manual_seed(2)
                if name == "act":
                    results.append(one.act(model, latent, carry, explore=True, generator=generator())[0])
                elif name == "losses":
                    results.append(torch.stack([*one.loss(model, None, UNUSED).metrics.values()]))
                else:
                    one = copy.deepcopy(one)
                    one.after_update(2)
                    results.append(one.acting.layers[1].weight)
            assert torch.equal(*results), name
    assert agent.generation == 1 and agent.ring.written > 0


@pytest.mark.parametrize("distill", ["bc", "avg", "gan"])
def test_parts_with_parameters_are_those_with_a_term(distill: str):
    model = Integrator()
    agent = config("p-uni", distill=distill).build(model)
    names = ["model", *agent.scales]
    groups = parameter_groups(model, agent, names)
    assert all(groups[name] for name in names) and agent.scales.keys() == agent.loss(model, None, UNUSED).terms.keys()


@pytest.mark.parametrize(
    ("variant", "propagation", "particles"),
    [("a-init", "model", 2), ("p-sep", "model", 1), ("a-init", "E", 1), ("p-uni", "TS1", 4), ("a-init", "MM", 2)],
)
def test_world_models_of_this_project_are_planned_in(variant, propagation, particles, debug_run, make_spaces):
    name = "rssm-v1" if propagation == "model" else "ensemble-v1"
    model = debug_run("none", name).world_model.build(make_spaces())
    agent = config(variant, propagation=propagation, particles=particles, hidden=(4,), planner=cem(candidates=8))
    agent = agent.build(model)
    latent, carry = model.initial(3), agent.initial(3, CPU)
    for _ in range(2):
        action, carry = agent.act(model, latent, carry, explore=True, generator=generator())
        agent.collected(model.features(latent), action, carry, torch.zeros(3, dtype=torch.bool))
    assert action.shape == (3, 3) and (action.abs() <= 1).all() and action.abs().sum() > 0
    assert agent.plan(model, latent, carry, generator()).shape == (3, 6, 3)


def test_with_the_mean_of_an_ensemble_and_no_policy_it_is_pets(debug_run, make_spaces):
    """Sheet 1, in a learned model."""
    model, planner = debug_run("none", "ensemble-v1").world_model.build(make_spaces()), cem()
    shared: dict[str, Any] = dict(planner=planner, particles=1, discount=1.0, stop_at_end=False, rows=10**6)
    plain: Any = pets.Config(**shared, propagation="E", exploration_noise=0.0).build(model)
    for variant in ("a-init", "a-replan"):
        agent = silent(config(variant, propagation="E").build(model))
        actions = [
            a.act(model, model.initial(3), a.initial(3, CPU), explore=True, generator=generator())[0]
            for a in (plain, agent)
        ]
        assert torch.equal(*actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(distill="avg"), "distill must be bc with variant a-replan"),
        (dict(variant="p-uni", distill="avg", imaginary=1), "imaginary must be 0 or more, 0 with distill avg"),
        (dict(imaginary=-1), "imaginary must be"),
        (dict(batch=0), "batch must be 1 or more, not 0"),
        (dict(hidden=(4, 0)), "hidden and discriminator are sizes"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        config(**changes)
    assert "\n" not in str(error.value)


def test_what_cannot_be_planned_in_is_refused_in_one_line(debug_run, make_spaces):
    shooting = RandomShooting(type="random_shooting", horizon=3, candidates=4)
    ensemble = debug_run("none", "ensemble-v1").world_model.build(make_spaces())
    for settings, model, message in (
        (config(), Integrator(discrete=True), "continuous actions; discrete ones cannot be added up"),
        (config(propagation="TS1"), Integrator(), "propagation TS1 needs a world model that is Ensembled; Integrator"),
        (config(propagation="TS1", particles=3), ensemble, "particles must be a multiple of 2 members, not 3"),
        (config(propagation="E", particles=2), ensemble, "particles must be 1, not 2: propagation E"),
        (config("p-uni", planner=shooting), Integrator(), "random_shooting draws uniformly and needs bounds"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            settings.build(model)
        assert "\n" not in str(error.value)
    assert config("a-init", planner=shooting).build(Integrator()).space.bound == 1


@pytest.mark.parametrize(
    ("agent", "preset", "expected"),
    [
        ("poplin-a", "debug", ("a-init", "bc", {"model", "policy"})),
        ("poplin-a", "debug,replan", ("a-replan", "bc", {"model", "policy"})),
        ("poplin-p", "debug", ("p-uni", "bc", {"model", "policy"})),
        ("poplin-p", "debug,sep", ("p-sep", "bc", {"model", "policy"})),
        ("poplin-p", "debug,gan", ("p-uni", "gan", {"model", "policy", "discriminator"})),
        ("poplin-p", "debug,sep,avg", ("p-sep", "avg", {"model"})),
    ],
)
def test_the_papers_variants_are_presets(agent, preset, expected, debug_run, make_spaces, make_batch):
    run = debug_run(agent, None, "--preset", preset, *(["--agent.imaginary", "0"] if "avg" in preset else []))
    assert (run.agent.variant, run.agent.distill, set(run.optimizers)) == expected
    model = run.world_model.build(make_spaces())
    built = run.agent.build(model)
    batch = make_batch()
    latent, model_losses = model.loss(batch)
    carry = built.initial(3, CPU)
    for _ in range(5):
        start = type(latent)(*(part[:, -1].detach() for part in latent))
        action, carry = built.act(model, start, carry, explore=True, generator=generator())
        built.collected(model.features(start), action, carry, torch.zeros(3, dtype=torch.bool))
    losses = built.loss(model, latent, batch)
    total = sum((*losses.terms.values(), *model_losses.terms.values()), torch.zeros(()))
    total.backward()
    groups = parameter_groups(model, built, list(run.optimizers))
    own = [p for name, group in groups.items() if name != "model" for p in group]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own)
