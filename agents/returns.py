"""Returns: pure functions of rewards, values and discounts along imagined or recorded steps.

There are two index conventions in the literature, and mixing them is the commonest porting bug. With rewards that
arrive WITH a state (``worldmodels.base``), the value of a state either leaves its own reward out (Dreamer V3) or takes
it in (Dreamer V1 and V2). Both are the recursion below on different slices.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def lambda_return(
    reward: Float[Tensor, "B H"], live: Float[Tensor, "B H"], value: Float[Tensor, "B H"], lam: float | Tensor
) -> Float[Tensor, "B H"]:
    """``R_t = reward_t + live_t ((1 - lam_t) value_t + lam_t R_{t+1})``, where ``R_H = value_{H-1}``.

    ``value[:, t]`` is that of the state AFTER step t; ``live`` is discount times continue probability; ``lam`` a number
    or ``[B, H]``. Dreamer V3, Eq. 7 and V1, Eq. 6; the two wrappers below say which slices.
    """
    lam = torch.as_tensor(lam, dtype=reward.dtype, device=reward.device).expand_as(reward)
    base = reward + live * (1 - lam) * value
    carry = value[:, -1]
    returns = []
    for t in reversed(range(reward.shape[1])):
        carry = base[:, t] + live[:, t] * lam[:, t] * carry
        returns.append(carry)
    return torch.stack(returns[::-1], 1)


def return_after(
    reward: Float[Tensor, "B H1"], live: Float[Tensor, "B H1"], value: Float[Tensor, "B H1"], lam: float | Tensor
) -> Float[Tensor, "B H"]:
    """Dreamer V3: from states 0..H, returns of 0..H-1 that leave out the reward arriving with the state itself."""
    lam = lam[:, 1:] if isinstance(lam, Tensor) else lam
    return lambda_return(reward[:, 1:], live[:, 1:], value[:, 1:], lam)


def return_including(
    reward: Float[Tensor, "B H1"], live: Float[Tensor, "B H1"], value: Float[Tensor, "B H1"], lam: float
) -> Float[Tensor, "B H"]:
    """Dreamer V1 and V2: from states 0..H, returns of 0..H-1 that include the reward arriving with the state."""
    return lambda_return(reward[:, :-1], live[:, :-1], value[:, 1:], lam)
