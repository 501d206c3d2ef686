"""What a world model believes, next to what happened: numbers and images for videos and reports.

Closed loop: the posterior of every step, which has seen its frame. Open loop: after ``context`` frames the model sees
nothing more and is told only the recorded actions. Imagined step k = 1 .. H lands at index ``context - 1 + k``, and
the action that leads there is ``action[context - 2 + k]`` (timeline: ``worldmodels.base``).

Imagination cannot know that an episode was cut and another began, so from the first ``is_first`` after the context on
a sequence is not compared: ``compared`` is False, and its numbers are NaN.

Letters: B sequences, T steps, H = T - context imagined steps, h w c image.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from agents.training.torchvision_guard import ensure_torchvision
from worldmodels.base import Decoding, Latent, Rewarded, Sequence, WorldModel, map_latent

MAX_PSNR = 100.0  # dB, of equal images, whose PSNR is infinite
CURVES = ("psnr", "psnr_copy_last_frame", "ssim", "reward_error")  # fields of Imagined, [B, H]


class Imagined(NamedTuple):
    """Sequences as recorded, reconstructed and imagined. NumPy arrays on the CPU."""

    truth: np.ndarray  # uint8 [B, T, h, w, c]
    reconstruction: np.ndarray  # uint8 [B, T, h, w, c], closed loop
    imagination: np.ndarray  # uint8 [B, T, h, w, c], closed loop during the context, open loop after it
    reward: np.ndarray  # float32 [B, T], the task's
    reward_reconstruction: np.ndarray  # float32 [B, T]
    reward_imagination: np.ndarray  # float32 [B, T], as imagination
    compared: np.ndarray  # bool [B, H]
    psnr: np.ndarray  # float32 [B, H], dB, at most MAX_PSNR
    psnr_copy_last_frame: np.ndarray  # float32 [B, H], dB, of the last context frame repeated
    ssim: np.ndarray  # float32 [B, H]
    reward_error: np.ndarray  # float32 [B, H], absolute, in the task's units
    context: int


class Dream(NamedTuple):
    """What the policy does where nothing is real; index 0 is the latent it starts from. NumPy arrays on the CPU."""

    image: np.ndarray  # uint8 [B, H + 1, h, w, c]
    reward: np.ndarray  # float32 [B, H + 1], on arrival
    continues: np.ndarray  # float32 [B, H + 1], probability that the episode goes on after this step


@torch.no_grad()
def imagine_open_loop(
    model: WorldModel,
    sequence: Sequence,
    context: int,
    generator: Generator | None = None,
    choose: Callable[[Latent], Float[Tensor, "B H A"]] | None = None,
) -> Imagined:
    """Filter ``context`` frames, then imagine the rest of ``sequence`` with its recorded actions.

    Or with those that ``choose`` makes of the last latent seen, such as a plan: then the imagination is what was meant
    to happen, and need not be like the truth. The sequence lies on the model's device; the model needs ``Decoding``
    and ``Rewarded``. ``ValueError`` where it lacks one, or where nothing would be seen or nothing imagined.
    """
    decoding, rewarded = _filmable(model)
    num_steps = sequence.obs.shape[1]
    if not 1 <= context < num_steps:
        raise ValueError(f"context is {context}, but a sequence of {num_steps} steps needs 1 <= context < {num_steps}")
    posterior = model.filter(sequence, generator)
    start = map_latent(lambda x: x[:, context - 1], posterior)
    actions = sequence.action[:, context - 1 : -1] if choose is None else choose(start)
    prior = model.rollout(start, actions, generator)
    film, told = decoding.decode(posterior), rewarded.reward(posterior)
    imagination = torch.cat((film[:, :context], decoding.decode(prior)), dim=1)
    reward = torch.cat((told[:, :context], rewarded.reward(prior)), dim=1)

    compared = sequence.is_first[:, context:].cumsum(1) == 0
    truth, imagined = sequence.obs[:, context:], imagination[:, context:]
    last = sequence.obs[:, context - 1 : context].expand_as(truth)
    error = (reward - sequence.reward)[:, context:].abs()
    shown = (sequence.obs, film, imagination, sequence.reward, told, reward, compared)
    curves = (psnr(imagined, truth), psnr(last, truth), ssim(imagined, truth), error)
    masked = (curve.where(compared, math.nan) for curve in curves)
    return Imagined(*(_to_numpy(x) for x in (*shown, *masked)), context=context)


@torch.no_grad()
def policy_dream(
    model: WorldModel,
    act: Callable[[Latent], Float[Tensor, "B A"]],
    latent: Latent,
    horizon: int,
    generator: Generator | None = None,
) -> Dream:
    """The agent's own dream: ``horizon`` steps from ``latent`` ``[B]`` with the actions that ``act`` chooses.

    ``act`` is a closure over agent, carry and its own noise; ``generator`` is the noise of the world model only.
    ``ValueError`` where the model lacks ``Decoding`` or ``Rewarded`` or the horizon is not positive.
    """
    decoding, rewarded = _filmable(model)
    if horizon < 1:
        raise ValueError(f"a dream of {horizon} steps shows nothing; give a horizon of 1 or more")
    latents = [latent]
    for _ in range(horizon):
        latents.append(model.imagine(latents[-1], act(latents[-1]), generator))
    dream = map_latent(lambda *steps: torch.stack(steps, dim=1), *latents)
    return Dream(*(_to_numpy(x) for x in (decoding.decode(dream), rewarded.reward(dream), rewarded.continues(dream))))


def psnr(image: UInt8[Tensor, "*B h w c"], truth: UInt8[Tensor, "*B h w c"]) -> Float[Tensor, "*B"]:
    """Peak signal-to-noise ratio in dB against the peak 255, at most ``MAX_PSNR``."""
    mse = (image.float() - truth.float()).square().mean((-3, -2, -1))
    return (20 * math.log10(255) - 10 * mse.log10()).clamp(max=MAX_PSNR)


def ssim(image: UInt8[Tensor, "*B h w c"], truth: UInt8[Tensor, "*B h w c"]) -> Float[Tensor, "*B"]:
    """Structural similarity, 1 where equal (Wang et al., 2004: Gaussian window, sigma 1.5; images of 6x6 or more)."""
    ensure_torchvision()
    from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import, used only here

    image_NCHW, truth_NCHW = (x.flatten(0, -4).movedim(-1, 1).float() for x in (image, truth))
    values = structural_similarity_index_measure(image_NCHW, truth_NCHW, reduction="none", data_range=255.0)
    assert isinstance(values, Tensor), type(values)
    return values.reshape(image.shape[:-3])


def open_loop_metrics(imagined: Imagined, env_steps: int) -> dict[str, Any]:
    """What the JSON beside a video says: lists of one number per imagined step, the mean of the compared sequences.

    NaN where no sequence is left to compare. ``env_steps`` is the age of the model.
    """
    return {
        "env_steps": env_steps,
        "context": imagined.context,
        "horizon": imagined.compared.shape[1],
        "sequences": imagined.compared.shape[0],
        "compared": imagined.compared.sum(0).tolist(),
        **{name: mean_compared(getattr(imagined, name), imagined.compared, axis=0).tolist() for name in CURVES},
    }


def headline(imagined: Imagined) -> dict[str, float]:
    """For the log: ``imagined/psnr`` and the like, means of everything compared."""
    return {f"imagined/{name}": float(mean_compared(getattr(imagined, name), imagined.compared)) for name in CURVES}


def mean_compared(values: np.ndarray, compared: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The mean of ``values`` where ``compared``, NaN where there are none."""
    count = compared.sum(axis)
    total = np.where(compared, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _filmable(model: WorldModel) -> tuple[Decoding, Rewarded]:
    """The model as the capabilities that a film needs."""
    if isinstance(model, Decoding) and isinstance(model, Rewarded):
        return model, model
    lacks = " and ".join(c.__name__ for c in (Decoding, Rewarded) if not isinstance(model, c))
    raise ValueError(f"{type(model).__name__} cannot be filmed, it lacks {lacks}; choose a world model that has it")


def _to_numpy(x: Tensor) -> np.ndarray:
    return (x.float() if x.is_floating_point() else x).cpu().numpy()
