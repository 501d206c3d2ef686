"""How fast is it here, and what is a model good for? python scripts/benchmark.py VERB --help

act     the time to decide on actions, for batches of environments, with the settings of training:
        python scripts/benchmark.py act --agent planet,icem --preset cpu --task toy:reach
        python scripts/benchmark.py act --agent planet --preset cpu --task toy:reach --against "--agent.bf16-rows 0"
env     steps and images a second, for tasks, render qualities and numbers of worker processes:
        python scripts/benchmark.py env --task cartpole-balance,walker-walk --workers 0,2
replay  drawing from replays of several sizes, bytes of a step in memory and on disk:
        python scripts/benchmark.py replay --agent dreamer --preset cpu --task toy:reach
run     a run in a temporary folder, from the command on: time to begin, env steps a second, who waits for whom:
        python scripts/benchmark.py run --agent dreamer --preset cpu --task toy:reach --env-steps 3000
uses    returns of several planners on the world model of one run, beside the agent that trained it and random play:
        python scripts/benchmark.py uses RUN --agent planet,icem --preset cpu --episodes 20
update  one update of a learner: time, arithmetic, memory, and where the time goes; one configuration, two, or many:
        python scripts/benchmark.py update --agent dreamer --preset cpu --task toy:reach --against "--env.size 32"
        python scripts/benchmark.py update --agent dreamer --preset cpu --task toy:reach --vary length=16,32,64

What is compared takes turns in one process, and times are medians with half the distance of the quartiles.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from agents.training.benchmark.arguments import ARGUMENTS
from agents.training.cli import run_script


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def measure(verb: str, a: argparse.Namespace, settings: list[str]) -> Any:
    from agents.training.benchmark import acting, running, stepping, update  # torch takes seconds, --help needs none

    calls: dict[str, Callable[[], Any]] = {
        "act": lambda: acting.act(a.agent.split(","), settings, numbers(a.envs), a.turns, a.against, a.clock),
        "env": lambda: stepping.env(
            a.task.split(","), a.quality.split(","), numbers(a.workers), a.steps, settings, a.turns
        ),
        "replay": lambda: stepping.replay(numbers(a.sizes), settings, a.turns),
        "run": lambda: running.run(settings),
        "uses": lambda: acting.uses(a.run, a.agent.split(","), settings, a.episodes),
        "update": lambda: update.update(settings, a.against, a.vary, a.turns, a.clock),
    }
    return calls[verb]()


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    if (verb := argv[0]) not in ARGUMENTS:
        raise ValueError(f"unknown verb {verb!r}; there is {', '.join(ARGUMENTS)}")
    parser = argparse.ArgumentParser(prog=f"benchmark.py {verb}")
    for name, about in ARGUMENTS[verb].items():
        parser.add_argument(name, **about)
    parser.add_argument("--json", action="store_true", help="print JSON, every single number included")
    asked, settings = parser.parse_known_args(argv[1:])
    for count in ("turns", "episodes"):
        if getattr(asked, count, 2) < 2:
            raise ValueError(f"--{count} must be 2 or more, not {getattr(asked, count)}: a spread needs them")
    about, rows = measure(verb, asked, settings)
    if asked.json:
        print(json.dumps(about | {verb: rows}, indent=1))
    else:
        from agents.training.benchmark.timing import table

        print(", ".join(f"{name} {value}" for name, value in about.items()))
        print(table(rows))


if __name__ == "__main__":
    run_script(main)
