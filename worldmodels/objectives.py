"""What makes a latent know about the image: reconstruct it, or share its information without drawing it.

An objective gets features with their graph, the embedding and the image that it is of, and gives loss terms. The
decoder belongs to the world model; an objective that does not learn from it still trains it, on detached latents, as a
probe for people to look at.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from worldmodels.layers import linear


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Draw the image from the latent (PlaNet, Dreamer V1 to V3). Term: ``image``."""

    type: Literal["reconstruction"]

    def build(self, features: int, embedding: int) -> "Reconstruction":
        return Reconstruction()


class Reconstruction(nn.Module):
    """Squared error of the decoded image."""

    def forward(
        self, decoder: Any, latent: Any, features: Tensor, embedding: Tensor, image: Real[Tensor, "N h w c"]
    ) -> dict[str, Tensor]:
        return {"image": decoder.loss(latent.deter, latent.stoch, image).mean()}


@dataclass(frozen=True, kw_only=True)
class RedundancyConfig:
    """R2-Dreamer: decorrelate a projection of the features against the embedding. Terms: ``barlow``, ``probe``."""

    type: Literal["redundancy"]
    off_diagonal: float  # weight of the off-diagonal terms, 5e-4 in R2-Dreamer's code

    def build(self, features: int, embedding: int) -> "Redundancy":
        return Redundancy(self, features, embedding)


def barlow_loss(
    k: Float[Tensor, "N E"], e: Float[Tensor, "N E"], off_diagonal: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Invariance and (weighted) redundancy of the cross-correlation of two batches of vectors, in float32."""
    k, e = ((x.float() - x.float().mean(0)) / (x.float().std(0) + 1e-8) for x in (k, e))
    correlation = k.T @ e / k.shape[0]
    invariance = ((correlation.diagonal() - 1) ** 2).sum()
    redundancy = (correlation**2).sum() - (correlation.diagonal() ** 2).sum()
    return invariance, off_diagonal * redundancy


class Redundancy(nn.Module):
    """Barlow-Twins loss between the features and the detached embedding (R2-Dreamer, ICLR 2026)."""

    def __init__(self, config: RedundancyConfig, features: int, embedding: int):
        super().__init__()
        self.off_diagonal = config.off_diagonal
        self.projection = linear(features, embedding, bias=False)

    def forward(
        self, decoder: Any, latent: Any, features: Tensor, embedding: Tensor, image: Real[Tensor, "N h w c"]
    ) -> dict[str, Tensor]:
        with torch.autocast(features.device.type, enabled=False):
            invariance, redundancy = barlow_loss(
                self.projection(features.float()), embedding.detach(), self.off_diagonal
            )
        probe = decoder.loss(latent.deter.detach(), latent.stoch.detach(), image).mean()
        return {"barlow": invariance + redundancy, "probe": probe}


Objective = ReconstructionConfig | RedundancyConfig
