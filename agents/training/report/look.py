"""What a run's world model imagines about episodes, sequence by sequence; needs its newest checkpoint."""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from agents.pretrained import Trained, load_trained
from agents.training.devices import choose_device
from agents.training.evaluate import Recording, Stage, evaluate_agent, windows
from agents.training.film import CONTEXT, HORIZON, can_film
from agents.training.imagined import Imagined, imagine_open_loop, mean_compared
from agents.training.report.runs import RunData
from agents.training.report.usage import Usage, latent_usage
from worldmodels.base import on_device
from worldmodels.replay.episodes import oldest_first, read_episode

MOST = 48  # sequences that are imagined, spread evenly over all


@dataclass(frozen=True)
class Look:
    """Sequences, imagined open loop after the context, and the use of the latent in them."""

    run: RunData
    env_steps: int  # of the checkpoint
    imagined: Imagined
    usage: Usage | None

    @property
    def error(self) -> np.ndarray:
        """Mean PSNR of each sequence's imagination, dB, float [B]; NaN where nothing is compared."""
        return mean_compared(self.imagined.psnr, self.imagined.compared, axis=1)


def look(run: RunData, episodes: int, *, play: bool) -> Look:
    """Imagine the newest ``episodes`` of the replay, or as many fresh ones that the agent plays now.

    Raises ``ValueError`` of one line where there is no checkpoint or episode, or the model cannot be filmed.
    """
    trained = load_trained(run.folder, choose_device("auto"))
    if not can_film(trained.model):
        raise ValueError("the world model draws no images")
    recordings = played(trained, episodes) if play else recorded(run, episodes)
    sequence = windows(pieces(recordings, CONTEXT + HORIZON), trained.model.spaces, CONTEXT + HORIZON)
    device = next(trained.model.parameters()).device
    sequence = on_device(sequence, device)
    context = min(CONTEXT, sequence.obs.shape[1] - 1)
    imagined = imagine_open_loop(trained.model, sequence, context, Generator(device).manual_seed(0))
    usage = latent_usage(trained.model, sequence)
    return Look(run, trained.card.training.env_steps, imagined, usage)


def played(trained: Trained, episodes: int) -> list[Recording]:
    """Episodes on the seeds of evaluation, which training never sees."""
    stage = Stage(trained.card.task, trained.card.env)
    return evaluate_agent(stage, trained.model, trained.agent, episodes, record=episodes).recordings


def recorded(run: RunData, episodes: int) -> list[Recording]:
    """The newest episodes of the run's replay. Raises ``ValueError`` where none is there or one is damaged."""
    found = []
    for path in oldest_first(run.folder / "replay")[-episodes:]:
        episode = read_episode(path)
        found.append(Recording(episode.obs, episode.action, episode.reward, bool(episode.is_terminal[-1])))
    if not found:
        raise ValueError("no episodes in its replay; --play plays new ones")
    return found


def pieces(recordings: list[Recording], length: int) -> list[Recording]:
    """Whole pieces of ``length`` steps of the episodes, at most ``MOST``; shorter episodes as they are."""
    found = []
    for recording in recordings:
        steps = len(recording.reward)
        for start in range(0, max(1, steps - length + 1), length):
            span = slice(start, start + length)
            last = recording.is_terminal and start + length >= steps
            found.append(Recording(recording.obs[span], recording.action[span], recording.reward[span], last))
    keep = np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int)
    return [found[i] for i in keep]
