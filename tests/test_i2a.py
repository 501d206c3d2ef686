"""I2A and A2C: returns, windows, imagination, encoding, distillation, and what reduces one to the other."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from agents.a2c import A2C, PathConfig, segment_return
from agents.a2c import Config as A2CConfig
from agents.actor import ActorConfig
from agents.i2a import I2A, Config, RolloutEncoder, distillation
from agents.training.cli import parse
from agents.training.config import shipped
from agents.training.optim import RMSpropConfig
from worldmodels.base import Rewarded, Sequence, Spaces, WorldModel, map_latent
from worldmodels.distributions import BoundedNormal, OneHot
from worldmodels.envs import Step
from worldmodels.heads import HeadConfig
from worldmodels.replay.memory import Replay

ACTOR = ActorConfig(
    layers=0, units=6, norm="none", activation="elu", output_scale=1.0, continuous="bounded_normal", unimix=0.0,
    exploration_noise=0.0, evaluation="sample",
)  # fmt: skip
CRITIC = HeadConfig(layers=0, units=6, norm="none", activation="elu", output="normal", output_scale=1.0)
PATH = PathConfig(layers=1, units=6, norm="none", activation="elu")


class Where(NamedTuple):
    """The state of ``Line``: a number, and the action that led to it."""

    place: Tensor
    last: Tensor


class Line(WorldModel, Rewarded):
    """Three actions add -1, 0, 1 to a number; the reward is the number, and the episode ends beyond 2."""

    feature_dim = 4

    def __init__(self, discrete: bool = True):
        super().__init__()
        self.spaces = Spaces((8, 8, 3), 3, discrete)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.moves: list[Tensor] = []

    def initial(self, batch: int) -> Where:
        return Where(torch.zeros(batch), torch.zeros(batch, 3))

    def observe(self, latent: Where, *_: Any) -> Where:
        return latent

    def imagine(self, latent: Where, action: Tensor, generator: Generator | None = None) -> Where:
        self.moves.append(action)
        return Where(latent.place + action @ torch.tensor([-1.0, 0.0, 1.0]), action)

    def features(self, latent: Where) -> Tensor:
        return torch.cat([latent.place.unsqueeze(-1), latent.last], -1) * self.scale

    def reward(self, latent: Where) -> Tensor:
        return latent.place

    def continues(self, latent: Where) -> Tensor:
        return (latent.place <= 2).float()

    def loss(self, batch: Sequence) -> Any: ...

    def filter(self, batch: Sequence, generator: Generator | None = None) -> Any: ...

    def rollout(self, latent: Where, actions: Tensor, generator: Generator | None = None) -> Any: ...


def i2a_config(**changes: Any) -> Config:
    config = Config(
        path=PATH, core="model", depth=2, candidates=4, rewards=True, rollout=ACTOR, frame=PATH, encoded=5,
        actor=ACTOR, critic=CRITIC, discount=0.9, newest=16,
        scales={"policy": 1.0, "value": 1.0, "entropy": 0.01, "rollout": 1.0},
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def make(discrete: bool = True, **changes: Any) -> tuple[Line, I2A]:
    model = Line(discrete)
    agent = i2a_config(**changes).build(model)
    small.awake(agent, seed=3)
    return model, agent


def places(*values: float) -> Where:
    return Where(torch.tensor(values), torch.zeros(len(values), 3))


def segments(size: int = 3, length: int = 6, seed: int = 0) -> tuple[Where, Sequence]:
    """Posterior and sequence of ``size`` windows; the first has an episode's end in it."""
    g = torch.Generator().manual_seed(seed)
    action = F.one_hot(torch.randint(3, (size, length), generator=g), 3).float()
    flags = torch.zeros(size, length, dtype=torch.bool)
    is_last, is_first = flags.clone(), flags.clone()
    is_last[0, 2:3] = is_first[0, 3:4] = True
    batch = Sequence(
        torch.zeros(size, length, 8, 8, 3, dtype=torch.uint8), action, torch.randn(size, length, generator=g),
        is_first, is_last, is_last.clone(), torch.zeros(size, 3),
    )  # fmt: skip
    return Where(torch.randn(size, length, generator=g), torch.zeros(size, length, 3)), batch


