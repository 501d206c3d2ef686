"""Recurrent state-space model: a memory (deter) and a stochastic latent (stoch), learned from pixels.

Papers: PlaNet (Hafner et al., 2019, arXiv 1811.04551), Dreamer V1 (1912.01603), V2 (2010.02193), V3 (2301.04104 v2,
Nature 2025), R2-Dreamer (2603.18202). Which of them it is, is composition: cell, latent, encoder, decoder, objective.

    deter_t = cell(deter_{t-1}, stoch_{t-1}, action_{t-1})
    prior:      stoch_t ~ p(. | deter_t)
    posterior:  stoch_t ~ q(. | deter_t, encoder(obs_t))

Loss terms: ``dyn`` = KL(sg(posterior) || prior) and ``rep`` = KL(posterior || sg(prior)), each floored at the free
nats; ``reward``, ``continue``; and those of the objective. The scales tell the papers apart: 1 and 0.1 in V3, 0.8 and
0.2 in V2; 1 and 1 give the gradient of the one KL of PlaNet and V1.

Two options make PlaNet's first version of its second, both off in every paper since. ``overshooting`` (Eq. 7): the
prior rolled open loop from each posterior towards the posteriors up to D steps later. Its term is the mean over
distances 2 to D, so the 1 / D of Eq. 7 is 1 / (D - 1) and distance 1 is ``dyn`` and ``rep``. No gradient reaches the
posterior as a target; as a start it is differentiated, as in the authors' code. ``overshooting_reward`` teaches the
reward head alone: the authors' code reads these rewards, too, at the posterior that is the target, so it weighs steps
by how many starts lead to them. ``global_prior``: KL(posterior || N(0, 1)), uniform for a categorical; no free nats.

With ``bits`` below 8 the images are quantised and get new uniform noise whenever they are encoded, in ``observe`` and
``filter`` from the generator given, as in PlaNet's code; the image loss has the noise that the encoder had.

Deviations. The continue head learns the probability that an episode goes on, without the discount that V3 folds in;
agents multiply by their own. It is always there (V1 and V2 leave it out on the DM Control suite, where it learns 1).
The input layer of the block GRU is kept as two tensors (``cells.BlockGRU``), which only adaptive clipping can tell.
The authors' overshooting also starts from the zero state before a window; here only posteriors start.

Metrics: ``kl`` (nats, before the floor), ``prior_entropy``, ``posterior_entropy`` (nats), ``noise`` (mean square of
what the posterior's samples are under the prior, 1 where the prior is right); with overshooting ``overshooting_kl``
(nats, before the floor).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Generator, Tensor, nn

from worldmodels.base import (
    Decoding,
    Losses,
    Reparameterised,
    Rewarded,
    Sequence,
    Spaces,
    Storing,
    Teachable,
    WorldModel,
)
from worldmodels.cells import Cell
from worldmodels.decoders import Decoder, to_image
from worldmodels.distributions import straight_through
from worldmodels.encoders import Encoder, dequantise
from worldmodels.heads import HeadConfig
from worldmodels.latents import Categorical, Gaussian
from worldmodels.layers import ACTIVATIONS, MLP, Activation, Norm, linear, make_norm, step_precision
from worldmodels.objectives import Objective
from worldmodels.strict import at_least


@dataclass(frozen=True, kw_only=True)
class Config:
    cell: Cell
    latent: Categorical | Gaussian
    encoder: Encoder
    decoder: Decoder
    objective: Objective
    units: int  # hidden size of prior and posterior networks
    prior_layers: int
    norm: Norm  # of prior and posterior networks
    activation: Activation
    reward: HeadConfig
    continues: HeadConfig
    free_nats: float
    free_nats_after_mean: bool  # floor the mean over the batch (V1, V2) rather than each step (V3)
    # The defaults below are what models were that were saved before there were these keys.
    bits: int = 8  # of the images' 8 that are learned from; below 8, noise takes the place of the others (PlaNet: 5)
    overshooting: int = 0  # greatest distance of latent overshooting, at most a window's length - 1; 0 or 1: none
    global_prior: bool = False  # a term that keeps the posterior near a fixed distribution
    scales: dict[str, float]  # weight of every loss term

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must be 1 to 8, got {self.bits}")
        at_least(self, 0, "overshooting")

    def build(self, spaces: Spaces) -> "RSSM":
        return RSSM(self, spaces)


class RSSMLatent(NamedTuple):
    """``deter`` float32, ``stoch`` float32 and flat; leading dimensions as the caller has them."""

    deter: Float[Tensor, "*B D"]
    stoch: Float[Tensor, "*B Z"]


def mean(x: Float[Tensor, "*B"], weight: Float[Tensor, "*B"] | None = None) -> Float[Tensor, ""]:
    """The mean of all, or of those with weight 1 and not 0; then 0 where there are none."""
    return x.mean() if weight is None else (x * weight).sum() / weight.sum().clamp_min(1)


class Posterior(nn.Module):
    """One hidden layer on [deter, embedding]; the embedding's share is computed for all steps at once."""

    def __init__(self, deter: int, embedding: int, config: Config):
        super().__init__()
        fan_in = deter + embedding
        self.from_deter = linear(deter, config.units, scale=(deter / fan_in) ** 0.5)
        self.from_obs = linear(embedding, config.units, scale=(embedding / fan_in) ** 0.5, bias=False)
        self.norm = make_norm(config.norm, config.units)
        self.act = ACTIVATIONS[config.activation]
        self.output = linear(config.units, config.latent.stats_size)

    def forward(self, deter: Float[Tensor, "N D"], obs: Float[Tensor, "N U"]) -> Float[Tensor, "N S"]:
        return self.output(self.act(self.norm(self.from_deter(deter) + obs)))


