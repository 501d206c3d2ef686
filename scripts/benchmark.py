"""How fast is it here, and what is a model good for? python scripts/benchmark.py VERB --help

act     the time to decide on actions, for batches of environments, with the settings of training:
        python scripts/benchmark.py act --agent planet,icem --preset cpu --task toy:reach
uses    returns of several planners on the world model of one run, beside the agent that trained it and random play:
        python scripts/benchmark.py uses RUN --agent planet,icem --preset cpu --episodes 20

What is compared takes turns in one process, and times are medians with half the distance of the quartiles.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from agents.training.cli import run_script


def read(
    verb: str, argv: list[str], *arguments: tuple[str, Mapping[str, object]]
) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog=f"benchmark.py {verb}")
    for name, about in arguments:
        parser.add_argument(name, **about)  # pyright: ignore[reportArgumentType]
    parser.add_argument("--agent", required=True, help="names, separated by commas")
    parser.add_argument("--json", action="store_true", help="print JSON, every single number included")
    return parser.parse_known_args(argv)


def act(argv: list[str]) -> None:
    envs = ("--envs", {"default": "1,8", "help": "numbers of environments"})
    turns = ("--turns", {"type": int, "default": 10, "help": "calls of each, after one to warm up"})
    asked, settings = read("act", argv, envs, turns)
    if asked.turns < 2:
        raise ValueError(f"--turns must be 2 or more, not {asked.turns}")
    from agents.training import benchmark

    counts = [int(count) for count in asked.envs.split(",")]
    about, rows = benchmark.act(asked.agent.split(","), settings, counts, asked.turns)
    if asked.json:
        print(json.dumps(about | {"act": rows}, indent=1))
        return
    print(f"{about['task']}, preset {','.join(about['preset'])}, {about['device']}, medians of {asked.turns}")
    for row in rows:
        print(
            f"  {row['agent']:12} {row['envs']:3} envs  {row['ms']:8.1f} ms +- {row['spread']:4.0%}  "
            f"{row['actions_per_s']:8.1f} actions/s  {row['times_the_first']:5.2f} x"
        )


def uses(argv: list[str]) -> None:
    run = ("run", {"type": Path, "help": "folder that training wrote, or an exported one"})
    episodes = ("--episodes", {"type": int, "default": 20, "help": "one for each seed, the same ones for all"})
    asked, settings = read("uses", argv, run, episodes)
    if asked.episodes < 2:
        raise ValueError(f"--episodes must be 2 or more, not {asked.episodes}: an interval needs them")
    from agents.training import benchmark

    about, rows = benchmark.uses(asked.run, asked.agent.split(","), settings, asked.episodes)
    if asked.json:
        print(json.dumps(about | {"uses": rows}, indent=1))
        return
    print(f"{about['task']}, world model of {about['run']}, {asked.episodes} episodes on the same seeds")
    for row in rows:
        speed = f"{row['actions_per_s']:9.1f} actions/s" if "actions_per_s" in row else ""
        print(f"  {row['agent']:16} {row['mean']:8.2f}  [{row['low']:8.2f}, {row['high']:8.2f}] {speed}")


def main(argv: list[str]) -> None:
    verbs = {"act": act, "uses": uses}
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
    elif argv[0] in verbs:
        verbs[argv[0]](argv[1:])
    else:
        raise ValueError(f"unknown verb {argv[0]!r}; there is {', '.join(verbs)}")


if __name__ == "__main__":
    run_script(main)
