"""Simulations a second of tree search on an RSSM of ``cpu,toy`` size with an untrained policy and value, one thread.

    python results/search-speed/measure.py OUT.json

Numbers of environments take turns in one process; ``process`` seconds are those of the processor, which a busy machine
does not stretch as it does those of the clock. ``tree`` is the share that is not the model.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from agents.dreamer import Dreamer
from agents.planning import PUCT, Gumbel, Recurrent, Root, Sampled, Step, TreeSearch, by_index, draw_actions
from agents.training import cli
from agents.training.run import build_networks
from worldmodels.base import Spaces
from worldmodels.rssm import RSSM, RSSMLatent

ENVS, TURNS, DISCOUNT, K = (1, 8, 64), 15, 0.997, 16


def searches(simulations: int) -> dict[str, TreeSearch]:
    size: dict[str, Any] = {"simulations": simulations, "max_depth": simulations}
    puct = PUCT(
        type="puct", **size, c1=1.25, c2=19652, stretch="tree", least_range=0.01, noise=0.25, noise_share=0.25,
        temperature=1.0,
    )  # fmt: skip
    gumbel = Gumbel(
        type="gumbel", **size, considered=16, c_visit=50, c_scale=0.1, stretch=True, least_range=1e-8
    )  # fmt: skip
    return {"puct": puct, "gumbel": gumbel}


def prepare(discrete: bool, envs: int) -> tuple[Callable[[], Root], Recurrent]:
    """A root after one image, and the model's step; 4 actions, or K drawn ones of length 2."""
    config = cli.parse(["--agent", "dreamer", "--task", "toy:reach", "--preset", "cpu,toy"]).config
    spaces = Spaces((32, 32, 3), 4 if discrete else 2, discrete)
    model, agent = build_networks(config, spaces)
    assert isinstance(model, RSSM) and isinstance(agent, Dreamer)
    obs = torch.randint(256, (envs, 32, 32, 3), dtype=torch.uint8)
    first = model.observe(
        model.initial(envs), torch.zeros(envs, spaces.action_dim), obs, torch.ones(envs, dtype=torch.bool)
    )

    def heads(latent: RSSMLatent, generator: Generator | None) -> tuple[Any, Tensor, Tensor]:
        features = model.features(latent)
        policy, value = agent.actor(features), agent.critic(features).mean
        if discrete:
            return latent, policy.log_probs, value
        actions, logits = draw_actions(policy.mode, policy.std, K, 0, 1.0, generator)
        return Sampled(latent, actions), logits, value

    def move(latent: RSSMLatent, action: Tensor, generator: Generator | None) -> Step:
        latent = model.imagine(latent, action, generator)
        embedding, logits, value = heads(latent, generator)
        return Step(embedding, model.reward(latent), DISCOUNT * model.continues(latent), logits, value)

    def root() -> Root:
        embedding, logits, value = heads(first, None)
        return Root(logits, value, embedding)

    one_hot = torch.eye(spaces.action_dim)
    return root, (lambda z, index, g: move(z, one_hot[index], g)) if discrete else by_index(move)


@torch.no_grad()
def main(out: Path) -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for discrete in (True, False):
        ready = {envs: prepare(discrete, envs) for envs in ENVS}
        for simulations in (16, 50):
            for name, search in searches(simulations).items():
                found: dict[int, list[tuple[float, float, float]]] = {envs: [] for envs in ENVS}
                for turn in range(TURNS + 1):
                    for envs, (root, recurrent) in ready.items():
                        seconds = one_turn(search, root(), recurrent, Generator().manual_seed(turn))
                        if turn:
                            found[envs].append(seconds)
                rows += [row(name, discrete, simulations, envs, found[envs], found[1]) for envs in ENVS]
    about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "turns": TURNS}
    out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def one_turn(search: TreeSearch, root: Root, recurrent: Recurrent, generator: Generator) -> tuple[float, float, float]:
    """Seconds of a search by the clock and of the processor, and the processor's in the model."""
    in_model = 0.0

    def timed(*arguments: Any) -> Step:
        nonlocal in_model
        begin = time.process_time()
        step = recurrent(*arguments)
        in_model += time.process_time() - begin
        return step

    clock, processor = time.perf_counter(), time.process_time()
    search(root, timed, generator, explore=True)
    return time.perf_counter() - clock, time.process_time() - processor, in_model


def row(name: str, discrete: bool, simulations: int, envs: int, found: list, alone: list) -> dict[str, Any]:
    clock, processor, in_model = (statistics.median(part) for part in zip(*found, strict=True))
    once = statistics.median(part[1] for part in alone)
    values = {
        "search": name, "actions": 4 if discrete else f"{K} drawn", "simulations": simulations, "envs": envs,
        "clock_ms": 1e3 * clock, "process_ms": 1e3 * processor, "model_ms": 1e3 * in_model,
        "simulations_per_process_s": simulations * envs / processor, "times_one_environment": envs * once / processor,
    }  # fmt: skip
    print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()))
    return values


if __name__ == "__main__":
    main(Path(sys.argv[1]))
