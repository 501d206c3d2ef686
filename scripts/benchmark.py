"""How fast is it here, and what is a model good for? python scripts/benchmark.py VERB --help

act     the time to decide on actions, for batches of environments, with the settings of training:
        python scripts/benchmark.py act --agent planet,icem --preset cpu --task toy:reach
        python scripts/benchmark.py act --agent planet --preset cpu --task toy:reach --against "--agent.bf16-rows 0"
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


def measure(verb: str, asked: argparse.Namespace, settings: list[str]) -> Any:
    from agents.training.benchmark import acting, update  # torch takes seconds to import, and --help needs none

    calls: dict[str, Callable[[], Any]] = {
        "act": lambda: acting.act(
            asked.agent.split(","),
            settings,
            [int(count) for count in asked.envs.split(",")],
            asked.turns,
            asked.against,
            asked.clock,
        ),
        "uses": lambda: acting.uses(asked.run, asked.agent.split(","), settings, asked.episodes),
        "update": lambda: update.update(settings, asked.against, asked.vary, asked.turns, asked.clock),
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
