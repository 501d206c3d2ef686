"""Make .wme episodes of recorded data: python scripts/convert.py SRC DST --size 64
Give a run's episodes the rewards of another task: python scripts/convert.py RUN DST --relabel walker-run

SRC is a file or a folder of any format that can be read (docs/offline.md): .wme, Dreamer's and V-D4RL's .npz, the HDF5
of V-D4RL and Minari, a CSV with PNG files or videos. DST is a new or an empty folder. Every episode is written whole or
not at all; one line on stderr for each that is left out, and the exit code is then 2.
"""

import argparse
import sys
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="a file or a folder")
    parser.add_argument("target", type=Path, metavar="DST", help="a new or an empty folder")
    parser.add_argument("--size", type=int, help="make the images SIZE x SIZE; else they stay as they are")
    parser.add_argument("--task", default="", help="of which task the data are, where the format does not say")
    parser.add_argument("--action-repeat", type=int, default=1, help="env steps of an action; V-D4RL's is 2")
    parser.add_argument("--relabel", metavar="TASK", help="SRC is a run: its episodes with the rewards of this task")
    arguments = parser.parse_args(argv)
    if arguments.relabel and (arguments.size or arguments.task or arguments.action_repeat != 1):
        raise ValueError("--relabel goes by the run's own config: leave out --size, --task and --action-repeat")
    for name in ("size", "action_repeat"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= 4096:
            raise ValueError(f"--{name.replace('_', '-')} must be from 1 to 4096, not {value}")

    from worldmodels.envs import resolve_task
    from worldmodels.replay.convert import convert

    def warn(problem: str) -> None:
        print(f"warning: {problem}: left out", file=sys.stderr)

    if arguments.relabel:
        if not (arguments.source / "config.yaml").is_file():
            raise ValueError(f"--relabel is for the episodes of a run, and {arguments.source} has no config.yaml")

        from agents.training.config import load_config  # a conversion does without the seconds that these take
        from agents.training.run import env_seeds
        from worldmodels.replay.relabel import relabel

        config = load_config(arguments.source / "config.yaml")
        converted = relabel(
            arguments.source / "replay",
            arguments.target,
            resolve_task(arguments.relabel),
            config.env,
            env_seeds(config, finished=0),
            warn,
        )
    else:
        converted = convert(
            arguments.source,
            arguments.target,
            size=arguments.size,
            task=resolve_task(arguments.task) if arguments.task else "",
            action_repeat=arguments.action_repeat,
            say=warn,
        )
    episodes = converted.episodes
    mean = sum(info.episode_return for info in episodes) / len(episodes)
    print(
        f"{arguments.target}: {len(episodes)} episodes, {sum(info.episode_env_steps for info in episodes)} env steps, "
        f"mean return {mean:.2f}; {len(converted.problems)} left out"
    )
    return 2 if converted.problems else 0


if __name__ == "__main__":
    run_script(main)