# ---- returns and windows


def test_returns_golden_values():
    """gamma 1/2: real rewards to the window's end, then its value; a time limit is bootstrapped, a terminal end not."""
    reward = torch.tensor([[9.0, 1.0, 2.0, 4.0, 8.0]]).expand(3, -1)
    value = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0]]).expand(3, -1)
    is_last = torch.tensor([[False] * 5, [False, False, True, False, False], [False, False, True, False, False]])
    is_terminal = torch.tensor([[False] * 5, [False] * 5, [False, False, True, False, False]])
    found = segment_return(reward, is_last, is_terminal, value, 0.5)
    whole = [1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 33)), 2 + 0.5 * (4 + 0.5 * 33), 4 + 0.5 * 33, 8 + 0.5 * 50]
    assert found[0].tolist() == whole
    assert found[1].tolist() == [1 + 0.5 * (2 + 0.5 * 30), 2 + 0.5 * 30, whole[2], whole[3]]
    assert found[2].tolist() == [1 + 0.5 * 2, 2.0, whole[2], whole[3]]


def test_each_update_sees_the_next_k_steps_of_every_environment():
    """``replay.newest`` = N and a window of K + 1 every K steps: all steps, in order, the shared one last and first."""
    n, k = 3, 4
    replay = Replay(Spaces((2, 2, 3), 2, True), 300, n)
    seen: list[list[int]] = [[] for _ in range(n)]
    flags = np.zeros(n, bool)
    for t in range(1 + 6 * k):
        obs, number = np.zeros((n, 2, 2, 3), np.uint8), np.full(n, t, np.float32)
        replay.add(Step(obs, number, np.full(n, t == 0), flags, flags, np.ones(n)), np.zeros((n, 2), np.float32))
        if t and t % k == 0:
            windows = replay.sample(2 * n, k + 1, newest=n)
            assert sorted((windows.index[:n, 0] % n).tolist()) == list(range(n)), "one of each environment"
            for stream, rewards in zip(windows.index[:n, 0] % n, windows.sequence.reward[:n], strict=True):
                seen[stream] += rewards.int().tolist()
    expected = [t for begin in range(0, 6 * k, k) for t in range(begin, begin + k + 1)]
    assert seen == [expected] * n


@pytest.mark.parametrize("preset", [(), ("cpu",), ("cpu", "toy"), ("cpu", "toy", "grid")])
@pytest.mark.parametrize("name", ["a2c", "i2a", "i2a-copy", "i2a-no-reward"])
def test_the_shipped_numbers_are_on_policy(name: str, preset: tuple[str, ...]):
    words = ["--preset", ",".join(preset)] if preset else ["--preset", "paper"]
    run = parse(["--agent", name, "--task", "toy:catch", *words]).config
    assert run.agent.newest == run.replay.newest == run.collect.num_envs <= run.replay.batch
    steps = run.collect.num_envs * (run.replay.length - 1) * run.env.action_repeat
    assert run.training.updates_per_env_step == pytest.approx(1 / steps)
    assert run.collect.prefill == run.training.pretrain_updates == 0


def test_older_windows_of_a_batch_teach_nothing():
    model, agent = make(newest=2)
    latent, batch = segments(5)
    torch.manual_seed(1)
    first = agent.loss(model, map_latent(lambda part: part[:2], latent), Sequence(*(x[:2] for x in batch[:7])))
    torch.manual_seed(1)
    both = agent.loss(model, latent, batch)
    for name, term in both.terms.items():
        torch.testing.assert_close(term, first.terms[name])


