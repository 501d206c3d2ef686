"""Train an agent and its world model: python scripts/train.py --agent dreamer --task walker-walk"""

from agents.training.cli import parse, run_script


def main(argv: list[str]) -> int:
    command = parse(argv)
    from agents.training.run import train  # after the command line is known to be right: torch takes seconds to import

    train(command)
    return 0


if __name__ == "__main__":
    run_script(main)
