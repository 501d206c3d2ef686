"""An update of a checkout of this project, beside another one to see what a change gained: run_checkout.py FOLDER WORDS

FOLDER is the checkout, WORDS are settings of training, ``--preset`` and ``--training.precision`` among them.
"""

import sys
from pathlib import Path

import torch
from serve import parameters, serve


def main(folder: str, *settings: str) -> None:
    sys.path.insert(0, str(Path(folder).resolve()))  # before what is installed, and whatever PYTHONPATH says
    from agents.training import cli
    from agents.training.benchmark.update import Case

    case = Case(cli.parse(list(settings)).config, torch.get_num_threads())
    torch.set_num_threads(case.threads)
    model, agent = case.learner.model, case.learner.agent
    serve(case.update, name=folder, precision=case.precision, parameters=parameters(world_model=model, agent=agent))


if __name__ == "__main__":
    main(*sys.argv[1:])