def test_policy_value_and_entropy_golden_values():
    """Two steps, three actions of probability 1/3, every value 2: all by hand."""
    model = Line()
    agent = A2CConfig(path=PATH, actor=ACTOR, critic=CRITIC, discount=0.5, newest=1, scales={}).build(model)
    for parameter in [*agent.actor.parameters(), *agent.critic.parameters()]:
        parameter.data.zero_()
    agent.critic.mlp.output.bias.data.fill_(2.0)  # every value
    latent, batch = segments(2, 3)
    batch = batch._replace(reward=torch.tensor([[0.0, 3.0, 0.0]] * 2), is_last=batch.is_last & False)
    batch = batch._replace(is_terminal=batch.is_last)
    losses = agent.loss(model, latent, batch)
    returns = torch.tensor([3 + 0.5 * (0 + 0.5 * 2), 0 + 0.5 * 2])
    log = torch.log(torch.tensor(3.0))
    torch.testing.assert_close(losses.terms["policy"], (log * (returns - 2)).mean())
    torch.testing.assert_close(losses.terms["value"], (0.5 * (returns - 2) ** 2).mean())
    torch.testing.assert_close(losses.terms["entropy"], -log)
    torch.testing.assert_close(losses.metrics["return"], returns.mean())


def test_steps_into_the_next_episode_do_not_count():
    model, agent = make()
    latent, batch = segments()
    torch.manual_seed(1)
    before = agent.loss(model, latent, batch)
    other = batch.action.clone()
    other[0, 2] = other[0, 2].roll(1)  # chosen after the episode's end
    torch.manual_seed(1)
    after = agent.loss(model, latent, batch._replace(action=other))
    assert torch.equal(before.terms["policy"], after.terms["policy"])
    other = batch.action.clone()
    other[0, 1] = other[0, 1].roll(1)
    assert not torch.equal(
        before.terms["policy"], agent.loss(model, latent, batch._replace(action=other)).terms["policy"]
    )


# ---- imagination


def test_rollout_i_of_every_row_begins_with_action_i():
    model, agent = make(depth=3)
    imagined = agent.imagine(model, places(0.0, 10.0, -5.0, 3.0), None)
    assert torch.equal(model.moves[0], torch.eye(3).repeat(4, 1))
    assert imagined.frames.shape == (4, 3, 3, 4 + 2)
    expected = torch.tensor([[-1.0, 0.0, 1.0]]) + torch.tensor([0.0, 10.0, -5.0, 3.0]).unsqueeze(1)
    assert torch.equal(imagined.frames[:, :, 0, 0], expected) and torch.equal(imagined.reward[:, :, 0], expected)
    assert torch.equal(imagined.frames[:, :, 0, 1:4], torch.eye(3).expand(4, -1, -1))
    later = model.moves[1].unflatten(0, (4, 3))
    assert torch.equal(imagined.frames[:, :, 1, 1:4], later), "features follow the action that led to them"


def test_later_actions_are_those_of_the_rollout_policy():
    model, agent = make(depth=4)
    for parameter in agent.rollout.parameters():
        parameter.data.zero_()
    agent.rollout.mlp.output.bias.data = torch.tensor([0.0, 50.0, 0.0])
    agent.imagine(model, places(0.0, 1.0), None)
    assert len(model.moves) == 4
    for action in model.moves[1:]:
        assert torch.equal(action, torch.tensor([[0.0, 1.0, 0.0]]).expand(6, -1))


def test_a_permuted_batch_has_permuted_codes():
    model, agent = make(depth=1)  # later steps draw noise
    order = torch.tensor([2, 0, 3, 1])
    latent = places(0.5, -1.0, 2.0, 1.5)
    code = agent.code(model, latent, None)[0]
    mixed = agent.code(model, map_latent(lambda part: part[order], latent), None)[0]
    torch.testing.assert_close(mixed, code[order])
    assert (code[1:] - code[:1]).abs().sum(-1).min() > 1e-3


def test_the_copy_model_repeats_what_is_and_still_learns():
    model, agent = make(core="copy", depth=3)
    latent = places(0.5, -1.0)
    imagined = agent.imagine(model, latent, None)
    features = model.features(latent)[:, None, None].expand(-1, 3, 3, -1)
    assert torch.equal(imagined.frames[..., :4], features) and not model.moves
    assert not imagined.reward.any() and (imagined.alive == 1).all()
    latent, batch = segments()
    losses = agent.loss(model, latent, batch)
    assert sum(losses.terms.values()).isfinite()
    assert sizes(agent) == sizes(make(core="model")[1]) == sizes(make(rewards=False)[1]), "same weights"


def sizes(agent: I2A) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in agent.named_parameters()}


