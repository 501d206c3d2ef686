"""The pixel model: pool-and-inject by hand, pictures of any size, what is learned from what, and that it is learned."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.training.cli import parse
from worldmodels.base import Sequence, Spaces, cut, map_latent
from worldmodels.pixels import Block, Inject, Pixels, PixelsLatent
from worldmodels.strict import ConfigError

Build = Callable[..., Any]
CELL = 4  # pixels, of the boards below


@pytest.fixture
def build(debug_run: Build, make_spaces: Build) -> Build:
    """The model of the debug preset with other values, and no weight at zero unless it is ``fresh``."""

    def made(spaces: Spaces | None = None, fresh: bool = False, **changes: Any) -> Pixels:
        torch.manual_seed(0)
        model = dataclasses.replace(debug_run("none", "pixels").world_model, **changes).build(spaces or make_spaces())
        for parameter in () if fresh else model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    return made


def last(latent: PixelsLatent) -> PixelsLatent:
    return map_latent(lambda part: part[:, -1], latent)


# ------------------------------------------------------------------------------------------------------------ networks


def test_pool_and_inject_is_a_convolution_of_the_input_and_its_greatest_values_tiled():
    layer, x = Inject(5, 7), torch.randn(3, 5, 4, 6)
    nn.init.normal_(layer.here.bias)
    greatest = torch.stack([torch.stack([channel.max() for channel in image]) for image in x])
    injected = torch.cat([x, greatest.view(3, 5, 1, 1).repeat(1, 1, 4, 6)], 1)
    weight = torch.cat([layer.here.weight, layer.anywhere.weight[..., None, None]], 1)
    torch.testing.assert_close(layer(x), F.conv2d(injected, weight, layer.here.bias), rtol=1e-5, atol=1e-5)
    assert weight.std().item() == pytest.approx(10**-0.5, rel=0.2)  # of all 10 channels that are read


def test_a_block_appends_its_joined_branches_to_its_input(build: Build):
    config = build(kernels=(3, 5), branches=(2, 3), depth=4, activation="relu").config
    block, x = Block(6, config), torch.randn(2, 6, 5, 5)
    read = F.relu(block.inject(x))
    near = F.relu(F.conv2d(read[:, :2], block.convs[0].weight, padding=1))
    wide = F.relu(F.conv2d(read[:, 2:], block.convs[1].weight, padding=2))
    joined = F.conv2d(torch.cat([near, wide], 1), block.join.weight)
    normed = joined / (joined.square().mean(1, keepdim=True) + 1e-4).sqrt()
    torch.testing.assert_close(block(x), torch.cat([x, F.relu(normed)], 1), rtol=1e-4, atol=1e-5)


def test_one_corner_is_told_of_the_other_by_the_greatest_values_alone(build: Build):
    model = build(Spaces((64, 64, 3), 3, False), patch=8, kernels=(1,), branches=(16,))
    code = torch.randn(1, 8 * 8 * 2)
    code.data[:, :2] = 9.0  # the first position is where channels are greatest
    changed, action = code.clone(), torch.zeros(1, 3)
    changed[:, :2] = -9.0
    there = [model.body(one, action)[0, :, -1, -1] for one in (code, changed)]
    assert not torch.allclose(*there)
    for block in model.body.blocks:
        nn.init.zeros_(block.inject.anywhere.weight)
    there = [model.body(one, action)[0, :, -1, -1] for one in (code, changed)]
    torch.testing.assert_close(*there)


def test_actions_are_planes_beside_the_code(build: Build):
    model = build(Spaces((48, 32, 3), 3, False))
    body, code, action = model.body, torch.randn(2, 3 * 2 * 2), torch.rand(2, 3)
    planes = torch.cat([code.view(2, 3, 2, 2).permute(0, 3, 1, 2), action[..., None, None].expand(-1, -1, 3, 2)], 1)
    weight = torch.cat([body.from_code.weight, body.from_action.weight[..., None, None]], 1)
    first = body.activation(F.conv2d(planes, weight, body.from_code.bias))
    torch.testing.assert_close(body(code, action), body.blocks(first), rtol=1e-4, atol=1e-5)


def test_the_published_block_has_the_sizes_of_the_re_implementation():
    argv = ["--agent", "i2a", "--world-model", "pixels", "--task", "toy:reach", "--preset", "paper"]
    model = parse(argv).config.world_model.build(Spaces((80, 80, 3), 4, True))
    assert model.body.grid == (10, 10) and model.feature_dim == 10 * 10 * 16 + 64
    for block, inputs in zip(model.body.blocks, (64, 128), strict=True):
        assert block.inject.here.weight.shape == (16 + 32, inputs, 1, 1)
        assert [tuple(layer.weight.shape) for layer in block.convs] == [(16, 16, 9, 9), (32, 32, 3, 3)]
        assert block.join.weight.shape == (64, 48, 1, 1)
    assert model.decoder.hidden.weight.shape == (256, 192, 1, 1)


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("image", [(15, 15, 3), (15, 19, 3), (40, 40, 3), (96, 96, 1)])
def test_pictures_of_any_size_are_seen_dreamt_and_kept(image: tuple[int, int, int], discrete: bool, build: Build):
    model = build(Spaces(image, 3, discrete), patch=8)
    obs, action = torch.randint(256, (2, *image), dtype=torch.uint8), torch.eye(3)[:2]
    seen = model.observe(model.initial(2), action, obs, torch.zeros(2, dtype=torch.bool))
    assert torch.equal(model.decode(seen), obs)
    assert torch.equal(model.decode(model.unpack(model.pack(seen))), obs)
    dreamt = model.imagine(seen, action)
    assert [part.shape for part in dreamt] == [part.shape for part in seen]
    assert model.features(dreamt).shape == (2, model.feature_dim)
    assert (dreamt.image - seen.image).flatten(1).abs().amax(1).gt(0.01).all()
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        other = obs.clone()
        other[:, corner[0], corner[1]] ^= 128
        code = model.observe(seen, action, other, torch.zeros(2, dtype=torch.bool)).code
        assert (code - seen.code).abs().amax(1).gt(1e-4).all(), corner


def test_before_anything_is_learned_nothing_moves(build: Build, make_batch: Build):
    model, batch = build(fresh=True), make_batch()
    start = last(model.filter(batch))
    dream = model.rollout(start, batch.action)
    assert torch.equal(dream.image, start.image.unsqueeze(1).expand_as(dream.image))
    _, losses = model.loss(batch)
    assert losses.terms["image"] > 100 and torch.equal(losses.terms["image"], losses.metrics["copied"])


def test_dreams_leave_nothing_to_chance_and_stay_pictures(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    nn.init.normal_(model.decoder.output.weight)  # so that much is cut
    start = last(model.filter(batch))
    one, two = (model.rollout(start, batch.action, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one.image.min() == 0 and one.image.max() == 1
    uncut = start.image + model.decoder(model.body(start.code, batch.action[:, 0]))
    assert (uncut < 0).any() and (uncut > 1).any()
    torch.testing.assert_close(one.image[:, 0], uncut.clamp(0, 1), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- loss


def slow_image(model: Pixels, batch: Sequence) -> tuple[Tensor, Tensor]:
    """``image`` and ``copied`` step by step."""
    predicted, copied = [], []
    for b in range(len(batch.reward)):
        for t in range(1, batch.reward.shape[1]):
            if not batch.is_first[b, t]:
                before, after = (batch.obs[b : b + 1, i].double() / 255 for i in (t - 1, t))
                code = model.encoder(before.float())
                change = model.decoder(model.body(code, batch.action[b : b + 1, t - 1]))
                predicted.append((before + change - after).square().sum())
                copied.append((before - after).square().sum())
    return torch.stack(predicted).mean().float(), torch.stack(copied).mean().float()


def test_each_picture_is_foretold_from_the_one_before_it_in_its_episode(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    losses, (image, copied) = model.loss(batch)[1], slow_image(model, batch)
    torch.testing.assert_close(losses.terms["image"], image, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(losses.metrics["copied"], copied, rtol=1e-4, atol=0.0)
    assert (image - copied).abs() > 1


def test_the_first_step_of_a_window_counts_where_what_came_before_is_known(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    alone = cut(batch, slice(2, 3))._replace(prev_action=batch.action[:, 1])
    alone = alone._replace(is_first=torch.zeros_like(alone.is_first))
    unknown = model.loss(alone)[1].terms
    assert all(term.item() == 0 for term in unknown.values())
    context = model.pack(map_latent(lambda part: part[:, 1], model.filter(batch)))
    known = model.loss(alone._replace(context=context))[1].terms
    pairs = cut(batch, slice(1, 3))._replace(is_first=torch.tensor([[True, False]] * 3))
    torch.testing.assert_close(known["image"], model.loss(pairs)[1].terms["image"], rtol=1e-5, atol=1e-3)
    assert known["reward"] > 0 and known["continue"] > 0
    begun = model.loss(alone._replace(is_first=~alone.is_first))[1].terms
    assert begun["image"].item() == 0 and begun["reward"] > 0 and begun["continue"] > 0


def test_what_a_step_did_is_nothing_where_an_episode_begins(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    latent = model.filter(batch)
    assert (latent.step[batch.is_first] == 0).all() and latent.step[~batch.is_first].any(-1).all()
    assert torch.equal(model.features(latent), torch.cat([latent.code, latent.step], -1))


def test_rewards_and_ends_are_of_the_picture_and_action_before(build: Build, make_batch: Build):
    model, batch = build(), make_batch()
    latent = model.filter(batch)
    other = model.filter(batch._replace(obs=torch.cat([batch.obs[:, :-1], 255 - batch.obs[:, -1:]], 1)))
    assert not torch.allclose(latent.code[:, -1], other.code[:, -1])
    assert torch.equal(model.reward(latent), model.reward(other))
    assert torch.equal(model.continues(latent), model.continues(other))
    before = map_latent(lambda part: part[:, 1], latent)
    dreamt = model.imagine(before, batch.action[:, 1])
    torch.testing.assert_close(dreamt.step, latent.step[:, 2])  # seen and dreamt are the same computation
    torch.testing.assert_close(model.continues(dreamt), model.continues(latent)[:, 2])


def test_each_term_teaches_its_own_parts_and_all_of_them_the_code(build: Build, make_batch: Build):
    model = build()
    learn = {
        "image": {"encoder", "body", "decoder"},
        "reward": {"encoder", "body", "step", "reward_head"},
        "continue": {"encoder", "body", "step", "continue_head"},
    }
    terms = model.loss(make_batch())[1].terms
    assert terms.keys() == learn.keys()
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(model.parameters()), allow_unused=True, retain_graph=True)
        reached = {
            parameter.partition(".")[0]
            for (parameter, _), gradient in zip(model.named_parameters(), gradients, strict=True)
            if gradient is not None and gradient.any()
        }
        assert reached == learn[name], name
    latent = model.loss(make_batch())[0]
    assert latent.code.requires_grad and latent.step.requires_grad and not latent.image.requires_grad


def test_other_actions_concern_one_tensor(build: Build, make_spaces: Build):
    model, spaces = build(), make_spaces()
    other = model.config.build(dataclasses.replace(spaces, action_dim=spaces.action_dim + 1)).state_dict()
    differ = [name for name, tensor in model.state_dict().items() if tensor.shape != other[name].shape]
    assert differ == ["body.from_action.weight"]


def test_a_config_with_impossible_values_is_refused(build: Build, debug_run: Build):
    config = build().config
    sizes = dict.fromkeys(("patch", "code", "depth", "blocks", "drawing", "step"), 0)
    for field, value in {**sizes, "kernels": (4,), "branches": (4, 4)}.items():
        with pytest.raises(ValueError, match=f"^{field} "):
            dataclasses.replace(config, **{field: value})
    with pytest.raises(ConfigError, match="world_model.kernels: must be odd numbers"):
        debug_run("none", "pixels", "--world-model.kernels", "[2]")


# ------------------------------------------------------------------------------------------------------------ learning


def board(place: Tensor, goal: int = 3) -> Tensor:
    """A white piece on a row of 4 cells of a board of 3 x 4, the goal red: uint8 ``[*B, 12, 16, 3]``."""
    cells = torch.zeros(*place.shape, 3, 4, 3, dtype=torch.uint8)
    cells[..., 0, :, :] = cells[..., 2, :, :] = 90
    cells[..., 1, goal, 0] = 200
    piece = F.one_hot(place, 4).bool()
    cells[..., 1, :, :][piece] = 255
    return cells.repeat_interleave(CELL, -3).repeat_interleave(CELL, -2)


def walks(count: int, length: int, seed: int) -> Sequence:
    """A piece goes left by action 0, right by 1, and stays at the walls; coming to the goal gives 1, leaving it -1."""
    generator = torch.Generator().manual_seed(seed)
    move = torch.randint(2, (count, length), generator=generator)
    places = [torch.randint(4, (count,), generator=generator)]
    for t in range(length - 1):
        places.append((places[-1] + 2 * move[:, t] - 1).clamp(0, 3))
    place = torch.stack(places, 1)
    reward = (place == 3).float().diff(dim=1, prepend=(place[:, :1] == 3).float())
    first = torch.zeros(count, length, dtype=torch.bool)
    first[:, 0] = True
    action = F.one_hot(move, 2).float()
    return Sequence(board(place), action, reward, first, ~first & False, ~first & False, torch.zeros(count, 2))


@pytest.fixture(scope="module")
def taught() -> Pixels:
    """A small model that saw some walks."""
    argv = ["--agent", "none", "--world-model", "pixels", "--task", "toy:reach", "--preset", "debug"]
    # at the sizes of the preset four seeds of six keep 6 to 50 % of the error, and the last digits decide which
    sizes = {"patch": CELL, "code": 8, "depth": 16, "branches": [8], "drawing": 32, "step": 16}
    argv += [word for name, size in sizes.items() for word in (f"--world-model.{name}", str(size))]
    config = parse(argv).config.world_model
    torch.manual_seed(0)
    model = config.build(Spaces((12, 16, 3), 2, True))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for seed in range(250):
        optimizer.zero_grad()
        sum(model.loss(walks(8, 6, seed))[1].terms.values()).backward()
        optimizer.step()
    return model


def test_it_learns_where_a_piece_goes(taught: Pixels):
    with torch.no_grad():
        losses = taught.loss(walks(64, 6, 1000))[1]
    assert losses.metrics["copied"] > 10
    assert losses.terms["image"] < 0.02 * losses.metrics["copied"]


def test_it_draws_the_moved_piece_and_tells_the_actions_apart(taught: Pixels):
    start, first = torch.tensor([1, 1]), torch.ones(2, dtype=torch.bool)
    seen = taught.observe(taught.initial(2), torch.zeros(2, 2), board(start), first)
    drawn = taught.decode(taught.imagine(seen, torch.eye(2))).int()
    assert (drawn - board(torch.tensor([0, 2])).int()).abs().float().mean() < 4  # of 255
    assert (drawn - board(torch.tensor([2, 0])).int()).abs().float().mean() > 10


def test_dreams_of_some_steps_are_those_walks_and_their_rewards(taught: Pixels):
    actions = torch.tensor([[1, 1, 1, 0]])
    start = taught.observe(
        taught.initial(1), torch.zeros(1, 2), board(torch.tensor([1])), torch.ones(1, dtype=torch.bool)
    )
    dream = taught.rollout(start, F.one_hot(actions, 2).float())
    places = torch.tensor([[2, 3, 3, 2]])
    assert (taught.decode(dream).int() - board(places).int()).abs().float().mean() < 8  # of 255
    torch.testing.assert_close(taught.reward(dream), torch.tensor([[0.0, 1.0, 0.0, -1.0]]), atol=0.2, rtol=0.0)
    assert (taught.continues(dream) > 0.9).all()
