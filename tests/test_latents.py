"""The stochastic latents: samples, divergences and gradients against closed forms and torch.distributions."""

import math

import pytest
import torch
from torch import distributions as td

from worldmodels.latents import Categorical, Gaussian

GAUSSIAN = Gaussian(type="gaussian", variables=6, min_std=0.1)


def categorical(variables: int = 5, classes: int = 4, unimix: float = 0.01) -> Categorical:
    return Categorical(type="categorical", variables=variables, classes=classes, unimix=unimix)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_variable(latent: Categorical, flat: torch.Tensor) -> torch.Tensor:
    """[*B, variables, classes] from the flat, class-major layout."""
    return flat.unflatten(-1, (latent.classes, latent.variables)).transpose(-1, -2)


def reference(latent: Categorical | Gaussian, stats: torch.Tensor) -> td.Distribution:
    if isinstance(latent, Gaussian):
        mean, std = stats.chunk(2, -1)
        return td.Independent(td.Normal(mean, torch.nn.functional.softplus(std) + latent.min_std), 1)
    probs = by_variable(latent, stats).softmax(-1) * (1 - latent.unimix) + latent.unimix / latent.classes
    return td.Independent(td.OneHotCategorical(probs=probs), 1)


LATENTS = [categorical(), categorical(unimix=0.0), GAUSSIAN]


@pytest.mark.parametrize("latent", LATENTS, ids=str)
def test_kl_and_entropy_agree_with_torch(latent: Categorical | Gaussian):
    p, q = torch.randn(2, 3, 7, latent.stats_size, generator=generator())
    torch.testing.assert_close(latent.kl(p, q), td.kl_divergence(reference(latent, p), reference(latent, q)))
    torch.testing.assert_close(latent.entropy(p), reference(latent, p).entropy())
    torch.testing.assert_close(latent.kl(p, p), torch.zeros(3, 7))


def test_kl_golden_value():
    """KL([.5, .5] || [.9, .1]) = 0.5108256 nats."""
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    assert categorical(1, 2, 0.0).kl(p, q).item() == pytest.approx(0.5108256)


@pytest.mark.parametrize("latent", LATENTS, ids=str)
def test_kl_gradients_have_a_side_each(latent: Categorical | Gaussian):
    """What dyn and rep add up to is the plain KL; sides keep their gradients apart."""
    p, q = torch.randn(2, 4, latent.stats_size, generator=generator()).unbind()
    p.requires_grad_(), q.requires_grad_()
    plain = torch.autograd.grad(latent.kl(p, q).sum(), (p, q))
    (dyn,) = torch.autograd.grad(latent.kl(p.detach(), q).sum(), q)
    (rep,) = torch.autograd.grad(latent.kl(p, q.detach()).sum(), p)
    torch.testing.assert_close(dyn, plain[1])
    torch.testing.assert_close(rep, plain[0])


def test_categorical_samples_carry_the_gradient_of_their_probabilities():
    latent = categorical()
    stats = torch.randn(8, latent.stats_size, generator=generator(), requires_grad=True)
    weight = torch.randn(8, latent.size, generator=generator(1))
    sample = latent.sample(stats, generator())
    probs = reference(latent, stats).mean.transpose(-1, -2).flatten(-2)
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(by_variable(latent, sample).sum(-1), torch.ones(8, 5))
    got, expected = (torch.autograd.grad((x * weight).sum(), stats, retain_graph=True)[0] for x in (sample, probs))
    torch.testing.assert_close(got, expected)


def test_categorical_samples_come_with_their_probabilities():
    latent = categorical(3, 4)
    stats = torch.randn(latent.stats_size, generator=generator())
    sample = latent.sample(stats.expand(100_000, -1), generator())
    probs = reference(latent, stats).mean.transpose(-1, -2).flatten()
    assert ((sample.mean(0) - probs).abs() <= 5 * (probs * (1 - probs) / 100_000).sqrt()).all()


def test_gaussian_samples_are_reparameterised():
    stats = torch.randn(4, GAUSSIAN.stats_size, generator=generator(), requires_grad=True)
    mean, std = stats.chunk(2, -1)
    noise = torch.randn(4, 6, generator=generator(3))
    expected = mean + (torch.nn.functional.softplus(std) + 0.1) * noise
    sample = GAUSSIAN.sample(stats, generator(3))
    torch.testing.assert_close(sample, expected)
    got, wanted = (torch.autograd.grad(x.sum(), stats, retain_graph=True)[0] for x in (sample, expected))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("latent", [categorical(), categorical(2, 256), GAUSSIAN], ids=str)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5)])
def test_packing_is_exact(latent: Categorical | Gaussian, shape: tuple[int, ...]):
    sample = latent.sample(torch.randn(*shape, latent.stats_size, generator=generator()), generator())
    packed = latent.pack(sample)
    assert packed.dtype == torch.uint8 and packed.shape == (*shape, latent.packed_bytes)
    assert torch.equal(latent.unpack(packed), sample)


@pytest.mark.parametrize("latent", LATENTS, ids=str)
def test_low_precision_statistics_are_used_in_float32(latent: Categorical | Gaussian):
    stats = torch.randn(3, latent.stats_size, dtype=torch.bfloat16)
    assert latent.sample(stats, generator()).dtype == torch.float32
    assert latent.kl(stats, stats).dtype == latent.entropy(stats).dtype == torch.float32


def test_entropy_of_a_uniform_categorical_is_log_classes():
    latent = categorical()
    assert latent.entropy(torch.zeros(latent.stats_size)).item() == pytest.approx(5 * math.log(4))
