"""MuZero: as ``alphazero.py``, and the world model learns what the search needs of it through the same losses.

Paper: Schrittwieser et al., "Mastering Atari, Go, Chess and Shogi by Planning with a Learned Model", Nature 2020, arXiv
1911.08265. From each posterior latent, K real actions in imagination (value equivalence):

    L = l^v_0 + l^p_0 + 1/K sum_{k=1..K} [ l^r_k + l^v_k + l^p_k + l^c_k ]
    l^p, l^v: those of ``alphazero.py``;  l^r, l^c: of the reward that arrived after k actions, and of the episode's end

The gradient reaches heads, dynamics and, through the posterior, the encoder; ``gradient_share`` (0.5) of it passes
each imagined step. The world model's own losses are there as far as its scales say: the KL divergence is a consistency
between what is imagined and what is seen, as EfficientZero's (2111.00210) cosine. ``--world-model.scales.image 0``
and the like take them away, and with all of them at 0 it is the paper's.

Deviations: those of ``alphazero.py``; latents are the world model's, not scaled to [0, 1], and sampled; the losses of
value and reward are the heads' (``heads.py``), not over 601 bins.

Metrics: those of ``reanalyse.py``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.reanalyse import ReanalyseConfig, Reanalysing, mean_over_steps, unroll
from worldmodels.base import Latent, Losses, Rewarded, Sequence, Teachable, WorldModel


@dataclass(frozen=True, kw_only=True)
class Config(ReanalyseConfig):
    gradient_share: float  # of the gradient that passes an imagined step backwards

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unroll < 1:
            raise ValueError(f"unroll must be 1 or more here, not {self.unroll}: 0 is alphazero")
        if not 0 <= self.gradient_share <= 1:
            raise ValueError(f"gradient_share must be in [0, 1], not {self.gradient_share}")

    def build(self, model: WorldModel) -> "MuZero":
        return MuZero(self, model)


class MuZero(Reanalysing):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Teachable)
    teaches: ClassVar[frozenset[str]] = frozenset({"actor", "critic", "reward", "continue"})

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.gradient_share = config.gradient_share

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        assert isinstance(model, Teachable)  # ``needs``
        latent, batch = self.window(latent, batch)
        lesson = self.reanalyse(model, latent, batch)
        torch.clear_autocast_cache()  # torch before 2.13 reuses casts made without gradients, and would learn nothing
        path = unroll(model, latent, batch, self.config.unroll, self.gradient_share)
        actor, critic, metrics = self.imitate(model, path, lesson, batch)
        told = [
            model.prediction_losses(latent, batch.reward[:, k:], (~batch.is_terminal[:, k:]).float())
            for k, (latent, _) in enumerate(path[1:], 1)
        ]
        reward, ends = zip(*told, strict=True)
        reached = [reached for _, reached in path[1:]]
        terms = {
            "actor": actor,
            "critic": critic,
            "reward": mean_over_steps(reward, reached),
            "continue": mean_over_steps(ends, reached),
        }
        return Losses(terms, metrics)
