"""Train an agent and its world model: python scripts/train.py --agent dreamer --task walker-walk

Ctrl-C and SIGTERM end a run in order: it saves, says how to go on, and exits with 130 or 143. Other exit codes are 0,
2 for what you can mend (one line says how), and 1 for a bug.
"""

from agents.training.cli import parse, run_script


def main(argv: list[str]) -> int:
    command = parse(argv)
    from agents.training.run import train  # after the command line is known to be right: torch takes seconds to import

    signal = train(command)
    return 128 + signal if signal else 0


if __name__ == "__main__":
    run_script(main)
