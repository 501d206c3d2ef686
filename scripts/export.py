"""Save a run's trained agent and world model: python scripts/export.py RUN DIR

DIR gets config.json, model.safetensors, agent.safetensors and README.md, from the run's newest checkpoint. Load it with
``agents.load_agent(DIR)``, or begin another run with train.py --world-model DIR.
"""

import argparse
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that training wrote")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write; a new or an empty folder")
    parser.add_argument("--half", action="store_true", help="round to bfloat16: half the size")
    parser.add_argument("--force", action="store_true", help="replace a saved model that is there")
    arguments = parser.parse_args(argv)

    from agents.pretrained import export

    folder = export(arguments.run, arguments.folder, overwrite=arguments.force, half=arguments.half)
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:12} bytes  {arguments.folder / file.name}")
    return 0


if __name__ == "__main__":
    run_script(main)
