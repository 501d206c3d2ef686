"""What makes latents know about images: golden values, invariances, and who learns from whom."""

import pytest
import torch
from torch import nn

from worldmodels.decoders import (
    Decoder,
    PatchDecoder,
    TransposedDecoder,
    UpsampleDecoder,
    conv_upsampled,
    image_loss,
    sigmoid_image_loss,
    to_image,
    to_pixels,
)
from worldmodels.encoders import conv
from worldmodels.objectives import barlow_loss


def test_barlow_golden_values():
    x = torch.tensor([[1.0, 2], [2, 1], [3, 5], [4, 4]])
    invariance, redundancy = barlow_loss(x, x, 1.0)  # C = [[.75, .53033], [.53033, .75]]
    assert invariance.item() == pytest.approx(0.125)
    assert redundancy.item() == pytest.approx(0.5625)
    assert barlow_loss(x, x, 5e-4)[1].item() == pytest.approx(5e-4 * 0.5625)


def test_barlow_of_decorrelated_vectors_is_nearly_zero():
    """C = I (N - 1) / N, because the deviation is the unbiased one."""
    x, _ = torch.linalg.qr(torch.cat([torch.ones(64, 1), torch.randn(64, 5)], 1).double())
    x = x[:, 1:]  # orthogonal to each other and to a constant
    invariance, redundancy = barlow_loss(x, x, 1.0)
    assert invariance.item() == pytest.approx(5 / 64**2, rel=1e-4)
    assert redundancy.item() == pytest.approx(0, abs=1e-10)


def test_barlow_ignores_scale_and_offset_of_each_dimension():
    k, e = torch.randn(2, 32, 6).unbind()
    scaled = k * torch.tensor([0.1, 1, 5, 30, 2, 0.5]) + torch.arange(6.0)
    for a, b in zip(barlow_loss(k, e, 0.1), barlow_loss(scaled, e, 0.1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_barlow_of_collapsed_features_is_finite():
    e = torch.randn(16, 6)
    k = torch.full((16, 6), 3.0, requires_grad=True)
    invariance, redundancy = barlow_loss(k, e, 5e-4)
    assert invariance.item() == pytest.approx(6.0) and redundancy.item() == pytest.approx(0.0)
    (invariance + redundancy).backward()
    assert k.grad is not None and k.grad.isfinite().all()


def touched(term: torch.Tensor, module: nn.Module) -> bool:
    gradients = torch.autograd.grad(term, list(module.parameters()), allow_unused=True, retain_graph=True)
    return any(g is not None and bool((g != 0).any()) for g in gradients)


def test_redundancy_teaches_the_encoder_and_only_the_probe_teaches_the_decoder(debug_run, make_spaces, make_batch):
    model = debug_run("r2-dreamer", "rssm-r2").world_model.build(make_spaces())
    terms = model.loss(make_batch())[1].terms
    for module in (model.encoder, model.cell, model.posterior, model.objective):
        assert touched(terms["barlow"], module) and not touched(terms["probe"], module)
    assert touched(terms["probe"], model.decoder) and not touched(terms["barlow"], model.decoder)


def test_redundancy_has_no_gradient_through_its_target(debug_run, make_spaces):
    model = debug_run("r2-dreamer", "rssm-r2").world_model.build(make_spaces())
    latent = model.initial(8)
    features, embedding = torch.randn(8, model.feature_dim), torch.randn(8, model.encoder.size, requires_grad=True)
    image = torch.zeros(8, 64, 64, 3, dtype=torch.uint8)
    terms = model.objective(model.decoder, latent, features, embedding, image)
    (gradient,) = torch.autograd.grad(terms["barlow"], embedding, allow_unused=True)
    assert gradient is None


def test_reconstruction_teaches_encoder_and_decoder(debug_run, make_spaces, make_batch):
    model = debug_run("dreamer", "rssm-v3").world_model.build(make_spaces())
    image = model.loss(make_batch())[1].terms["image"]
    assert all(touched(image, module) for module in (model.encoder, model.cell, model.posterior, model.decoder))
    assert not touched(image, model.prior)


def test_image_loss_sums_pixels_in_unit_scale():
    image = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    assert image_loss(torch.full((2, 4, 4, 3), 0.5), image).tolist() == pytest.approx([48 * 0.25] * 2)


def test_images_round_and_clamp():
    drawn = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).reshape(1, 1, 2, 3)
    assert to_image(drawn).flatten().tolist() == [0, 0, 0, 1, 255, 255]
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(to_image(every.double() / 255), every)


def test_the_fused_image_loss_has_the_value_and_gradient_of_the_plain_one():
    logits = 2 * torch.randn(3, 4, 5, 6)
    image = torch.randint(256, (3, 4, 5, 6), dtype=torch.uint8)
    weight = torch.tensor([1.0, -2.0, 0.5])
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    fused, plain = sigmoid_image_loss(a, image), image_loss(torch.sigmoid(b), image)
    torch.testing.assert_close(fused, plain)
    for loss in (fused, plain):
        (loss * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    (loss := sigmoid_image_loss(a, image).mean()).backward(retain_graph=True)
    first = a.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
    loss.backward()  # what was saved is as it was
    torch.testing.assert_close(a.grad - first, first - b.grad)  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize(
    "config",
    [
        UpsampleDecoder(type="upsample", depth=2, mults=(2, 3, 4, 4), units=8, blocks=4),
        TransposedDecoder(type="transposed", depth=2, activation="elu"),
        PatchDecoder(type="patch", patch=4, depth=4, mults=(1, 1, 2)),
    ],
    ids=lambda c: c.type,
)
def test_the_loss_of_a_decoder_is_that_of_the_image_it_draws(config: Decoder):
    decoder = config.build((64, 64, 3), 16, 6)
    deter, stoch = torch.randn(3, 16), torch.randn(3, 6)
    image = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    drawn = decoder(deter, stoch)
    assert drawn.shape == (3, 64, 64, 3) and drawn.dtype == torch.float32
    torch.testing.assert_close(decoder.loss(deter, stoch, image), image_loss(drawn, image))
    gradients = [
        torch.autograd.grad(loss.sum(), list(decoder.parameters()))
        for loss in (decoder.loss(deter, stoch, image), image_loss(decoder(deter, stoch), image))
    ]
    for fused, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)


def test_convolving_an_enlarged_image_without_enlarging_it(double):
    """Values and gradients of nearest x2 and a convolution 5x5, edges included; odd sizes too."""
    layer = conv(3, 4, 5)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 4, 7, requires_grad=True)
    direct = layer(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
    got = to_pixels(conv_upsampled(layer, x), 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, direct)
    gradient, of = torch.randn_like(direct), (x, layer.weight, layer.bias)
    pairs = zip(torch.autograd.grad(got, of, gradient), torch.autograd.grad(direct, of, gradient), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
