"""Lambda-returns in both index conventions against golden values, closed forms and a slow reference."""

import pytest
import torch

from agents.returns import lambda_return, n_step_return, return_after, return_including

REWARD, VALUE = torch.tensor([[9.0, 1, 2, 3]]), torch.tensor([[10.0, 20, 30, 40]])
GOING_ON = torch.full((1, 4), 0.9)


def test_golden_values_where_the_value_includes_its_reward():
    """Dreamer V1 and V2: r = 9, 1, 2; v = 10, 20, 30 and 40 to bootstrap from."""
    returns = return_including(REWARD, GOING_ON, VALUE, 0.95)
    assert returns[0].tolist() == pytest.approx([39.6882, 34.84, 38.0])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [(0.95, [33.274225, 36.695, 39.0]), (0.0, [19, 29, 39]), (1.0, [34.39, 37.1, 39])],
)
def test_golden_values_where_the_value_leaves_its_reward_out(lam: float, expected: list[float]):
    assert return_after(REWARD, GOING_ON, VALUE, lam)[0].tolist() == pytest.approx(expected)


def test_nothing_has_value_beyond_a_terminal_state():
    live = GOING_ON.clone()
    live[0, 2] = 0
    assert return_after(REWARD, live, VALUE, 0.95)[0].tolist() == pytest.approx([3.61, 2, 39])


def test_a_time_limit_bootstraps_from_the_value():
    lam = torch.full((1, 4), 0.95)
    lam[0, 2] = 0
    assert return_after(REWARD, GOING_ON, VALUE, lam)[0].tolist() == pytest.approx([26.695, 29, 39])


def test_lambda_zero_is_one_step_and_lambda_one_is_monte_carlo():
    td = return_including(REWARD, GOING_ON, VALUE, 0.0)[0]
    assert td.tolist() == pytest.approx([9 + 0.9 * 20, 1 + 0.9 * 30, 2 + 0.9 * 40])
    full = return_including(REWARD, GOING_ON, VALUE, 1.0)[0]
    assert full[0].item() == pytest.approx(9 + 0.9 * 1 + 0.9**2 * 2 + 0.9**3 * 40)


def test_agrees_with_the_sum_over_n_step_returns():
    """R_0 = (1 - lam) sum_n lam^(n-1) G_n + lam^(H-1) G_H, with G_n the n-step return."""
    g = torch.Generator().manual_seed(0)
    reward, value, live = (torch.rand(3, 6, generator=g, dtype=torch.float64) for _ in range(3))
    lam, horizon = 0.7, 6
    for b in range(3):
        steps, discount, rewards = [], 1.0, 0.0
        for n in range(horizon):
            rewards += discount * reward[b, n]
            discount = discount * live[b, n]
            steps.append(rewards + discount * value[b, n])
        mixed = (1 - lam) * sum(lam**n * steps[n] for n in range(horizon - 1)) + lam ** (horizon - 1) * steps[-1]
        assert lambda_return(reward, live, value, lam)[b, 0].item() == pytest.approx(mixed.item())


def test_gradient_reaches_rewards_values_and_continues():
    parts = [torch.rand(2, 5, requires_grad=True) for _ in range(3)]
    lambda_return(*parts, 0.9)[:, 0].sum().backward()
    assert all(part.grad is not None and (part.grad != 0).all() for part in parts)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (0, [10, 20, 30, 40, 50]),
        (1, [11, 17, 23, 40, 50]),  # 1 + 0.5 * 20; 2 + 0.5 * 30; 3 + 0.5 * 40; an episode ends; the window does
        (2, [9.5, 13.5, 23, 40, 50]),  # 1 + 0.5 * (2 + 0.5 * 30)
        (9, [7.75, 13.5, 23, 40, 50]),  # 1 + 0.5 * (2 + 0.5 * (3 + 0.5 * 40))
    ],
)
def test_n_real_rewards_and_then_a_value(steps: int, expected: list[float]):
    """r = 9, 1, 2, 3, 4; a time limit at step 3, whose own value is the last that counts."""
    reward, value = torch.tensor([[9.0, 1, 2, 3, 4]]), torch.tensor([[10.0, 20, 30, 40, 50]])
    last = torch.tensor([[False, False, False, True, False]])
    assert n_step_return(reward, torch.full((1, 5), 0.5), last, value, steps)[0].tolist() == expected
    terminal = torch.tensor([[0.5, 0.5, 0.5, 0.0, 0.5]])
    assert n_step_return(reward, terminal, last, value, 9)[0].tolist() == [1 + 0.5 * (2 + 0.5 * 3), 3.5, 3, 40, 50]