def test_without_rewards_neither_rewards_nor_ends_are_told():
    model, agent = make(rewards=False, depth=3)
    imagined = agent.imagine(model, places(2.0, 7.0), None)
    assert not imagined.frames[..., 4].any() and (imagined.frames[..., 5] == 1).all() and (imagined.alive == 1).all()
    assert len(model.moves) == 3


def test_what_lies_beyond_a_predicted_end_changes_nothing():
    model, agent = make(depth=3)
    imagined = agent.imagine(model, places(3.0), None)  # every action leads to 2 or more
    alive = imagined.alive[0]
    assert (alive[:, 0] == 1).all() and not alive[1:, 1:].any(), "the step that ends it is seen, what follows is not"
    frames = imagined.frames[0, 1:]
    other = torch.cat([frames[:, :1], torch.randn_like(frames[:, 1:])], 1)
    torch.testing.assert_close(agent.encoder(other, alive[1:]), agent.encoder(frames, alive[1:]))
    assert not torch.allclose(agent.encoder(other, torch.ones(2, 3)), agent.encoder(frames, torch.ones(2, 3)))
    short = agent.encoder(frames[:, :1], torch.ones(2, 1))
    torch.testing.assert_close(agent.encoder(frames, alive[1:]), short), "as if the rollout had been that short"


def test_the_encoder_is_torchs_lstm_over_reversed_time():
    encoder = RolloutEncoder(4, PATH, 5)
    whole = torch.nn.LSTM(6, 5, batch_first=True)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(whole, f"{name}_l0").data = getattr(encoder.lstm, name).data
    frames = torch.randn(7, 4, 4)
    _, (expected, _) = whole(encoder.frame(frames).flip(1))
    found = encoder(frames, torch.ones(7, 4))
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(encoder(frames.flip(1), torch.ones(7, 4)), found)


def test_the_encoder_learns_what_only_the_last_frame_tells():
    torch.manual_seed(0)
    encoder = RolloutEncoder(2, dataclasses.replace(PATH, units=16), 16)
    head = torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 0.02)
    for _ in range(150):
        frames = torch.randn(64, 5, 2)
        wanted = (frames[:, -1, 0] > 0).float()
        loss = F.binary_cross_entropy_with_logits(head(encoder(frames, torch.ones(64, 5))).squeeze(-1), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames = torch.randn(500, 5, 2)
    said = head(encoder(frames, torch.ones(500, 5))).squeeze(-1) > 0
    assert (said == (frames[:, -1, 0] > 0)).float().mean() > 0.95


def test_without_its_imagination_it_is_a2c():
    model, agent = make()
    values = agent.config
    plain = A2CConfig(
        path=values.path, actor=values.actor, critic=values.critic, discount=0.9, newest=16, scales={}
    ).build(model)
    assert isinstance(plain, A2C)
    plain.path.load_state_dict(agent.path.state_dict())
    code = agent.code(model, places(0.5, -1.0), None)[0]
    width = 3 * values.encoded
    for part in ("actor", "critic"):
        weights = getattr(agent, part).mlp.state_dict()
        first = next(name for name in weights if name.endswith("weight"))
        getattr(plain, part).mlp.load_state_dict(weights | {first: weights[first][:, width:]})
    code[:, :width] = 0
    seen = plain.path(model.features(places(0.5, -1.0)))
    torch.testing.assert_close(agent.actor(code).log_probs, plain.actor(seen).log_probs)
    torch.testing.assert_close(agent.critic(code).mean, plain.critic(seen).mean)


# ---- distillation and gradients


def test_distillation_is_torchs_cross_entropy_and_teaches_the_pupil_alone():
    teacher, pupil = (torch.randn(10, 3, requires_grad=True) for _ in range(2))
    cross, divergence = distillation(OneHot(teacher, 0.0), OneHot(pupil, 0.0))
    expected = F.cross_entropy(pupil, teacher.softmax(-1), reduction="none")
    torch.testing.assert_close(cross, expected)
    kl = F.kl_div(pupil.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(divergence, kl.detach())
    to_teacher, to_pupil = torch.autograd.grad(cross.sum(), [teacher, pupil], allow_unused=True)
    assert to_teacher is None or not to_teacher.any()
    torch.testing.assert_close(to_pupil, (pupil.softmax(-1) - teacher.softmax(-1)).detach())


def test_distillation_reaches_the_teacher():
    teacher = OneHot(torch.tensor([[2.0, 0.0, -1.0]]), 0.0)
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], 1.0)
    for _ in range(200):
        optimizer.zero_grad()
        distillation(teacher, OneHot(logits, 0.0))[0].sum().backward()
        optimizer.step()
    assert distillation(teacher, OneHot(logits, 0.0))[1].item() < 1e-3


