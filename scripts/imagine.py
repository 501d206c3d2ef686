"""Film what a trained world model imagines: python scripts/imagine.py RUN --context 5 --horizon 45 --out dream.mp4

Plays fresh episodes, then shows truth, reconstruction, imagination with the same actions, and error; beside the video
a JSON of the same name with PSNR, SSIM and reward error for each imagined step. What the policy
has in mind is ``<out>-policy.mp4``: its own dream, or a planner's plan beside what then happened.
"""

import argparse
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="imagine.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that training wrote, or an exported one")
    parser.add_argument("--context", type=int, default=5, help="frames the model sees first")
    parser.add_argument("--horizon", type=int, default=45, help="steps it imagines after them")
    parser.add_argument("--sequences", type=int, default=6, help="columns, at most 6")
    parser.add_argument("--seed", type=int, default=0, help="of the model's own noise")
    parser.add_argument("--out", type=Path, help="default: RUN/videos/imagined.mp4")
    arguments = parser.parse_args(argv)
    for name in ("context", "horizon", "sequences"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, not {getattr(arguments, name)}")
    out = arguments.out or arguments.run / "videos" / "imagined.mp4"

    from agents.pretrained import load_trained
    from agents.training.devices import choose_device
    from agents.training.evaluate import Stage, evaluate_agent, windows
    from agents.training.film import COLUMNS, check_film_path, film_imagination, film_policy

    check_film_path(out)
    card, model, agent = load_trained(arguments.run, choose_device("auto"))
    count, context, horizon = min(arguments.sequences, COLUMNS), arguments.context, arguments.horizon
    played = evaluate_agent(Stage(card.task, card.env), model, agent, count, record=count)
    sequence = windows(played.recordings, model.spaces, context + horizon)
    labels = {"task": card.task, "env_steps": card.training.env_steps, "seed": arguments.seed}
    film = film_imagination(model, sequence, context, out, **labels)
    policy = out.with_name(f"{out.stem}-policy{out.suffix}")
    own = film_policy(model, agent, sequence, context, horizon, policy, **labels)
    for name, value in film.metrics.items():
        print(f"{name.removeprefix('imagined/'):22} {value:8.3f}")
    print(f"{film.path}\n{film.path.with_suffix('.json')}\n{own.path}")
    return 0


if __name__ == "__main__":
    run_script(main)
