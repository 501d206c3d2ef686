"""A linear-Gaussian world learned from pixels: rewards 12 steps ahead, and CEM in the model beside CEM in the truth.

``python results/linear-gaussian/measure.py``: two minutes of one free thread; writes ``numbers.json`` beside itself.

    s' = 0.8 s + 0.2 a + 0.01 eps,   r = -(s' - 0.5)^2,   seen as a bar that is (s + 1) / 2 of the image long

PlaNet's world model learns it from random episodes. Written down before: over 12 imagined steps the mean squared error
of rewards is less than 5 % of their variance, and CEM in the model earns in the true system at least 95 % of the way
from no actions to what CEM with the true equations earns.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from agents.planning.search import SearchSpace
from agents.training import cli
from worldmodels.base import Sequence, Spaces, cut, map_latent

SIZE, EPISODES, STEPS, HORIZON, UPDATES, GOAL = 32, 200, 33, 12, 600, 0.5
SPACES = Spaces((SIZE, SIZE, 3), 1, discrete=False)
WORDS = "--agent planet --task toy:reach --preset cpu,toy --agent.planner.iterations 5 --agent.planner.candidates 100"
WORDS += f" --agent.planner.elites 10 --agent.planner.horizon {HORIZON} --agent.exploration-noise 0"


def move(s: Tensor, a: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    return 0.8 * s + 0.2 * a + noise


def reward(s: Tensor) -> Tensor:
    return -(s - GOAL).square()


def picture(s: Tensor) -> Tensor:
    """Bars ``[*B, SIZE, SIZE, 3]`` uint8: columns are lit as far as s reaches, the last one in part."""
    lit = ((s[..., None] + 1) / 2 * SIZE - torch.arange(SIZE)).clamp(0, 1) * 255
    return lit.round().to(torch.uint8)[..., None, :, None].expand(*s.shape, SIZE, SIZE, 3).contiguous()


def record(generator: torch.Generator) -> Sequence:
    """Episodes of actions that stay for a while, so that the whole line is visited."""
    s = 2 * torch.rand(EPISODES, generator=generator) - 1
    held = (2 * torch.rand(EPISODES, STEPS // 4 + 1, generator=generator) - 1).repeat_interleave(4, 1)[:, :STEPS]
    states = [s]
    for t in range(STEPS - 1):
        states.append(move(states[-1], held[:, t], 0.01 * torch.randn(EPISODES, generator=generator)))
    line = torch.stack(states, 1)
    first = torch.zeros(EPISODES, STEPS, dtype=torch.bool)
    first[:, 0] = True
    rewards = reward(line) * ~first
    nothing = torch.zeros_like(first)
    return Sequence(picture(line), held[..., None], rewards, first, nothing, nothing, torch.zeros(EPISODES, 1))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    config = cli.parse(WORDS.split()).config
    model = config.world_model.build(SPACES)
    agent = config.agent.build(model)
    data, held_out = record(generator), record(generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(UPDATES):
        rows = torch.randint(EPISODES, (32,), generator=generator)
        batch = Sequence(*(None if part is None else part[rows] for part in data))
        _, losses = model.loss(cut(batch, slice(0, 17)))
        optimizer.zero_grad()
        sum(config.world_model.scales[name] * term for name, term in losses.terms.items()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()

    seen = STEPS - HORIZON - 1
    with torch.no_grad():
        latent = model.filter(cut(held_out, slice(0, seen + 1)), generator)
        start = map_latent(lambda part: part[:, -1], latent)
        told = model.reward(model.rollout(start, held_out.action[:, seen : seen + HORIZON], generator))
    true = held_out.reward[:, seen + 1 : seen + 1 + HORIZON]
    error = ((told - true).square().mean(0) / true.var(0)).tolist()
    share = float((told - true).square().mean() / true.var())

    # control: 20 steps from 8 states, a plan at each step; the truth plans with its own equations without noise
    space, planner, n = SearchSpace(1, discrete=False), config.agent.planner, 8
    begin = 2 * torch.rand(n, generator=generator) - 1

    def from_truth(s: Tensor) -> Tensor:
        def score(actions: Tensor) -> Tensor:
            at, total = s[:, None].expand(actions.shape[:2]), torch.zeros(actions.shape[:2])
            for t in range(HORIZON):
                at = move(at, actions[:, :, t, 0])
                total = total + reward(at)
            return total

        return planner(score, planner.initial(n, space, torch.device("cpu")), space, generator).actions[:, 0, 0]

    earned = {}
    for name in ("true", "learned", "zero"):
        s, total, seen_latent = begin, torch.zeros(n), model.initial(n)
        action, carry = torch.zeros(n, 1), agent.initial(n, torch.device("cpu"))
        noise = torch.Generator().manual_seed(1)
        for t in range(20):
            if name == "learned":
                first = torch.full((n,), t == 0)
                with torch.no_grad():
                    seen_latent = model.observe(seen_latent, action, picture(s), first, generator)
                action, carry = agent.act(model, seen_latent, carry, explore=False, generator=generator)
            else:
                action = from_truth(s)[:, None] if name == "true" else torch.zeros(n, 1)
            s = move(s, action[:, 0], 0.01 * torch.randn(n, generator=noise))
            total = total + reward(s)
        earned[name] = float(total.mean())
    way = (earned["learned"] - earned["zero"]) / (earned["true"] - earned["zero"])
    numbers = {
        "error of 12-step rewards as a share of their variance": share,
        "the same for each step": [round(x, 4) for x in error],
        "return": earned,
        "share of the way from no actions to the truth": way,
    }
    Path(__file__).with_name("numbers.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