def test_continuous_distillation_is_the_cross_entropy_on_average():
    torch.manual_seed(0)
    teacher, pupil = torch.randn(1, 4), torch.randn(1, 4, requires_grad=True)
    a, b = BoundedNormal(teacher), BoundedNormal(pupil)
    normals = [torch.distributions.Normal(p.mode, p.std) for p in (a, b)]
    expected = (torch.distributions.kl_divergence(*normals) + normals[0].entropy()).sum()
    many = distillation(BoundedNormal(teacher.expand(20_000, -1)), BoundedNormal(pupil.expand(20_000, -1)))[0]
    torch.testing.assert_close(many.mean(), expected, rtol=0.03, atol=0.02)


def test_each_term_teaches_what_it_should():
    model, agent = make()
    latent, batch = segments()
    latent.place.requires_grad_()
    losses = agent.loss(model, latent, batch)
    parameters = dict(agent.named_parameters()) | {"model": model.scale, "latent": latent.place}
    for name, term in losses.terms.items():
        gradients = torch.autograd.grad(term, list(parameters.values()), allow_unused=True, retain_graph=True)
        parts = {key.split(".")[0] for key, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}
        acted = {"path", "encoder", "actor"}
        assert parts == {"policy": acted, "entropy": acted, "value": {"path", "encoder", "critic"},
                         "rollout": {"rollout"}}[name]  # fmt: skip


def test_an_update_leaves_the_world_model_as_it_was():
    model, agent = make()
    before = model.scale.clone()
    optimizer = torch.optim.SGD([*agent.parameters(), *model.parameters()], 0.1)
    latent, batch = segments()
    losses = agent.loss(model, latent, batch)
    sum(agent.scales[name] * term for name, term in losses.terms.items()).backward()
    optimizer.step()
    assert torch.equal(model.scale, before) and model.scale.grad is None


def test_continuous_candidates_do_not_depend_on_their_order():
    model, agent = make(discrete=False, depth=1)
    latent = places(0.5, -1.0)
    imagined = agent.imagine(model, latent, Generator().manual_seed(0))
    assert imagined.frames.shape == (2, 4, 1, 4 + 2 + 3)
    assert torch.equal(imagined.frames[..., -3:], imagined.frames[..., 1:4]), "each is told which action it is of"
    assert (imagined.frames[:, :1] != imagined.frames[:, 1:]).any(-1).all() and imagined.frames[
        ..., -3:
    ].abs().max() <= 1
    assert agent.code(model, latent, None)[0].shape == (2, 5 + 6)


# ---- learning


class Trap(WorldModel, Rewarded):
    """A perfect model of two steps: of three actions one, another in each of 256 places, leads on to a reward of 1."""

    feature_dim, spaces, places = 256 + 2, Spaces((8, 8, 3), 3, True), 256

    def __init__(self) -> None:
        super().__init__()
        self.right = torch.randint(3, (self.places,), generator=torch.Generator().manual_seed(7))

    def imagine(self, latent: Where, action: Tensor, generator: Generator | None = None) -> Where:
        """``last`` is [time, whether it is trapped, 0]: the first action decides, and nothing mends it."""
        time, trapped = latent.last[:, 0], latent.last[:, 1]
        wrong = (action.argmax(-1) != self.right[latent.place.long()]).float()
        trapped = torch.where(time == 0, wrong, trapped)
        return Where(latent.place, torch.stack([time + 1, trapped, torch.zeros_like(time)], -1))

    def features(self, latent: Where) -> Tensor:
        return torch.cat([F.one_hot(latent.place.long(), self.places).float(), latent.last[..., :2]], -1)

    def reward(self, latent: Where) -> Tensor:
        return ((latent.last[..., 0] == 2) & (latent.last[..., 1] == 0)).float()

    def continues(self, latent: Where) -> Tensor:
        return (latent.last[..., 0] < 2).float()

    def initial(self, batch: int) -> Where:
        return Where(torch.randint(self.places, (batch,)).float(), torch.zeros(batch, 3))

    def observe(self, latent: Where, *_: Any) -> Where:
        return latent

    def loss(self, batch: Sequence) -> Any: ...

    def filter(self, batch: Sequence, generator: Generator | None = None) -> Any: ...

    def rollout(self, latent: Where, actions: Tensor, generator: Generator | None = None) -> Any: ...


