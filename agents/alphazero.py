"""AlphaZero on a learned world model: a tree search improves the policy, and policy and value learn what it finds.

Papers: Silver et al. 2017 (arXiv 1712.01815); MuZero's search and targets (Schrittwieser et al., arXiv 1911.08265, and
"Online and Offline RL by Planning with a Learned Model", 2104.06294: reanalyse); Gumbel MuZero (Danihelka et al. 2022,
https://openreview.net/forum?id=bERaNdoegnO); Sampled MuZero (2104.06303) for continuous actions.

    search     from the posterior latent, guided by pi and v (``apprentice.py``, ``planning/tree.py``)
    actor      -sum_k w_k log pi(a_k | s) - entropy H[pi],   w: the search's improved policy or share of visits
    critic     -log p(z_t | s_t),   z_t = sum_{i<n} gamma^i r_{t+i+1} + gamma^n nu_{t+n},   nu: the search's root value
    both       at the posterior, and with weight 1 / K each at what K real actions lead to from there, open loop

Here the world model learns by its own loss and the search is only on top (``muzero.py`` is the other kind). Whatever is
learned from is searched again in the loss (``reanalyse.py``). The heads learn from open-loop latents too, since these
are what a tree asks them about.

Deviations: nothing is kept of the searches that acted; no prioritised replay, no target network, one temperature for
the whole run, no decay of the weights. Absorbing states are not needed: a continue head says where an episode ends.

Metrics: those of ``reanalyse.py``.
"""

from dataclasses import dataclass

import torch

from agents.reanalyse import ReanalyseConfig, Reanalysing, unroll
from worldmodels.base import Latent, Losses, Sequence, WorldModel, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(ReanalyseConfig):
    def build(self, model: WorldModel) -> "AlphaZero":
        return AlphaZero(self, model)


class AlphaZero(Reanalysing):
    """See the card at the top of the file."""

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        latent, batch = self.window(latent, batch)
        lesson = self.reanalyse(model, latent, batch)
        with torch.no_grad():
            path = unroll(model, map_latent(torch.detach, latent), batch, self.config.unroll, 1.0)
        torch.clear_autocast_cache()  # torch before 2.13 reuses casts made without gradients, and would learn nothing
        actor, critic, metrics = self.imitate(model, path, lesson, batch)
        return Losses({"actor": actor, "critic": critic}, metrics)
