"""The recurrent state-space model: its cells, its KL terms and its free nats."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from worldmodels import encoders
from worldmodels.cells import BlockGRU, BlockGRUConfig, DenseGRUConfig, gru_update
from worldmodels.decoders import image_loss
from worldmodels.encoders import ImageConv, conv, dequantise
from worldmodels.layers import BlockLinear, RMSNorm, RMSNormalise

DETER, BLOCKS, HIDDEN = 32, 8, 6


def block_gru() -> BlockGRU:
    return BlockGRUConfig(type="block_gru", deter=DETER, hidden=HIDDEN, blocks=BLOCKS).build(stoch=10, action=3)


def inputs(cell: nn.Module, size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tanh(torch.randn(size, DETER)), torch.randn(size, 10), cell.embed_action(torch.rand(size, 3))


def test_block_linear_is_a_block_diagonal_matrix():
    layer = BlockLinear(12, 8, 4)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(x), x @ torch.block_diag(*layer.weight) + layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradient_are_those_of_torch(dtype: torch.dtype):
    """In bfloat16 up to one more rounding."""
    norm = RMSNorm(12)
    nn.init.normal_(norm.weight)
    x = (3 * torch.randn(2, 5, 12)).to(dtype).requires_grad_()
    expected = nn.functional.rms_norm(x.float(), (12,), norm.weight, 1e-4).to(dtype)
    gradient = torch.randn(2, 5, 12).to(dtype)
    got = norm(x)
    a, b = (torch.autograd.grad(y, (x, norm.weight), gradient) for y in (got, expected))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    assert got.dtype == dtype and a[0].dtype == dtype
    torch.testing.assert_close((got, *a), (expected, *b), **tolerance)
    with torch.no_grad():  # what acts sees what was learned
        torch.testing.assert_close(norm(x), got, rtol=0, atol=0)


def test_rms_norm_by_finite_differences(double):
    norm = RMSNorm(6)
    nn.init.normal_(norm.weight)
    inputs = (torch.randn(4, 6, requires_grad=True), norm.weight, 1e-4)
    assert torch.autograd.gradcheck(RMSNormalise.apply, inputs)


def test_block_linear_refuses_what_its_blocks_do_not_divide():
    with pytest.raises(ValueError, match="8 blocks"):
        BlockLinear(12, 16, 8)


def test_gru_update_golden_value():
    """u = sigmoid(-1), candidate = tanh(sigmoid(0) * 1)."""
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    assert gru_update(2 * one, zero, one, zero).item() == pytest.approx(0.7310586 * 2 + 0.2689414 * 0.4621172)


def test_gru_update_is_the_same_with_and_without_a_gradient():
    """Its tanh is torch's with one, and made of a sigmoid without: the same to float32's last digits."""
    parts = [8 * torch.randn(64, 64) for _ in range(4)]
    learned = gru_update(parts[0], *(part.clone().requires_grad_() for part in parts[1:]))
    torch.testing.assert_close(gru_update(*parts), learned.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("low_precision", [False, True])
def test_bytes_are_convolved_as_pixels_between_minus_a_half_and_a_half(low_precision: bool):
    """In bfloat16 the weights are rounded and the pixels are not; the edges are padded with the middle grey."""
    layer = conv(3, 5, 3, kind=ImageConv)
    nn.init.normal_(layer.bias)  # pyright: ignore[reportArgumentType]
    image = torch.randint(256, (2, 8, 6, 3), dtype=torch.uint8)
    weight = (layer.weight / 255).bfloat16().float() * 255 if low_precision else layer.weight
    expected = nn.functional.conv2d((image / 255 - 0.5).permute(0, 3, 1, 2), weight, layer.bias, padding=1)
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if low_precision else {"rtol": 1e-5, "atol": 1e-5}
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        torch.testing.assert_close(layer(image).float(), expected, **tolerance)
        torch.testing.assert_close(layer(image / 255).float(), expected, rtol=2e-2, atol=2e-2)


def test_block_gru_first_layer_is_the_papers_one():
    """Two layers here; in the paper one block-diagonal layer on [deter block, x0, x1, x2] for each block."""
    cell = block_gru()
    deter, stoch, action = inputs(cell)
    seen = {}
    cell.norm.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    cell(deter, stoch, action)
    shared = torch.cat([cell.act(cell.deter_norm(cell.embed_deter(deter))),
                        cell.act(cell.stoch_norm(cell.embed_stoch(stoch))), action], -1)  # fmt: skip
    by_block = torch.cat([deter.unflatten(-1, (BLOCKS, -1)), shared.unsqueeze(1).expand(-1, BLOCKS, -1)], -1)
    dense = cell.from_shared.weight.T.unflatten(-1, (BLOCKS, -1)).transpose(0, 1)  # [blocks, 3 hidden, outputs]
    weight = torch.cat([cell.from_deter.weight, dense], 1)
    expected = torch.einsum("nbi,bio->nbo", by_block, weight).flatten(1) + cell.from_deter.bias
    torch.testing.assert_close(seen["x"], expected)


@pytest.mark.parametrize("block", [0, 3, 7])
def test_a_block_of_memory_drives_only_its_own_gates(block: int):
    """Given what all blocks share. The norm over all of them is taken out: its scale is shared too."""
    cell = block_gru()
    cell.norm = nn.Identity()
    nn.init.zeros_(cell.embed_deter.weight)
    deter, stoch, action = inputs(cell)
    mine = torch.zeros(DETER, dtype=torch.bool)
    mine[block * DETER // BLOCKS : (block + 1) * DETER // BLOCKS] = True
    gates = {}
    by_block = cell.gates.by_block

    def watched(x: Tensor, added: Tensor) -> Tensor:
        out = by_block(x, added)
        gates["x"] = out.transpose(0, 1)
        return out

    cell.gates.by_block = watched
    before = cell(deter, stoch, action), gates["x"]
    after = cell(deter + mine * 0.5, stoch, action), gates["x"]
    assert torch.equal(before[0][:, ~mine], after[0][:, ~mine])
    changed = (before[1] != after[1]).any(-1).any(0)
    assert changed.tolist() == [i == block for i in range(BLOCKS)]


def test_every_gate_of_a_block_is_its_own():
    """The three gates of block i are three slices of block i of the layer that makes them."""
    cell = block_gru()
    nn.init.zeros_(cell.gates.weight)
    deter, stoch, action = inputs(cell)
    gate = torch.full((BLOCKS, 3, DETER // BLOCKS), 0.0)
    gate[:, 2] = -99.0  # never update
    gate[5, 2] = 99.0  # but block 5, always
    gate[:, 0], gate[5, 1] = 99.0, 2.0
    cell.gates.bias.data = gate.flatten()
    expected = deter.clone()
    expected[:, 20:24] = torch.tanh(torch.tensor(2.0))
    torch.testing.assert_close(cell(deter, stoch, action), expected)


@pytest.mark.parametrize("kind", ["block_gru", "norm_gru", "gru"])
def test_memory_stays_between_its_past_and_one(kind: str):
    torch.manual_seed(1)
    cell = (
        block_gru()
        if kind == "block_gru"
        else DenseGRUConfig(type=kind, deter=DETER, hidden=HIDDEN, activation="elu").build(stoch=10, action=3)  # pyright: ignore
    )
    for parameter in cell.parameters():
        parameter.data *= 5
    deter, stoch, action = inputs(cell, 200)
    deter = 3 * deter
    new = cell(deter, stoch, action)
    assert (new <= deter.clamp_min(1) + 1e-6).all() and (new >= deter.clamp_max(-1) - 1e-6).all()
    assert (new - deter).abs().max() > 0.1


def test_actions_beyond_one_are_scaled_back_without_losing_direction():
    cell = block_gru()
    a = torch.tensor([[0.5, -7.0, 1.0]])
    torch.testing.assert_close(cell.embed_action(a), cell.embed_action(torch.tensor([[0.5, -1.0, 1.0]])))


# ------------------------------------------------------------------------------------------ KL terms, free nats


@pytest.fixture
def rssm(debug_run, make_spaces):
    """An RSSM by name, with weights large enough for posterior and prior to differ, and these free nats."""

    def build(name: str, free_nats: float):
        torch.manual_seed(0)
        # all 8 bits: what a test encodes itself then has no noise
        config = dataclasses.replace(debug_run("dreamer", name).world_model, free_nats=free_nats, bits=8)
        return config.build(make_spaces())

    return build


def gradients(term: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(term, list(module.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, module.parameters(), strict=True)]


@pytest.mark.parametrize("name", ["rssm-planet", "rssm-v1", "rssm-v2", "rssm-v3"])
def test_kl_balance_gives_each_side_its_share_of_the_plain_kl(name: str, rssm, make_batch):
    """One step, so that the only way into a network is its own side of the KL."""
    model, batch = rssm(name, 0.0), make_batch(length=5)
    batch = type(batch)(*(x[:, 2:3] if x is not None and x.dim() > 1 else x for x in batch[:6]), batch.prev_action)
    terms = model.loss(batch)[1].terms
    scales = model.config.scales
    kl = scales["dyn"] * terms["dyn"] + scales["rep"] * terms["rep"]
    latent = model.filter(batch)
    stats = model.posterior(latent.deter[:, 0], model.posterior.from_obs(model.encoder(batch.obs[:, 0])))
    plain = model.latent.kl(stats, model.prior(latent.deter[:, 0])).mean()
    assert plain > 0
    for module, share in ((model.prior, scales["dyn"]), (model.posterior.output, scales["rep"])):
        for got, whole in zip(gradients(kl, module), gradients(plain, module), strict=True):
            assert whole.abs().max() > 0
            torch.testing.assert_close(got, share * whole)


def test_the_scales_are_those_of_the_papers(debug_run):
    names = ("rssm-planet", "rssm-v1", "rssm-v2", "rssm-v3")
    scales = {name: debug_run("dreamer", name).world_model.scales for name in names}
    assert scales["rssm-planet"] == {"image": 0.5, "dyn": 1.0, "rep": 1.0, "reward": 10.0, "continue": 1.0}
    assert (scales["rssm-v2"]["dyn"], scales["rssm-v2"]["rep"]) == (0.8, 0.2)
    assert (scales["rssm-v3"]["dyn"], scales["rssm-v3"]["rep"]) == (1.0, 0.1)
    assert scales["rssm-v1"]["dyn"] == scales["rssm-v1"]["rep"] == 1.0


@pytest.mark.parametrize("name", ["rssm-planet", "rssm-v1", "rssm-v2", "rssm-v3"])
def test_below_the_free_nats_the_kl_is_constant_and_has_no_gradient(name: str, rssm, make_batch):
    model = rssm(name, 50.0)
    terms = model.loss(make_batch())[1].terms
    for term in ("dyn", "rep"):
        assert terms[term].item() == 50.0
        assert all((g == 0).all() for g in gradients(terms[term], model))


def test_v1_and_v2_floor_the_mean_and_planet_and_v3_each_step(rssm):
    kl = torch.tensor([[0.5, 3.0]])
    assert rssm("rssm-v3", 1.0)._floored(kl).item() == rssm("rssm-planet", 1.0)._floored(kl).item() == 2.0
    assert rssm("rssm-v2", 1.0)._floored(kl).item() == rssm("rssm-v1", 1.0)._floored(kl).item() == 1.75


def test_reward_and_continue_terms_are_those_of_the_heads(rssm, make_batch):
    model, batch = rssm("rssm-v3", 1.0), make_batch()
    nn.init.normal_(model.reward_head.mlp.output.weight)
    latent, losses = model.loss(batch)
    features = model.features(latent)
    torch.testing.assert_close(losses.terms["reward"], model.reward_head(features).loss(batch.reward).mean())
    p = model.continues(latent)
    log_likelihood = torch.where(batch.is_terminal, (1 - p).log(), p.log())  # a time limit is no end
    torch.testing.assert_close(losses.terms["continue"], -log_likelihood.mean())


def test_with_zero_output_weights_the_first_reward_prediction_is_exactly_zero(rssm, make_batch):
    model = rssm("rssm-v3", 1.0)
    reward = model.reward(model.filter(make_batch()))
    assert torch.equal(reward, torch.zeros_like(reward))


def test_prior_and_posterior_share_the_memory(rssm, make_batch):
    model, batch = rssm("rssm-v3", 1.0), make_batch(size=2)
    latent = model.filter(batch)
    before = type(latent)(*(part[:, 4] for part in latent))
    seen = model.observe(before, batch.action[:, 4], batch.obs[:, 5], torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(model.imagine(before, batch.action[:, 4]).deter, seen.deter)


def test_a_posterior_that_sees_nothing_is_the_prior_and_open_loop_then_follows_it(
    rssm, make_batch, constant_noise: None
):
    """The embedding is disconnected and the rest of the posterior made the prior's network."""
    model, batch = rssm("rssm-planet", 0.0), make_batch(size=2)
    with torch.no_grad():
        model.posterior.from_obs.weight.zero_()
        for own, other in (
            (model.posterior.from_deter, model.prior.layers[0]),
            (model.posterior.output, model.prior.output),
        ):
            own.weight.copy_(other.weight), own.bias.copy_(other.bias)
    latent, losses = model.loss(batch)
    assert losses.metrics["kl"].item() == pytest.approx(0, abs=1e-6)
    begins = 5  # after the last beginning of an episode
    start = type(latent)(*(part[:, begins] for part in latent))
    dreamed = model.rollout(start, batch.action[:, begins:-1])
    for part, seen in zip(dreamed, latent, strict=True):
        torch.testing.assert_close(part, seen[:, begins + 1 :], rtol=0, atol=1e-6)
    flipped = model.filter(batch._replace(obs=255 - batch.obs))
    torch.testing.assert_close(model.features(flipped), model.features(latent))


