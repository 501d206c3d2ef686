"""The two sides that are shown: N futures of a dream, and one real environment with what the model believes of it."""

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from agents.base import Agent
from agents.training.policies import AgentPolicy
from worldmodels.base import Decoding, Latent, Rewarded, WorldModel, map_latent
from worldmodels.envs.base import Env

ENDED = 0.5  # below this probability of going on a future counts as over, and earns nothing more


class DreamSide:
    """N futures that begin at one latent ``[1]``, each with noise of its own; ``earned`` is their return until then."""

    def __init__(self, model: WorldModel, agent: Agent, latent: Latent, futures: int, earned: float, seed: int):
        self.model, self.agent = model, agent
        device = next(model.parameters()).device
        self.generator = Generator(device).manual_seed(seed)
        self.returns, self.over = np.full(1, earned), np.zeros(1, bool)
        self.latent = latent
        self.action = torch.zeros(1, model.spaces.action_dim, device=device)
        self.branch(futures)

    def branch(self, futures: int) -> None:
        """Go on with so many copies of the first future."""
        self.latent = map_latent(lambda x: x[:1].repeat_interleave(futures, 0), self.latent)
        self.action = self.action[:1].repeat_interleave(futures, 0)
        self.returns, self.over = self.returns[:1].repeat(futures), self.over[:1].repeat(futures)
        self.forget()
        self._look()

    def forget(self) -> None:
        """Let the agent begin to act without what it remembers."""
        self.carry = self.agent.initial(len(self.returns), self.action.device)

    def step(self, action: Tensor | None, dynamics: WorldModel) -> None:
        """One imagined step by ``dynamics`` with an action ``[1, A]`` for all, or each with the agent's own."""
        if action is None:
            self.action, self.carry = self.agent.act(
                self.model, self.latent, self.carry, explore=False, generator=self.generator
            )
        else:
            self.action = action.expand_as(self.action)
        self.latent = dynamics.imagine(self.latent, self.action, self.generator)
        self._look()
        self.returns = self.returns + np.where(self.over, 0, self.reward)
        self.over = self.over | (self.continues < ENDED)

    def _look(self) -> None:
        """Draw and judge where the futures are now."""
        model = self.model
        assert isinstance(model, Decoding) and isinstance(model, Rewarded)
        self.images = [as_colour(image) for image in model.decode(self.latent).cpu().numpy()]
        self.reward = model.reward(self.latent).float().cpu().numpy()
        self.continues = model.continues(self.latent).float().cpu().numpy()

    def numbers(self) -> dict[str, Any]:
        """Of each future, for the page."""
        values = {"reward": self.reward, "return": self.returns, "continues": self.continues}
        return {name: [finite(x) for x in value] for name, value in values.items()} | {"over": self.over.tolist()}


class RealSide:
    """An environment from the beginning of an episode on, and the posterior of what it shows."""

    def __init__(self, env: Env, model: WorldModel, agent: Agent, level: int, seed: int):
        self.env, self.model = env, model
        self.policy = AgentPolicy(model, agent, 1, explore=False, seed=seed)
        self.earned = 0.0
        self._arrived(env.reset(seed=level))

    @property
    def action(self) -> Tensor:
        """The last one ``[1, A]``, 0 before the first."""
        return self.policy.action

    @property
    def ended(self) -> str:
        """Why the episode is over, empty while it goes on."""
        return "" if not self.now.is_last else "terminal" if self.now.is_terminal else "time limit"

    def step(self, action: Tensor | None) -> None:
        """One step with an action ``[1, A]`` or the agent's; the episode has not ended."""
        if action is None:
            self.policy.act()
        else:
            self.policy.action = action
        self._arrived(self.env.step(self.policy.action[0].float().cpu().numpy()))
        self.earned += float(self.now.reward)

    def forget(self) -> None:
        """Let the agent begin to act without what it remembers."""
        self.policy.carry = self.policy.agent.initial(1, self.policy.device)

    def _arrived(self, step: Any) -> None:
        self.now = step
        self.latent = self.policy.observe(step.obs[None], np.array([step.is_first]))

    def numbers(self) -> dict[str, Any]:
        """What the task says, and what the model believes of the same moment."""
        said = {"reward": finite(self.now.reward), "return": finite(self.earned), "ended": self.ended}
        believed = {"predicted": None, "continues": None}
        if isinstance(self.model, Rewarded):
            reward, continues = self.model.reward(self.latent), self.model.continues(self.latent)
            believed = {"predicted": finite(reward[0]), "continues": finite(continues[0])}
        return said | believed


def as_colour(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 1 or 3] as [h, w, 3]. Raises ``ValueError`` for other channels."""
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"cannot show images of {image.shape[-1]} channels, only 1 (grey) or 3 (RGB)")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def finite(value: Any) -> float | None:
    """A number for JSON, None where it is none."""
    number = float(value)
    return round(number, 5) if np.isfinite(number) else None
