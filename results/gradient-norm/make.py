"""Measures and draws how MAAC's gradient at the first action depends on the horizon: a minute, one thread.

``python results/gradient-norm/make.py categorical=RUN gaussian=RUN`` writes ``numbers.json`` beside itself and
``docs/images/gradient-norm.png``; without runs it draws what ``numbers.json`` holds. The runs are of ``maac``, see
``results/README.md``. matplotlib is needed for this picture alone and is not one of the project's dependencies:
``pip install matplotlib``.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from agents.base import frozen
from agents.maac import MAAC
from agents.pretrained import load_trained
from agents.soft import replayed_transitions
from agents.training.evaluate import Stage, evaluate_agent, windows
from worldmodels.base import cut, map_latent

ROOT = Path(__file__).parents[2]
NUMBERS = Path(__file__).parent / "numbers.json"
HORIZONS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50)
DISCOUNTS = (0.9, 1.0)  # the preset toy's, and none
CLIP = 2.0
EPISODES, SEEN, STATES, NOISES = 8, 20, 20, 4  # steps seen before the first state; states of an episode; draws of noise


def measure(run: str) -> dict[str, Any]:
    """Norms of a state's gradient at the first action: root mean square and greatest, over states and draws."""
    card, model, agent = load_trained(run)
    assert isinstance(agent, MAAC)
    played = evaluate_agent(Stage(card.task, card.env), model, agent, EPISODES, record=EPISODES)
    sequence = windows(played.recordings, model.spaces, SEEN + STATES + 1)
    with torch.no_grad():
        latent = model.filter(sequence, torch.Generator().manual_seed(0))
    latent, sequence = map_latent(lambda part: part[:, SEEN:], latent), cut(sequence, slice(SEEN, None))
    real = replayed_transitions(model.features(latent), sequence)
    original, actions = agent.decide, []

    def decide(features: Tensor) -> tuple[Tensor, Tensor]:
        action, entropy = original(features)
        actions.append(action)
        return action, entropy

    agent.decide = decide

    def at_first_action(horizon: int, discount: float, clip: float, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        agent.config = dataclasses.replace(agent.config, horizon=horizon, discount=discount, step_clip=clip)
        actions.clear()
        torch.manual_seed(seed)
        with frozen(model, agent.critics):
            objective, _, watched = agent.objective(model, latent, real)
        (gradient,) = torch.autograd.grad(objective.mean(), actions[0])
        return len(gradient) * gradient.norm(dim=1), watched

    found: dict[str, Any] = {"env_steps": card.training.env_steps, "updates": card.training.updates}
    found["mean return of the episodes"] = round(sum(played.returns) / EPISODES, 2)
    for discount in DISCOUNTS:
        for clip in (0.0, CLIP):
            rows, watched = [], {}
            for horizon in HORIZONS:
                each = [at_first_action(horizon, discount, clip, seed) for seed in range(NOISES)]
                norms, watched = torch.cat([norm for norm, _ in each]), each[0][1]
                rows.append([round(float(x), 5) for x in (norms.square().mean().sqrt(), norms.max())])
            steps = [round(norm.item(), 5) for name, norm in watched.items() if name.startswith("gradient_norm/")]
            found[f"discount {discount}, clip {clip}"] = {
                "root mean square": [row[0] for row in rows],
                "greatest": [row[1] for row in rows],
                f"gradient_norm/step_1 .. step_{HORIZONS[-1]}, first draw": steps,
            }
    return found


def draw(axis: Any, numbers: dict[str, Any], discount: float) -> None:
    for name, colour in (("categorical", "#c0392b"), ("gaussian", "#2c6fbb")):
        for clip, style in ((0.0, "o-"), (CLIP, "s--")):
            found = numbers[name][f"discount {discount}, clip {clip}"]
            label = f"{name}, {f'clip at {clip:g} for each step' if clip else 'no clip'}"
            axis.plot(HORIZONS, found["root mean square"], style, color=colour, label=label, markersize=4)
            if not clip:
                axis.plot(
                    HORIZONS, found["greatest"], ":", color=colour, label=f"{name}, no clip, greatest of all states"
                )
    axis.set_yscale("log")
    axis.set(title=f"discount {discount:g}", xlabel="horizon H", ylim=(0.1, 20))
    axis.grid(alpha=0.3, which="both")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if runs := dict(argument.split("=", 1) for argument in sys.argv[1:]):
        numbers = {"horizons": HORIZONS, "clip": CLIP, "states": EPISODES * STATES, "draws of noise": NOISES}
        numbers |= {name: measure(run) for name, run in runs.items()}
        NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, discount in zip(axes, DISCOUNTS, strict=True):
        draw(axis, numbers, discount)
    axes[0].set_ylabel("norm of a state's gradient at the first action")
    axes[0].legend(fontsize=8)
    figure.savefig(ROOT / "docs/images/gradient-norm.png", dpi=100, metadata={"Software": None})