class RSSM(WorldModel, Rewarded, Decoding, Storing, Reparameterised, Teachable):
    """See the card at the top of the file."""

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__()
        self.config, self.spaces = config, spaces
        self.latent = config.latent
        self.deter_size = config.cell.deter
        self.feature_dim = self.deter_size + self.latent.size
        self.packed_bytes = 2 * self.deter_size + self.latent.packed_bytes
        self.encoder = config.encoder.build(spaces.image)
        self.cell = config.cell.build(self.latent.size, spaces.action_dim)
        self.prior = MLP(
            self.deter_size,
            config.units,
            config.prior_layers,
            self.latent.stats_size,
            norm=config.norm,
            activation=config.activation,
        )
        self.posterior = Posterior(self.deter_size, self.encoder.size, config)
        self.decoder = config.decoder.build(spaces.image, self.deter_size, self.latent.size)
        self.objective = config.objective.build(self.feature_dim, self.encoder.size)
        self.reward_head = config.reward.build(self.feature_dim)
        self.continue_head = config.continues.build(self.feature_dim)

    def initial(self, batch: int) -> RSSMLatent:
        device = self.posterior.output.weight.device
        return RSSMLatent(
            torch.zeros(batch, self.deter_size, device=device), torch.zeros(batch, self.latent.size, device=device)
        )

    def observe(
        self,
        latent: RSSMLatent,
        prev_action: Float[Tensor, "B A"],
        obs: UInt8[Tensor, "B h w c"],
        is_first: Bool[Tensor, " B"],
        generator: Generator | None = None,
    ) -> RSSMLatent:
        going_on = (~is_first).unsqueeze(-1).to(latent.deter.dtype)
        seen = self.posterior.from_obs(self.encoder(dequantise(obs, self.config.bits, generator)))
        action = self.cell.embed_action(prev_action * going_on)
        return self._observe(latent, action, seen, going_on, generator)[0]

    def _observe(
        self, latent: RSSMLatent, action: Tensor, seen: Tensor, going_on: Tensor, generator: Generator | None
    ) -> tuple[RSSMLatent, Tensor]:
        """One posterior step from embedded action and image; also the posterior's statistics."""
        deter = self.cell(latent.deter * going_on, latent.stoch * going_on, action)
        stats = self.posterior(deter, seen)
        return RSSMLatent(deter, self.latent.sample(stats, generator)), stats

    def imagine(
        self, latent: RSSMLatent, action: Float[Tensor, "B A"], generator: Generator | None = None
    ) -> RSSMLatent:
        deter = self.cell(latent.deter, latent.stoch, self.cell.embed_action(action))
        return RSSMLatent(deter, self.latent.sample(self.prior(deter), generator))

    def reenact(self, latent: RSSMLatent, action: Float[Tensor, "B A"], observed: RSSMLatent) -> RSSMLatent:
        """Exact for Gaussian latents, straight through for categorical ones: see ``reenact`` of their kinds."""
        deter = self.cell(latent.deter, latent.stoch, self.cell.embed_action(action))
        stoch = self.latent.reenact(self.prior(deter), observed.stoch.detach())
        return RSSMLatent(straight_through(observed.deter.detach(), deter), stoch)

    def rollout(
        self, latent: RSSMLatent, actions: Float[Tensor, "B H A"], generator: Generator | None = None
    ) -> RSSMLatent:
        with step_precision(len(actions), actions):
            return super().rollout(latent, actions, generator)

    def features(self, latent: RSSMLatent) -> Float[Tensor, "*B F"]:
        return torch.cat([latent.deter, latent.stoch], -1)

    def _scan(self, batch: Sequence, generator: Generator | None) -> tuple[RSSMLatent, Tensor, Tensor]:
        """Posterior ``[B, T]``, its statistics and the embeddings; everything without a past outside the loop."""
        size, length = batch.reward.shape
        embedding = self.encoder(dequantise(batch.obs.flatten(0, 1), self.config.bits, generator))
        seen = self.posterior.from_obs(embedding).unflatten(0, (size, length))
        past = self._past(batch)
        latent = self.initial(size) if batch.context is None else self.unpack(batch.context)
        latents, stats = [], []
        with step_precision(size, seen):
            for going_on, action, sight in zip(*(part.float().unbind(1) for part in (*past, seen)), strict=True):
                latent, stat = self._observe(latent, action, sight, going_on, generator)
                latents.append(latent)
                stats.append(stat)
        posterior = RSSMLatent(*(torch.stack(parts, 1) for parts in zip(*latents, strict=True)))
        return posterior, torch.stack(stats, 1), embedding

    def _past(self, batch: Sequence) -> tuple[Float[Tensor, "B T 1"], Float[Tensor, "B T I"]]:
        """1 where a step has one before it in its episode, 0 where not; and the embedded action that led to it."""
        going_on = (~batch.is_first).unsqueeze(-1).to(torch.float32)
        prev_action = torch.cat([batch.prev_action.unsqueeze(1), batch.action[:, :-1]], 1)
        return going_on, self.cell.embed_action(prev_action * going_on)

    def filter(self, batch: Sequence, generator: Generator | None = None) -> RSSMLatent:
        return self._scan(batch, generator)[0]

    def loss(self, batch: Sequence) -> tuple[RSSMLatent, Losses]:
        latent, _, losses = self.learn(batch)
        return latent, losses

    def learn(self, batch: Sequence) -> tuple[RSSMLatent, Float[Tensor, "B T S"], Losses]:
        """``loss``, with the posterior's statistics in between; they have their graph."""
        batch = batch._replace(obs=dequantise(batch.obs, self.config.bits, None))  # what is drawn is what was seen
        latent, stats, embedding = self._scan(batch, None)
        prior = self.prior(latent.deter)
        features = self.features(latent)
        flat = RSSMLatent(latent.deter.flatten(0, 1), latent.stoch.flatten(0, 1))
        terms = self.objective(self.decoder, flat, features.flatten(0, 1), embedding, batch.obs.flatten(0, 1))
        dyn = self.latent.kl(stats.detach(), prior)
        terms["dyn"] = self._floored(dyn)
        terms["rep"] = self._floored(self.latent.kl(stats, prior.detach()))
        terms["reward"] = self.reward_head(features).loss(batch.reward).mean()
        terms["continue"] = self.continue_head(features).loss((~batch.is_terminal).float()).mean()
        with torch.no_grad():
            metrics = {
                "kl": dyn.mean(),
                "prior_entropy": self.latent.entropy(prior).mean(),
                "posterior_entropy": self.latent.entropy(stats).mean(),
                "noise": self.latent.noise(prior, latent.stoch).mean(),
            }
        if self.config.global_prior:
            terms["global_prior"] = self.latent.kl(stats, self._standard_stats(stats)).mean()
        if self.config.overshooting > 1:
            further = self._overshoot(batch, latent, stats, prior)
            terms, metrics = terms | further.terms, metrics | further.metrics
        return latent, stats, Losses(terms, metrics)

    def _floored(self, kl: Float[Tensor, "B T"], weight: Float[Tensor, "B T"] | None = None) -> Float[Tensor, ""]:
        """Free nats: a KL below them costs the same and has no gradient."""
        if self.config.free_nats_after_mean:
            return mean(kl, weight).clamp_min(self.config.free_nats)
        return mean(kl.clamp_min(self.config.free_nats), weight)

    def _standard_stats(self, like: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S"]:
        """Statistics of unit normals, or of uniform categoricals."""
        stats = torch.zeros_like(like)
        if isinstance(self.latent, Gaussian):
            stats.chunk(2, -1)[1].fill_(math.log(math.expm1(1 - self.latent.min_std)))
        return stats

    def _overshoot(
        self, batch: Sequence, latent: RSSMLatent, stats: Float[Tensor, "B T S"], prior: Float[Tensor, "B T S"]
    ) -> Losses:
        """Terms and metrics of latent overshooting, see the card. Distances that no episode has room for are left out.

        Raises ``ValueError`` for windows too short for any.
        """
        if (length := batch.reward.shape[1]) < 3:
            raise ValueError(f"overshooting needs windows of at least 3 steps, not {length}: raise --replay.length")
        kls, pairs = zip(*self._open_loop_kl(batch, latent, stats, prior), strict=True)
        there = torch.stack([pair.amax() for pair in pairs])
        starts = torch.stack([F.pad(pair, (length - pair.shape[1], 0)) for pair in pairs]).mean(0)
        rewards = self.reward_head(self.features(latent).detach()).loss(batch.reward)
        terms = {
            "overshooting": mean(torch.stack(list(map(self._floored, kls, pairs))), there),
            "overshooting_reward": (starts * rewards).mean(),
        }
        return Losses(terms, {"overshooting_kl": mean(torch.stack(list(map(mean, kls, pairs))), there).detach()})

    def _open_loop_kl(
        self, batch: Sequence, latent: RSSMLatent, stats: Float[Tensor, "B T S"], prior: Float[Tensor, "B T S"]
    ) -> list[tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]]:
        """For each distance d = 2, 3, ...: KL(sg(posterior) || d-step prior), and 1 where it is within one episode.

        All N = T - d starts of a distance go together: entry i began at the posterior of step i and is at step i + d.
        """
        size, length = batch.reward.shape
        going_on, actions = self._past(batch)
        going_on, found = going_on.squeeze(-1), []
        deter, ahead, pair = latent.deter[:, 1:], prior[:, 1:], going_on[:, 1:]  # d = 1, as it was observed
        for d in range(2, min(self.config.overshooting, length - 1) + 1):
            stoch = self.latent.sample(ahead[:, :-1], None)
            past = (part.flatten(0, 1) for part in (deter[:, :-1], stoch, actions[:, d:]))
            deter = self.cell(*past).unflatten(0, (size, length - d))
            ahead, pair = self.prior(deter), pair[:, :-1] * going_on[:, d:]
            found.append((self.latent.kl(stats[:, d:].detach(), ahead), pair))
        return found

    def reward(self, latent: RSSMLatent) -> Float[Tensor, "*B"]:
        return self.reward_head(self.features(latent)).mean

    def continues(self, latent: RSSMLatent) -> Float[Tensor, "*B"]:
        return self.continue_head(self.features(latent)).mean

    def prediction_losses(
        self, latent: RSSMLatent, reward: Float[Tensor, "*B"], continues: Float[Tensor, "*B"]
    ) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
        features = self.features(latent)
        return self.reward_head(features).loss(reward), self.continue_head(features).loss(continues)

    @torch.no_grad()
    def decode(self, latent: RSSMLatent) -> UInt8[Tensor, "*B h w c"]:
        leading = latent.deter.shape[:-1]
        drawn = self.decoder(latent.deter.reshape(-1, self.deter_size), latent.stoch.reshape(-1, self.latent.size))
        return to_image(drawn).unflatten(0, leading)

    def pack(self, latent: RSSMLatent) -> UInt8[Tensor, "*B L"]:
        """Deter in bfloat16 (8 bits of precision), stoch exactly."""
        deter = latent.deter.detach().to(torch.bfloat16).contiguous().view(torch.uint8)
        return torch.cat([deter, self.latent.pack(latent.stoch)], -1)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> RSSMLatent:
        deter, stoch = packed.split([2 * self.deter_size, self.latent.packed_bytes], -1)
        return RSSMLatent(deter.contiguous().view(torch.bfloat16).float(), self.latent.unpack(stoch))
