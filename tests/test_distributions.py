"""Distributions against closed forms, torch.distributions and numerical integration."""

import math

import pytest
import torch
from torch import distributions as td

from worldmodels import distributions as D


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_symlog_golden_value_and_inverse():
    assert D.symlog(torch.tensor([1000.0, -1000.0])).tolist() == pytest.approx([6.90875478, -6.90875478])
    x = torch.tensor([-1e6, -3.0, -1e-3, 0.0, 0.5, 7.0, 1e6])
    torch.testing.assert_close(D.symexp(D.symlog(x)), x)
    assert torch.equal(D.symlog(-x), -D.symlog(x))


def test_unimix_golden_value_and_floor():
    probs = D.unimix(torch.tensor([1e9, 0.0, 0.0, 0.0]), 0.01).exp()
    torch.testing.assert_close(probs, torch.tensor([0.9925, 0.0025, 0.0025, 0.0025]))
    logits = 30 * torch.randn(50, 7, generator=generator())
    probs = D.unimix(logits, 0.01).exp()
    assert probs.min() >= 0.01 / 7 * (1 - 1e-5)
    torch.testing.assert_close(probs.sum(-1), torch.ones(50))
    torch.testing.assert_close(D.unimix(logits, 0.0), logits.log_softmax(-1))
    torch.testing.assert_close(D.unimix(logits.T, 0.01, dim=0), D.unimix(logits, 0.01).T)


def test_unimix_has_finite_gradient_where_softmax_saturates():
    logits = torch.tensor([1e4, 0.0, -1e4], requires_grad=True)
    D.unimix(logits, 0.01).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("dim", [-1, -2])
def test_one_hot_samples_come_with_their_probabilities(dim: int):
    probs = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.0, 0.01, 0.0, 0.99]])
    probs = (probs if dim == -1 else probs.T).expand(100_000, *(probs if dim == -1 else probs.T).shape)
    sample = D.sample_one_hot(probs, dim, generator())
    assert torch.equal(sample.sum(dim), torch.ones_like(sample.sum(dim)))
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    deviation = (sample.mean(0) - probs[0]).abs()
    assert (deviation <= 5 * (probs[0] * (1 - probs[0]) / 100_000).sqrt()).all()  # five standard errors
    assert (sample.mean(0)[probs[0] == 0] == 0).all()


def test_one_hot_sample_is_whole_where_rounding_leaves_less_than_one():
    probs = torch.full((64, 1000), 1e-4)  # sums to 0.1
    assert torch.equal(D.sample_one_hot(probs, -1, generator()).sum(-1), torch.ones(64))


def test_one_hot_variables_are_independent():
    sample = D.sample_one_hot(torch.full((50_000, 2, 2), 0.5), -1, generator())
    both = (sample[:, 0, 0] * sample[:, 1, 0]).mean()
    assert both == pytest.approx(0.25, abs=0.01)


def test_straight_through_is_the_sample_forward_and_softmax_backward():
    logits = torch.randn(5, 6, generator=generator(), requires_grad=True)
    weight = torch.randn(5, 6, generator=generator(1))
    probs = logits.softmax(-1)
    sample = D.sample_one_hot(probs, -1, generator())
    out = D.straight_through(sample, probs)
    assert torch.equal(out, sample)
    (gradient,) = torch.autograd.grad((out * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weight).sum(), logits)
    torch.testing.assert_close(gradient, expected)


# ------------------------------------------------------------------------------------------------------ two-hot


def test_two_hot_bins_are_symmetric_symexp():
    bins = D._two_hot_bins(torch.device("cpu"))
    assert len(bins) == 255 and (bins.diff() > 0).all()
    assert bins[0].item() == pytest.approx(-485165194.41, rel=1e-6)
    assert bins[126:129].tolist() == pytest.approx([-0.17055772, 0.0, 0.17055772], rel=1e-6)
    assert torch.equal(bins, -bins.flip(0))


@pytest.mark.parametrize(
    ("value", "low", "weights"),
    [
        (0.1, 127, (0.4136882, 0.5863118)),
        (10.0, 142, (0.7869630, 0.2130370)),
        (0.0, 127, (1.0, 0.0)),
        (1e12, 253, (0.0, 1.0)),
        (-1e12, 0, (1.0, 0.0)),
    ],
)
def test_two_hot_golden_weights(value: float, low: int, weights: tuple[float, float]):
    index, above = D.two_hot(torch.tensor([value]))
    assert index.item() == low
    assert (1 - above.item(), above.item()) == pytest.approx(weights, abs=2e-5)


