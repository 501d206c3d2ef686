"""What happens when a person plays: a state machine with nothing of the web in it, and no clock.

A session shows a dream, the real environment, or both; a person or the agent drives. Every command is a method that
returns a ``View`` or raises ``ValueError`` of one line and leaves all as it was. The same commands give the same views
(on a CPU to the bit): noise comes from ``seed``, real episodes from fixed seeds.

- ``dream``: begins at a frame of a real episode, of which the model has seen what was before it.
- ``real``: an episode of the environment from its beginning, there only while it is shown.
- ``both``: the real episode, and a dream that began with it and has had the same actions since. ``rejoin`` lets the
  dream begin anew from what the model has seen of the real side by now.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Generator, Tensor

from agents.pretrained import Trained
from agents.training.film import can_film
from agents.training.play.controls import controls_for
from agents.training.play.recording import Recording
from agents.training.play.sides import DreamSide, RealSide, as_colour
from agents.training.play.starts import LEVELS, Starts
from worldmodels.base import Latent, WorldModel, map_latent, on_device
from worldmodels.envs.base import HELD_OUT_SEED, Env

SHOWS, DRIVERS = ("dream", "real", "both"), ("person", "agent")
MAX_FUTURES, MAX_SEED, MAX_FPS = 9, 999_999, 60
TEMPERATURES = (0.05, 3.0)
BEGIN_AT = 10  # frame of the newest episode that a session begins at, of a short one its middle


@runtime_checkable
class Tempered(Protocol):
    """A world model whose dreams have a temperature (``worldmodels.vae_rnn``)."""

    config: Any

    def tempered(self, temperature: float) -> WorldModel: ...


class View(NamedTuple):
    """What there is to see: facts for JSON, and images uint8 [h, w, 3].

    The first image is the real one, or the one that the dream began at; then come the futures.
    """

    facts: dict[str, Any]
    images: list[np.ndarray]


class Settings(NamedTuple):
    """What a person can choose."""

    show: str
    driver: str
    futures: int
    temperature: float | None  # None where the model has none
    seed: int  # of the dream's noise


class Session:
    """See the top of the file. ``make`` builds the environment, ``videos`` is where recordings go."""

    def __init__(self, trained: Trained, starts: Starts, make: Callable[[], Env], videos: Path):
        self.card, self.model, self.agent = trained
        self.starts, self.make, self.videos = starts, make, videos
        self.device = next(self.model.parameters()).device
        temperature = float(self.model.config.temperature) if isinstance(self.model, Tempered) else None
        self.chosen = Settings("dream" if can_film(self.model) else "real", "agent", 1, temperature, 0)
        self.env: Env | None = None
        self.dream: DreamSide | None = None
        self.real: RealSide | None = None
        self.recording: Recording | None = None
        self.film = ""  # where the last recording lies
        self.begun_at: np.ndarray | None = None
        self.reset(*self._default_start(self.chosen.show))

    def describe(self) -> dict[str, Any]:
        """What does not change: the model, the task, the controls, the limits."""
        card, spaces = self.card, self.model.spaces
        name = card.world_model.name
        return {
            "task": card.task,
            "agent": card.agent.name if card.agent else "",
            "world_model": name,
            "env_steps": card.training.env_steps,
            "size": spaces.image[:2],
            "controls": controls_for(card.task, spaces),
            "lengths": self.starts.lengths,
            "levels": LEVELS,
            "max_futures": MAX_FUTURES,
            "max_seed": MAX_SEED,
            "temperatures": TEMPERATURES,
            "no_temperature": "" if isinstance(self.model, Tempered) else f"{name} dreams without one; vae-rnn has it",
            "no_dream": "" if can_film(self.model) else f"{name} does not draw what it imagines",
        }

    @torch.no_grad()
    def view(self) -> View:
        """What is to be seen now."""
        dream, real = self.dream, self.real
        first = as_colour(real.now.obs) if real else self.begun_at
        assert first is not None
        action = real.action if real else dream.action if dream else None
        facts = self.chosen._asdict() | {
            "episode": self.at[0],
            "frame": self.at[1],
            "step": self.num_steps,
            "action": None if action is None else action[0].tolist(),
            "dream": dream and dream.numbers(),
            "real": real and real.numbers(),
            "recording": self.recording and {"frames": len(self.recording.frames), "limit": self.recording.limit},
            "film": self.film,
        }
        return View(facts, [first, *(dream.images if dream else [])])

    @torch.no_grad()
    def step(self, action: object = None) -> View:
        """One step: a person's action (numbers in [-1, 1], or which of the discrete ones), None where the agent drives.

        Nothing moves once the real episode has ended.
        """
        person = self._action(action) if self.chosen.driver == "person" else None
        if self.real and self.real.ended:
            return self.view()
        if self.real:
            self.real.step(person)
            person = self.real.action
        if self.dream:
            self.dream.step(person, self._dynamics())
        self.num_steps += 1
        self._record()
        return self.view()

    @torch.no_grad()
    def reset(self, episode: object, frame: object) -> View:
        """Begin at a frame of a real episode; where the real side is shown, episode is one of its seeds and frame 0."""
        self._begin(self.chosen, self._checked_start(self.chosen.show, episode, frame))
        self._record()
        return self.view()

    @torch.no_grad()
    def choose(self, **changes: object) -> View:
        """Change settings. What is shown and the seed begin anew; more futures branch off from the first one's now."""
        new = self._checked(changes)
        if self.recording and (new.show, new.futures) != (self.chosen.show, self.chosen.futures):
            raise ValueError("stop recording first: a film has the same tiles from beginning to end")
        before = self.chosen
        if new.show != before.show or new.seed != before.seed:
            self._begin(new, self.at if new.show == before.show else self._default_start(new.show))
        elif self.dream and new.futures != before.futures:
            self.dream.branch(new.futures)
        self.chosen = new
        if new.driver != before.driver:
            for side in (self.dream, self.real):
                if side:
                    side.forget()
        return self.view()

    @torch.no_grad()
    def rejoin(self) -> View:
        """Let the dream begin anew from what the model has seen of the real side."""
        if not (self.dream and self.real):
            raise ValueError("show both: a dream rejoins the real environment beside it")
        self.dream = self._dreaming(self.chosen, self.real.latent, self.real.earned)
        return self.view()

    def record(self, on: object, fps: object) -> View:
        """Begin recording, or end it and write the film; one that cannot be written is lost, ``OSError`` says why."""
        if not isinstance(on, bool):
            raise ValueError("on is true or false")
        speed = number("fps", fps, 1, MAX_FPS)
        if on and not self.recording:
            real, view = self.real is not None, self.view()
            tiles = view.images if real else view.images[1:]
            self.recording, self.film = Recording(real, len(tiles), *tiles[0].shape[:2]), ""
            self._record()
        elif self.recording and not on:
            recording, self.recording = self.recording, None
            self.film = str(recording.save(self.videos, speed))
        return self.view()

    def close(self) -> None:
        """Free the environment."""
        if self.env:
            self.env.close()
            self.env = None

    def _begin(self, chosen: Settings, at: tuple[int, int]) -> None:
        """Both sides anew, ``at`` an episode and a frame."""
        if chosen.show == "dream":
            self._dream_of_a_recorded_one(chosen, at)
            self.real = None
            self.close()
        else:
            self.env = self.env or self.make()
            level = HELD_OUT_SEED + at[0]
            self.real = RealSide(self.env, self.model, self.agent, level, chosen.seed)
            self.dream = self._dreaming(chosen, self.real.latent) if chosen.show == "both" else None
        self.at, self.num_steps = at, 0

    def _dream_of_a_recorded_one(self, chosen: Settings, at: tuple[int, int]) -> None:
        seen = on_device(self.starts.sequence(*at), self.device)
        posterior = self.model.filter(seen, Generator(self.device).manual_seed(chosen.seed))
        self.dream = self._dreaming(chosen, map_latent(lambda x: x[:, -1], posterior))
        self.begun_at = as_colour(seen.obs[0, -1].cpu().numpy())

    def _dreaming(self, chosen: Settings, latent: Latent, earned: float = 0.0) -> DreamSide:
        return DreamSide(self.model, self.agent, latent, chosen.futures, earned, chosen.seed)

    def _dynamics(self) -> WorldModel:
        """The model that dreams: the trained one, at the temperature chosen."""
        if isinstance(self.model, Tempered) and self.chosen.temperature is not None:
            return self.model.tempered(self.chosen.temperature)
        return self.model

    def _record(self) -> None:
        if self.recording:
            images = self.view().images
            self.recording.add(images if self.real else images[1:])

    def _default_start(self, show: str) -> tuple[int, int]:
        if show != "dream":
            return 0, 0
        newest = len(self.starts.lengths) - 1
        return newest, min(BEGIN_AT, (self.starts.lengths[newest] - 1) // 2)

    def _checked_start(self, show: str, episode: object, frame: object) -> tuple[int, int]:
        episodes = LEVELS if show != "dream" else len(self.starts.lengths)
        which = whole("episode", episode, 0, episodes - 1)
        return which, whole("frame", frame, 0, 0 if show != "dream" else self.starts.lengths[which] - 1)

    def _checked(self, changes: dict[str, object]) -> Settings:
        """The settings after these changes. Raises ``ValueError``."""
        checks: dict[str, Callable[[object], Any]] = {
            "show": lambda value: one_of("show", value, SHOWS),
            "driver": lambda value: one_of("driver", value, DRIVERS),
            "futures": lambda value: whole("futures", value, 1, MAX_FUTURES),
            "temperature": lambda value: number("temperature", value, *TEMPERATURES),
            "seed": lambda value: whole("seed", value, 0, MAX_SEED),
        }
        facts = self.describe()
        if "temperature" in changes and facts["no_temperature"]:
            raise ValueError(f"no temperature: {facts['no_temperature']}")
        if changes.get("show", "real") != "real" and facts["no_dream"]:
            raise ValueError(f"no dream: {facts['no_dream']}")
        return self.chosen._replace(**{name: checks[name](value) for name, value in changes.items()})

    def _action(self, action: object) -> Tensor:
        """A person's action as ``[1, A]``. Raises ``ValueError``."""
        size = self.model.spaces.action_dim
        if self.model.spaces.discrete:
            index = whole("action", action, 0, size - 1)
            return torch.eye(size, device=self.device)[index : index + 1]
        if not isinstance(action, list) or len(action) != size:
            raise ValueError(f"action is a list of {size} numbers here")
        return torch.tensor([[number("action", value, -1, 1) for value in action]], device=self.device)


def one_of(name: str, value: object, known: tuple[str, ...]) -> str:
    """A word that is known. Raises ``ValueError``."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}")
    return value


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high]. Raises ``ValueError``."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is a whole number from {low} to {high}")
    return value


def number(name: str, value: object, low: float, high: float) -> float:
    """A number in [low, high]. Raises ``ValueError``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high or math.isnan(value):
        raise ValueError(f"{name} is a number from {low:g} to {high:g}")
    return float(value)
