"""Acting in environments: pixels in, actions out, for a batch of environments at once."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from agents.actor import random_actions, random_log_prob
from agents.base import Agent
from worldmodels.base import Latent, Spaces, WorldModel, choose


@runtime_checkable  # so that annotations can be checked in tests
class Policy(Protocol):
    """Images uint8 [B, h, w, c] and whether they begin an episode [B] to actions float32 [B, A]."""

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray: ...


class AgentPolicy:
    """An agent and its world model with the latents, carries and last actions of B environments.

    ``explore`` is True when collecting and False when evaluating. All noise comes from ``seed``.
    """

    def __init__(self, model: WorldModel, agent: Agent, batch: int, *, explore: bool, seed: int):
        self.model, self.agent, self.batch, self.explore = model, agent, batch, explore
        self.device = next(model.parameters()).device
        self.generator = Generator(self.device).manual_seed(seed)
        self.latent: Latent = model.initial(batch)
        self.carry = agent.initial(batch, self.device)
        self.action = torch.zeros(batch, model.spaces.action_dim, device=self.device)

    @torch.no_grad()
    def observe(self, obs: np.ndarray, is_first: np.ndarray) -> Latent:
        """Take in what arrived; the latents after it."""
        first = torch.from_numpy(np.asarray(is_first)).to(self.device)
        image = torch.from_numpy(np.ascontiguousarray(obs)).to(self.device)
        self.latent = self.model.observe(self.latent, self.action, image, first, self.generator)
        self.carry = choose(first, self.agent.initial(self.batch, self.device), self.carry)
        return self.latent

    @torch.no_grad()
    def act(self) -> Tensor:
        """The action to take after the last ``observe``."""
        self.action, self.carry = self.agent.act(
            self.model, self.latent, self.carry, explore=self.explore, generator=self.generator
        )
        return self.action

    def act_randomly(self) -> Tensor:
        """A uniformly random action instead."""
        spaces = self.model.spaces
        self.action = random_actions(self.batch, spaces.action_dim, spaces.discrete, self.generator, self.action)
        return self.action

    @torch.no_grad()
    def log_prob(self, features: Tensor, *, random: bool) -> Tensor | None:
        """How likely the last action was, ``act``'s or a random one [B]; None where the agent does not ask for it.

        ``features`` [B, F] are those of the latents that it was chosen in.
        """
        found = self.agent.log_prob(features, self.action)
        if found is None or not random:
            return found
        return torch.full_like(found, random_log_prob(self.model.spaces.action_dim, self.model.spaces.discrete))

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        self.observe(obs, is_first)
        return self.act().float().cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next action depends on beside the weights."""
        return {
            "latent": list(self.latent),
            "carry": list(self.carry),
            "action": self.action,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        latent = (part.to(self.device) for part in state["latent"])
        carry = (part.to(self.device) for part in state["carry"])
        self.latent, self.carry = type(self.latent)(*latent), type(self.carry)(*carry)
        self.action = state["action"].to(self.device)
        self.generator.set_state(state["generator"].cpu())


class RandomPolicy:
    """Uniformly random actions: the baseline that anything learned has to beat."""

    def __init__(self, spaces: Spaces, seed: int):
        self.spaces, self.generator = spaces, Generator().manual_seed(seed)

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        like = torch.zeros(())
        return random_actions(len(obs), self.spaces.action_dim, self.spaces.discrete, self.generator, like).numpy()


class ZeroPolicy:
    """No action: zeros, or always the first of the discrete ones."""

    def __init__(self, spaces: Spaces):
        self.spaces = spaces

    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        size = self.spaces.action_dim
        action = F.one_hot(torch.tensor(0), size).numpy() if self.spaces.discrete else np.zeros(size)
        return np.tile(action.astype(np.float32), (len(obs), 1))