def out_of_the_trap(core: str, seed: int, updates: int) -> float:
    """The share of first actions that were right, over the last five updates of 64 episodes each."""
    torch.manual_seed(seed)
    path = dataclasses.replace(PATH, units=32)
    agent = i2a_config(core=core, path=path, frame=path, encoded=16, newest=64).build(model := Trap())
    optimizer, right = torch.optim.Adam(agent.parameters(), 0.01), []
    for _ in range(updates):
        steps, actions = [model.initial(64)], []
        with torch.no_grad():
            for _ in range(2):
                actions.append(agent.act(model, steps[-1], agent.initial(64, torch.device("cpu")), explore=True,
                                         generator=None)[0])  # fmt: skip
                steps.append(model.imagine(steps[-1], actions[-1]))
        latent = map_latent(lambda *parts: torch.stack(parts, 1), *steps)
        reward, last = model.reward(latent), latent.last[..., 0] == 2
        batch = Sequence(
            torch.zeros(64, 3, 8, 8, 3, dtype=torch.uint8), torch.stack([*actions, actions[-1]], 1), reward,
            latent.last[..., 0] == 0, last, last, torch.zeros(64, 3),
        )  # fmt: skip
        losses = agent.loss(model, latent, batch)
        optimizer.zero_grad()
        sum(agent.scales[name] * term for name, term in losses.terms.items()).backward()
        optimizer.step()
        right.append(reward[:, 2].mean().item())
    return sum(right[-5:]) / 5


def test_with_a_perfect_model_it_gets_out_of_a_trap_before_the_copy_model_does():
    found = {core: sorted(out_of_the_trap(core, seed, 32) for seed in range(3))[1] for core in ("model", "copy")}
    assert found["model"] > 0.95 and found["copy"] < 0.75, found


# ---- what is refused, and the optimiser


def test_what_cannot_be_is_refused_by_name():
    for changes, message in (
        ({"depth": 0}, "depth"), ({"newest": 0}, "newest"), ({"encoded": 0}, "encoded"),
        ({"candidates": 0}, "candidates"),
        ({"actor": dataclasses.replace(ACTOR, exploration_noise=0.1)}, "exploration_noise"),
        ({"rollout": dataclasses.replace(ACTOR, continuous="tanh_normal")}, "no entropy"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            i2a_config(**changes)


def test_rmsprop_golden_values():
    """alpha 0.9, g = 1 then 3, lr 0.1: nu = 0.1, then 0.99."""
    p = torch.nn.Parameter(torch.zeros(1))
    config = RMSpropConfig(type="rmsprop", lr=0.1, warmup=0, alpha=0.9, eps=0.0, clip=100.0)
    optimizer = config.build([p])
    for gradient, expected in ((1.0, -0.1 / 0.1**0.5), (3.0, -0.1 / 0.1**0.5 - 0.3 / 0.99**0.5)):
        p.grad = torch.tensor([gradient])
        assert config.clip_gradients([p]).after.item() == pytest.approx(gradient)
        optimizer.step()
        assert p.item() == pytest.approx(expected)
    p.grad = torch.tensor([400.0])
    config.clip_gradients([p])
    assert p.grad.item() == pytest.approx(100.0)


def test_the_baselines_differ_from_i2a_in_one_value_each():
    for name, change in (("i2a-copy", {"core": "copy"}), ("i2a-no-reward", {"rewards": False})):
        said = shipped().entry("agents", name).files[-1].values
        assert said["config"] == change and set(said) == {"config"}