def test_two_hot_decodes_what_it_encodes():
    y = torch.cat([-torch.logspace(-3, 8.68, 50), torch.zeros(1), torch.logspace(-3, 8.68, 50)])
    index, above = D.two_hot(y)
    rows = torch.arange(len(y))
    probs = torch.zeros(len(y), 255)
    probs[rows, index] = 1 - above
    probs[rows, index + 1] += above
    torch.testing.assert_close(D.TwoHot(probs.log().clamp_min(-1e4)).mean, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit", [0.0, 3.7, -1.1])
def test_two_hot_mean_of_equal_logits_is_exactly_zero(logit: float):
    assert torch.equal(D.TwoHot(torch.full((11, 255), logit)).mean, torch.zeros(11))


def test_two_hot_loss_is_the_cross_entropy():
    logits = torch.randn(4, 255, generator=generator(), requires_grad=True)
    y = torch.tensor([0.1, -250.0, 3e6, 1e12])
    index, above = D.two_hot(y)
    target = torch.zeros(4, 255)
    target[torch.arange(4), index] = 1 - above
    target[torch.arange(4), index + 1] = above
    loss = D.TwoHot(logits).loss(y)
    torch.testing.assert_close(loss, -(target * logits.log_softmax(-1)).sum(-1))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(-1) - target)


def test_two_hot_losses_of_one_prediction_share_no_more_than_their_logits():
    logits = torch.randn(6, 255, generator=generator(), requires_grad=True)
    targets = torch.tensor([0.1, 2.0, -5.0, 0.0, 30.0, -1.0]), torch.tensor([3.0, 2.1, 1e5, 0.0, 0.3, -1e-3])
    head = D.TwoHot(logits)
    with torch.no_grad():
        head.loss(targets[0])  # who asks first without a gradient takes it from nobody
    (together,) = torch.autograd.grad((head.loss(targets[0]) + 0.5 * head.loss(targets[1])).sum(), logits)
    apart = [torch.autograd.grad(D.TwoHot(logits).loss(y).sum(), logits)[0] for y in targets]
    torch.testing.assert_close(together, apart[0] + 0.5 * apart[1])


def test_two_hot_of_low_precision_logits_is_computed_in_float32():
    head = D.TwoHot(torch.zeros(3, 255, dtype=torch.bfloat16))
    assert head.mean.dtype == torch.float32 and head.loss(torch.tensor([1e6, 0.0, -1e6])).isfinite().all()


# ----------------------------------------------------------------------------------------------- other outputs


def test_unit_normal_is_half_the_squared_error():
    head = D.UnitNormal(torch.tensor([[1.0], [4.0]]))
    assert head.mean.tolist() == [1.0, 4.0]
    target = torch.tensor([3.0, 4.5])
    expected = -td.Normal(head.mean, 1.0).log_prob(target) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(head.loss(target), expected)


def test_bernoulli_is_binary_cross_entropy_also_for_soft_targets():
    logit = torch.tensor([[0.3], [-2.0], [50.0]])
    target = torch.tensor([1.0, 0.997, 0.0])
    head = D.Bernoulli(logit)
    torch.testing.assert_close(head.mean, logit.squeeze(-1).sigmoid())
    p = logit.squeeze(-1).double().sigmoid()
    expected = -(target * p.log() + (1 - target) * torch.log1p(-p.clamp_max(1 - 1e-15)))
    torch.testing.assert_close(head.loss(target)[:2], expected[:2].float())
    assert head.loss(target)[2].item() == pytest.approx(50.0)


# --------------------------------------------------------------------------------------------------- policies

RAW = torch.tensor([[0.0, 0.7, -2.0, 0.0, 1.3, -0.8]])  # means, then stds, of three actions


def test_one_hot_policy_agrees_with_torch():
    logits = torch.randn(5, 4, generator=generator())
    policy, reference = D.OneHot(logits, 0.01), td.OneHotCategorical(logits=D.unimix(logits, 0.01))
    action = policy.sample(generator())
    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    assert torch.equal(policy.mode.argmax(-1), logits.argmax(-1)) and torch.equal(policy.mode.sum(-1), torch.ones(5))


