"""Play whole episodes with a trained agent: python scripts/evaluate.py RUN --episodes 10 --json

With --agent NAME another agent plays on the same world model, one that has nothing of its own to learn: a planner.
Its settings may follow, as in training: --preset cpu --agent.planner.candidates 200.

Prints returns and lengths beside those of random and of no actions on the same seeds, and the share of episodes that
ended terminally. An episode's success is its return; that it terminated says something where the task says so: a board
of toy:sokoban is solved.
"""

import argparse
import json
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that training wrote, or an exported one")
    parser.add_argument("--episodes", type=int, default=10, help="one for each seed, the same ones every time")
    parser.add_argument("--json", action="store_true", help="print JSON, every single return included")
    parser.add_argument("--video", type=Path, metavar="FILE.mp4", help="film the first episode")
    parser.add_argument("--agent", metavar="NAME", help="plan with NAME on the run's world model instead")
    arguments, settings = parser.parse_known_args(argv)
    if settings and not arguments.agent:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    if arguments.episodes < 1:
        raise ValueError(f"--episodes must be 1 or more, not {arguments.episodes}")

    from agents.pretrained import load_trained, load_with_agent
    from agents.training.devices import choose_device
    from agents.training.evaluate import Stage, evaluate_agent, evaluate_baselines
    from agents.training.film import check_film_path
    from agents.training.video import write_episode_video

    if arguments.video:
        check_film_path(arguments.video)
    device = choose_device("auto")
    if arguments.agent:
        card, model, agent = load_with_agent(arguments.run, arguments.agent, settings, device)
    else:
        card, model, agent = load_trained(arguments.run, device)
    stage, episodes = Stage(card.task, card.env), arguments.episodes
    played = evaluate_agent(stage, model, agent, episodes, record=bool(arguments.video))
    baselines = evaluate_baselines(stage, model.spaces, episodes)
    results = {name: result.summary() for name, result in {"agent": played, **baselines}.items()}
    env_steps = card.training.env_steps
    report = {"run": str(arguments.run), "task": card.task, "env_steps": env_steps, **results}
    if arguments.video:
        report["video"] = str(write_episode_video(played.recordings[0].obs, arguments.video))
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{card.task}, {env_steps} env steps, {episodes} episodes on the same seeds")
    for name, result in results.items():
        keys = ("return_mean", "return_std", "length_mean", "terminal_share")
        mean, std, length, end = (result[key] for key in keys)
        print(f"  {name:6}  return {mean:8.2f} +- {std:6.2f}   length {length:6.1f}   terminal {end:5.3f}")
    return 0


if __name__ == "__main__":
    run_script(main)