# ------------------------------------------------------------------------------------------ images of fewer bits


def every_level(*leading: int) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(*leading, 16, 16, 3)


@pytest.mark.parametrize("bits", [1, 5, 7])
def test_images_of_fewer_bits_come_back_exactly_and_stay_in_their_range(bits: int):
    quantised = every_level(40) >> (8 - bits) << (8 - bits)
    for image in (quantised, every_level(40)):
        noisy = dequantise(image, bits, torch.Generator().manual_seed(3))
        assert noisy.dtype == torch.float32 and ((noisy - 0.5 >= -0.5) & (noisy - 0.5 < 0.5)).all()
        assert torch.equal((noisy * 2**bits).floor() * 2 ** (8 - bits), quantised.float())


def test_noise_just_below_a_level_stays_below_it(monkeypatch):
    monkeypatch.setattr(encoders, "random_uniform", lambda shape, *_: torch.full(shape, 1 - 2**-24))
    assert torch.equal((dequantise(every_level(1), 5, None) * 32).floor() * 8, (every_level(1) >> 3 << 3).float())


def test_the_noise_is_uniform_within_a_level_and_new_each_time():
    image = torch.full((100, 16, 16, 3), 80, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    first, second = (dequantise(image, 5, generator) * 32 - 10 for _ in range(2))
    assert not torch.equal(first, second)
    for quantile in (0.1, 0.5, 0.9):
        assert (first < quantile).float().mean().item() == pytest.approx(quantile, abs=0.01)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.02


def test_eight_bits_are_the_image_itself():
    image = every_level(2)
    assert dequantise(image, 8, None) is image


@pytest.mark.parametrize("name", ["rssm-planet", "rssm-v3"])  # a decoder with and one without the fused loss
def test_what_is_drawn_is_what_was_encoded_noise_and_all(name: str, debug_run, make_spaces, make_batch):
    config = dataclasses.replace(debug_run("dreamer", name).world_model, bits=5)
    model, batch, seen = config.build(make_spaces()), make_batch(), {}
    model.encoder.register_forward_pre_hook(lambda _, args: seen.update(image=args[0]))
    latent, losses = model.loss(batch)
    flat = [part.flatten(0, 1) for part in latent]
    assert seen["image"].dtype == torch.float32
    torch.testing.assert_close(losses.terms["image"], image_loss(model.decoder(*flat), seen["image"]).mean())
    first = seen["image"]
    model.loss(batch)
    assert not torch.equal(first, seen["image"])


def test_a_config_with_impossible_values_is_refused(debug_run):
    config = debug_run("dreamer", "rssm-planet").world_model
    for field, value in (("bits", 0), ("bits", 9), ("overshooting", -1)):
        with pytest.raises(ValueError, match=f"^{field} "):
            dataclasses.replace(config, **{field: value})


@pytest.mark.parametrize(("rows", "exact"), [(8, True), (512, False)])
def test_steps_of_few_rows_are_float32_on_a_cpu(rows: int, exact: bool, debug_run, make_spaces):
    """In bfloat16 casting would take longer than it saves; many rows are worth it."""
    model = debug_run("dreamer").world_model.build(make_spaces())
    start = model.initial(rows)
    actions = torch.rand(rows, 3, model.spaces.action_dim, generator=torch.Generator().manual_seed(0))
    expected = model.rollout(start, actions, torch.Generator().manual_seed(1)).deter
    with torch.autocast("cpu", torch.bfloat16):
        got = model.rollout(start, actions, torch.Generator().manual_seed(1)).deter
    assert got.dtype == torch.float32 and torch.equal(got, expected) == exact
    torch.testing.assert_close(got.mean(), expected.mean(), rtol=0.02, atol=1e-3)
