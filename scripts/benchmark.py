"""How fast is it here? python scripts/benchmark.py act --agent planet,icem --preset cpu --task toy:reach

act     the time to decide on actions, for batches of environments: one or more agents, with the settings of training
uses    returns of several planners on the world model of one run, beside the agent that trained it and random play:
        python scripts/benchmark.py uses RUN --agent planet,icem --preset cpu --episodes 20

What is compared takes turns in one process, and figures are medians with half the distance of the quartiles.
"""

import argparse
import json
from pathlib import Path

from agents.training.cli import run_script


def act(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py act")
    parser.add_argument("--agent", required=True, help="names, separated by commas")
    parser.add_argument("--envs", default="1,8", help="numbers of environments")
    parser.add_argument("--turns", type=int, default=10, help="calls of each, after one to warm up")
    parser.add_argument("--json", action="store_true")
    arguments, settings = parser.parse_known_args(argv)
    if arguments.turns < 2:
        raise ValueError(f"--turns must be 2 or more, not {arguments.turns}")

    from agents.training import benchmark
    from agents.training.cli import parse
    from agents.training.devices import choose_device
    from agents.training.run import build_networks
    from worldmodels.envs import EnvPool

    configs = {name: parse(["--agent", name, *settings]).config for name in arguments.agent.split(",")}
    first = next(iter(configs.values()))
    with EnvPool(first.task, first.env, [0], "serial", first.collect.worker_timeout_s) as pool:
        spaces = pool.spaces
    device, models = choose_device(first.training.device), {}
    for name, config in configs.items():
        model, agent = build_networks(config, spaces)
        models[name] = (config, model.to(device).eval(), agent.to(device).eval())
    rows = benchmark.act(models, spaces, [int(count) for count in arguments.envs.split(",")], arguments.turns)
    if arguments.json:
        about = {"device": str(device), "task": first.task, "preset": list(first.preset)}
        print(json.dumps(about | {"act": rows}, indent=1))
        return 0
    print(f"{first.task}, preset {','.join(first.preset)}, {device}, medians of {arguments.turns}")
    for row in rows:
        print(
            f"  {row['agent']:12} {row['envs']:3} envs  {row['ms']:8.1f} ms +- {row['spread']:4.0%}  "
            f"{row['actions_per_s']:8.1f} actions/s  {row['times_the_first']:5.2f} x"
        )
    return 0


def uses(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmark.py uses")
    parser.add_argument("run", type=Path, help="folder that training wrote, or an exported one")
    parser.add_argument("--agent", required=True, help="names, separated by commas")
    parser.add_argument("--episodes", type=int, default=20, help="one for each seed, the same ones for all")
    parser.add_argument("--json", action="store_true", help="every single return included")
    arguments, settings = parser.parse_known_args(argv)
    if arguments.episodes < 2:
        raise ValueError(f"--episodes must be 2 or more, not {arguments.episodes}: an interval needs them")

    from agents.pretrained import load_trained, load_with_agent
    from agents.training import benchmark
    from agents.training.devices import choose_device
    from agents.training.evaluate import Stage

    device = choose_device("auto")
    own = load_trained(arguments.run, device)
    trained = {f"own ({own.card.agent.name if own.card.agent else '-'})": own}
    for name in arguments.agent.split(","):
        trained[name] = load_with_agent(arguments.run, name, settings, device)
    rows = benchmark.uses(trained, Stage(own.card.task, own.card.env), arguments.episodes)
    if arguments.json:
        about = {"run": str(arguments.run), "task": own.card.task, "env_steps": own.card.training.env_steps}
        print(json.dumps(about | {"device": str(device), "uses": rows}, indent=1))
        return 0
    print(f"{own.card.task}, world model of {arguments.run}, {arguments.episodes} episodes on the same seeds, {device}")
    for row in rows:
        speed = f"{row['actions_per_s']:9.1f} actions/s" if "actions_per_s" in row else ""
        print(f"  {row['agent']:16} {row['mean']:8.2f}  [{row['low']:8.2f}, {row['high']:8.2f}] {speed}")
    return 0


VERBS = {"act": act, "uses": uses}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if argv[0] not in VERBS:
        raise ValueError(f"unknown verb {argv[0]!r}; there is {', '.join(VERBS)}")
    return VERBS[argv[0]](argv[1:])


if __name__ == "__main__":
    run_script(main)
