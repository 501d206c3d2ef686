"""Returns: pure functions of rewards, values and discounts along imagined or recorded steps.

There are two index conventions in the literature, and mixing them is the commonest porting bug. With rewards that
arrive WITH a state (``worldmodels.base``), the value of a state either leaves its own reward out (Dreamer V3) or takes
it in (Dreamer V1 and V2). Both are the recursion below on different slices.
"""

import torch
from jaxtyping import Bool, Float
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


def n_step_return(
    reward: Float[Tensor, "B T"],
    live: Float[Tensor, "B T"],
    is_last: Bool[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    steps: int,
) -> Float[Tensor, "B T"]:
    """``z_t = sum_{i<n} (prod_{j<=i} live_{t+j}) reward_{t+i+1} + (prod_{j<=n} live_{t+j}) value_{t+n}``, live_t := 1.

    n is ``steps``, or as many as are left before the episode or the window ends: the return of the last step is its
    value. ``live`` is discount times whether there is value in the step itself. MuZero (arXiv 1911.08265), z_t.
    """
    returns = value
    for _ in range(steps):
        ahead = reward[:, 1:] + live[:, 1:] * returns[:, 1:]
        returns = torch.cat([torch.where(is_last[:, :-1], value[:, :-1], ahead), value[:, -1:]], 1)
    return returns


def expansions(
    reward: Float[Tensor, "I *N"], live: Float[Tensor, "I *N"], value: Float[Tensor, "I *N"]
) -> Float[Tensor, "I *N"]:
    """Value expansion of every horizon at once: candidate i takes the rewards up to step i, then the value after it.

    ``T_i = sum_{j<=i} (prod_{k<j} live_k) reward_j + (prod_{k<=i} live_k) value_i``. Step 0 is the real one, T_0 the TD
    target; ``live`` is discount times continue probability; ``value[i]`` is that of the state after step i. STEVE
    (Buckman et al. 2018, arXiv 1807.01675, Eq. 4); the last candidate is MVE's (1803.00101, Eq. 3.1).
    """
    survived = torch.cumprod(live, 0)
    reach = torch.cat([torch.ones_like(live[:1]), survived[:-1]])
    return torch.cumsum(reach * reward, 0) + survived * value


def expanded(
    candidates: Float[Tensor, "I S *N"], kind: str, lam: float
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "I *N"]]:
    """One target of all candidates, the means over S samples weighted by ``horizon_weights``; and the weights.

    Which method it is, is ``kind``: ``last`` is MVE, ``inverse_variance`` STEVE, the others are STEVE's baselines.
    """
    weight = horizon_weights(candidates, kind, lam)
    return (weight * candidates.mean(1)).sum(0), weight


def horizon_weights(candidates: Float[Tensor, "I S *N"], kind: str, lam: float) -> Float[Tensor, "I *N"]:
    """How much each horizon counts; the weights sum to 1.

    ``inverse_variance``: of the population variance over the S samples, plus 1e-8 (STEVE, Eq. 5 and its code).
    ``mean``: all alike. ``last``: the longest (MVE). ``lambda``: (1 - lam) lam^i, the rest to the last (TD(lambda)).
    """
    count, like = len(candidates), candidates[:, 0]
    if kind == "inverse_variance":
        precision = 1 / (candidates.var(1, correction=0) + 1e-8)
        return precision / precision.sum(0)
    steps = torch.arange(count, device=candidates.device, dtype=like.dtype)
    if kind == "lambda":
        fixed = (1 - lam) * lam**steps
        fixed[-1] = lam ** (count - 1)
    else:
        fixed = {"mean": torch.full_like(steps, 1 / count), "last": (steps == count - 1).to(like)}[kind]
    return fixed.view(-1, *[1] * (like.ndim - 1)).expand_as(like)