def test_bounded_normal_agrees_with_torch():
    policy = D.BoundedNormal(RAW)
    assert policy.std[0, 0].item() == pytest.approx(0.8927, abs=5e-5)
    reference = td.Independent(td.Normal(torch.tanh(RAW[:, :3]), policy.std), 1)
    action = policy.sample(generator())
    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    torch.testing.assert_close(policy.mode, reference.mean)
    extreme = D.BoundedNormal(torch.tensor([[0.0, 0.0, 99.0, -99.0]])).std
    assert extreme[0].tolist() == pytest.approx([1.0, 0.1])


def test_tanh_normal_agrees_with_torch():
    policy = D.TanhNormal(RAW)
    assert policy.std[0, 0].item() == pytest.approx(5.0001)
    torch.testing.assert_close(policy.mean, 5 * torch.tanh(RAW[:, :3] / 5))
    noise = torch.randn(1, 3, generator=generator())
    torch.testing.assert_close(policy.sample(generator()), torch.tanh(policy.mean + policy.std * noise))
    many = D.TanhNormal(RAW.expand(100_000, -1)).sample(generator())
    for quantile in (0.2, 0.5, 0.8):  # beyond, tanh rounds to 1
        z = td.Normal(0.0, 1.0).icdf(torch.tensor(quantile))
        expected = torch.tanh(policy.mean + policy.std * z)[0]
        below = (many <= expected).float().mean(0)
        torch.testing.assert_close(below, torch.full((3,), quantile), atol=0.006, rtol=0)


def grid(size: int = 20_001) -> torch.Tensor:
    return torch.linspace(-1, 1, size)


@pytest.mark.parametrize("raw", [(0.0, 0.0), (0.7, 1.3), (-3.0, -0.8), (3.0, 4.0), (1.0, -6.0)])
def test_truncated_normal_integrates_to_one_with_its_entropy(raw: tuple[float, float], double: None):
    policy = D.TruncatedNormal(torch.tensor([raw]))
    x = grid()
    log_prob = policy.log_prob(x[:, None])
    density = log_prob.exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-6)
    assert policy.entropy().item() == pytest.approx(-torch.trapezoid(density * log_prob, x).item(), abs=1e-6)


def test_truncated_normal_agrees_with_torch_inside():
    policy = D.TruncatedNormal(RAW)
    assert policy.std[0, 0].item() == pytest.approx(1.1)
    normal = td.Normal(torch.tanh(RAW[:, :3]), policy.std)
    ones = torch.ones(1, 3)
    mass = normal.cdf(ones) - normal.cdf(-ones)
    action = torch.tensor([[0.2, -0.9, 0.5]])
    torch.testing.assert_close(policy.log_prob(action), (normal.log_prob(action) - mass.log()).sum(-1))


@pytest.mark.parametrize("raw", [(0.0, 0.0), (3.0, -2.0), (-1.0, 3.0)])
def test_truncated_normal_samples_have_its_distribution(raw: tuple[float, float]):
    policy = D.TruncatedNormal(torch.tensor([raw]).expand(100_000, -1))
    sample = policy.sample(generator())[:, 0]
    assert sample.abs().max() < 1
    x = grid(4001)
    density = D.TruncatedNormal(torch.tensor([raw])).log_prob(x[:, None]).exp()
    cdf = torch.cumulative_trapezoid(density, x)
    for at in (400, 1500, 2000, 2500, 3600):
        assert (sample <= x[at + 1]).float().mean().item() == pytest.approx(cdf[at].item(), abs=0.007)


@pytest.mark.parametrize("policy", [D.BoundedNormal, D.TanhNormal, D.TruncatedNormal])
def test_samples_are_reparameterised(policy: type, double: None):
    raw = torch.tensor([[0.3, -0.6, 0.2, -1.1]], requires_grad=True)
    for i in range(2):
        (gradient,) = torch.autograd.grad(policy(raw).sample(generator())[0, i], raw)
        for j in range(4):
            step = torch.zeros(1, 4)
            step[0, j] = 1e-6
            up, down = (policy(raw.detach() + s).sample(generator())[0, i] for s in (step, -step))
            assert gradient[0, j].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-5, abs=1e-8)
            assert (gradient[0, j] != 0) == (j % 2 == i)


@pytest.mark.parametrize("policy", [D.BoundedNormal, D.TanhNormal, D.TruncatedNormal])
def test_extreme_outputs_stay_finite(policy: type):
    raw = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    made = policy(raw)
    action = made.sample(generator())
    total = action.sum()
    if hasattr(made, "log_prob"):
        total = total + made.log_prob(action.detach()).sum() + made.entropy().sum()
    total.backward()
    assert total.isfinite() and raw.grad is not None and raw.grad.isfinite().all()
    assert action.isfinite().all()
