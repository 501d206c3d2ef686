"""Record episodes to learn from: python scripts/collect.py --task reach --policy random --env-steps 5000 DIR

--policy is random, zero, optimal (a built-in task's own player, who sees the state), or a run's folder, a saved one or
zoo:NAME; --random-share makes it worse. Settings of the environment may follow, as in training: --env.size 32. A
trained agent plays where it was trained, unless --task says otherwise. DIR is a new or an empty folder.
"""

import argparse
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="collect.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write; a new or an empty folder")
    parser.add_argument("--task", help="as in training; a trained agent knows its own")
    parser.add_argument("--policy", required=True, help="random, zero, optimal, a run, a saved agent, or zoo:NAME")
    parser.add_argument("--env-steps", type=int, required=True, help="when to stop; the episode is cut there")
    parser.add_argument("--random-share", type=float, default=0.0, help="chance of a random action instead, 0 to 1")
    parser.add_argument("--explore", action="store_true", help="a trained agent acts as in training, with its noise")
    parser.add_argument("--num-envs", type=int, default=1, help="environments stepped together")
    parser.add_argument("--seed", type=int, default=0, help="of environments and actions")
    arguments, settings = parser.parse_known_args(argv)
    for name in ("env_steps", "num_envs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(arguments, name)}")
    if not 0 <= arguments.random_share <= 1:
        raise ValueError(f"--random-share must be from 0 to 1, not {arguments.random_share}")
    for word in settings[::2]:
        if not word.startswith("--env."):
            parser.error(f"unrecognized arguments: {' '.join(settings)}")

    from agents.training.record import choose_player, record

    shared = {"num_envs": arguments.num_envs, "seed": arguments.seed}
    how = {"explore": arguments.explore, "random_share": arguments.random_share}
    player = choose_player(arguments.policy, arguments.task, settings, **shared, **how)
    recorded = record(player, arguments.folder, env_steps=arguments.env_steps, **shared)
    whole = len(recorded.returns)
    mean = f"mean return {sum(recorded.returns) / whole:.2f}" if whole else "none of them whole"
    print(
        f"{arguments.folder}: {recorded.episodes} episodes ({recorded.cut} cut), {recorded.env_steps} env steps, {mean}"
    )
    return 0


if __name__ == "__main__":
    run_script(main)
