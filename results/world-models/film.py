"""Films a controller in its own dreams at several temperatures, one below the other, from the same real starts.

    python results/world-models/film.py RUN OUT.gif [TEMPERATURE ...]

The weights are the same in all; only the dream is more or less certain (``VAERNN.tempered``).
"""

import sys
from pathlib import Path

import numpy as np
import torch

from agents.pretrained import load_trained
from agents.training.evaluate import Stage, evaluate_agent, windows
from agents.training.film import film_dream
from agents.training.video import summary_gif
from worldmodels.vae_rnn import VAERNN

COLUMNS, CONTEXT, HORIZON = 4, 2, 60


def main(run: Path, out: Path, temperatures: list[float]) -> None:
    torch.set_num_threads(1)
    card, model, agent = load_trained(run)
    if not isinstance(model, VAERNN):
        raise SystemExit(f"{run}: only vae-rnn dreams at a temperature")
    played = evaluate_agent(Stage(card.task, card.env), model, agent, COLUMNS, record=COLUMNS)
    seen = windows(played.recordings, model.spaces, CONTEXT)
    films = []
    for temperature in temperatures:
        labels = {"task": f"temperature {temperature:g}", "env_steps": card.training.env_steps}
        where = out.with_name(f"{out.stem}-{temperature:g}.mp4")
        film = film_dream(model.tempered(temperature), agent, seen, CONTEXT, HORIZON, where, **labels)
        where.unlink()
        films.append(film.frames)
        print(temperature, film.metrics)
    summary_gif(np.concatenate(films, 1), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [float(word) for word in sys.argv[3:]] or [0.1, 1.0, 1.5])
