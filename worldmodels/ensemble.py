"""An RSSM, and K further priors that learn the same step from other shares of experience: how sure is the model?

Papers: bootstrap ensembles of probabilistic networks, PETS (Chua et al., 2018, arXiv 1805.12114); ensembles of priors
over one representation, LOMPO (Rafailov et al., 2021, 2012.11547); block bootstrap (Kuensch, 1989).

    deter_t   = cell(deter_{t-1}, stoch_{t-1}, action_{t-1})      of the RSSM, as is its posterior
    member k:   stoch_t ~ p_k(. | deter_t)
    members   = sum_k mean_t weight_k(t) KL(sg(posterior_t) || p_k(. | sg(deter_t)))

No gradient leaves the members: the RSSM learns exactly what it learns without them, and ``rssm`` is one, tensor by
tensor. (An optimiser that clips both by one global norm still lets the members' share shrink the RSSM's step.) The
members have the norm and activation of the RSSM's prior.

Gaussian members have PETS's log variance between learned bounds, which begin at -10 and 0.5, in place of the latent's
softplus and ``min_std``; term ``bounds`` = sum(upper) - sum(lower), PETS's weight of it is 0.01. Categorical members
have logits like the latent's own, and no such term.

Bootstrap. Member k gives all steps of a block of ``bootstrap_block`` consecutive numbers (``Sequence.step``) the same
weight, drawn from Poisson(1) by a hash of k and the block's number: how often the block is in member k's resample.
Blocks, since steps that follow one another are almost the same step. No state: a block has its weight at every replay,
on every device and after a resume. The mean over the batch is a plain one, not divided by the sum of the weights: its
expectation is the loss on member k's whole resample, and a batch may hold nothing that is in it.

Rewards, where ``rewards`` is not 0: as many heads like the RSSM's own, on sg(features), each with the bootstrap of the
member of its number (STEVE, Buckman et al., 2018, arXiv 1807.01675); term ``member_rewards``, their sum.

Deviations. PETS resamples single transitions at every training call. Its loss is the mean over dimensions of twice the
negative log-likelihood of a sample; here it is the KL of the whole posterior, summed over dimensions, in nats. Its
decay of weights is the optimiser's matter here. Members share the memory, and without ``rewards`` the reward head, so
what those do not know shows in no disagreement. DS and MM redraw the memory too, each number by itself.

Metric: ``member_spread``, ``disagreement`` of the batch's one-step predictions. At zero the members have collapsed.

Cost of a member, relative to its RSSM of preset cpu (one CPU thread, 16 windows of 16 steps, forward and backward):
ensemble-v3 3.5 % of the parameters and 0.6 % of the time, ensemble-v1 9.2 % and 1.4 %. A step of ``imagine_members``
takes 1.02 and 1.1 times that of ``imagine`` for as many latents. At the sizes of the papers: 8 % (12m) and 1.6 % of the
parameters.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor, nn

from worldmodels import rssm
from worldmodels.base import (
    Decoding,
    Ensembled,
    Losses,
    Reparameterised,
    Rewarded,
    Sequence,
    Spaces,
    Storing,
    WorldModel,
)
from worldmodels.latents import Gaussian, bounded_log_variance, redraw_normal
from worldmodels.layers import MemberMLP
from worldmodels.rssm import RSSM, RSSMLatent


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    num: int
    units: int
    layers: int
    bootstrap_block: int  # steps that are resampled together; 0: no bootstrap, members differ by their beginning alone
    rewards: int = 0  # heads for rewards beside the RSSM's own one (STEVE: 4); 0: none, as in models saved before
    scales: dict[str, float]  # weight of the members' loss terms

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ValueError(f"num must be at least 2, got {self.num}: one member has none to disagree with")
        if self.bootstrap_block < 0:
            raise ValueError(f"bootstrap_block must be at least 0, got {self.bootstrap_block}")
        if self.rewards < 0:
            raise ValueError(f"rewards must be at least 0, got {self.rewards}")


@dataclass(frozen=True, kw_only=True)
class Config:
    rssm: rssm.Config
    members: MemberConfig

    @property
    def scales(self) -> dict[str, float]:
        """Weight of every loss term; that of ``bounds`` waits where the RSSM's latent is not one that has them."""
        own = self.members.scales
        if not isinstance(self.rssm.latent, Gaussian):
            own = {name: scale for name, scale in own.items() if name != "bounds"}
        return self.rssm.scales | own

    def build(self, spaces: Spaces) -> "EnsembleRSSM":
        return EnsembleRSSM(self, spaces)


class Members(nn.Module):
    """K networks from memory to statistics as ``latents.Categories`` and ``latents.Normals`` read them."""

    def __init__(self, config: Config):
        super().__init__()
        own, like = config.members, config.rssm
        self.network = MemberMLP(
            own.num,
            like.cell.deter,
            own.units,
            own.layers,
            like.latent.stats_size,
            norm=like.norm,
            activation=like.activation,
        )
        self.bounds = None
        if isinstance(like.latent, Gaussian):
            self.bounds = nn.Parameter(torch.tensor([[-10.0], [0.5]]).repeat(1, like.latent.variables))

    def forward(self, deter: Float[Tensor, "K N D"]) -> Float[Tensor, "K N S"]:
        stats = self.network(deter)
        if self.bounds is None:
            return stats
        mean, raw = stats.float().chunk(2, -1)
        return torch.cat([mean, bounded_log_variance(raw, *self.bounds)], -1)


class EnsembleRSSM(WorldModel, Rewarded, Decoding, Storing, Reparameterised, Ensembled):
    """See the card at the top of the file. What is not of the members is the RSSM's.

    ``member_stats``: logits as the categorical latent's own, or mean and log variance (``latents.Normals``).
    ``disagreement``: categorical, the Jensen-Shannon divergence in nats, summed over the variables; Gaussian, the
    variance of the members' means, mean over the variables, in squared units of the latent.
    ``imagine_mean``: stoch is the averaged probabilities, not one-hot, or the mean of the means.
    """

    def __init__(self, config: Config, spaces: Spaces):
        super().__init__()
        self.config, self.spaces = config, spaces
        self.rssm = RSSM(config.rssm, spaces)
        self.feature_dim, self.packed_bytes = self.rssm.feature_dim, self.rssm.packed_bytes
        self.num_members = config.members.num
        self.members = Members(config)
        self.predictions = config.rssm.latent.members()
        rewards = config.members.rewards
        self.num_rewards = max(1, rewards)
        self.reward_heads = config.rssm.reward.build_members(rewards, self.feature_dim) if rewards else None

    def loss(self, batch: Sequence) -> tuple[RSSMLatent, Losses]:
        """As the RSSM's, with the members' terms; raises ``ValueError`` where a bootstrap lacks ``batch.step``."""
        weight = self._weight(batch, max(self.num_members, self.num_rewards))
        latent, stats, (terms, metrics) = self.rssm.learn(batch)
        predicted = self.members(self._each(latent.deter.detach().flatten(0, 1)))
        kl = self.predictions.kl(stats.detach().flatten(0, 1), predicted)
        terms = terms | {"members": (weight[: self.num_members] * kl).sum(0).mean()}
        if self.members.bounds is not None:
            low, high = self.members.bounds.sum(-1)
            terms["bounds"] = high - low
        if self.reward_heads is not None:
            heads = self.reward_heads(self.features(latent).detach().flatten(0, 1))
            resampled = weight[: self.num_rewards] * heads.loss(batch.reward.flatten().expand_as(heads.mean))
            terms["member_rewards"] = resampled.sum(0).mean()
        with torch.no_grad():
            spread = self.predictions.disagreement(predicted).mean()
        return latent, Losses(terms, metrics | {"member_spread": spread})

    def _weight(self, batch: Sequence, members: int) -> Float[Tensor, "K N"]:
        block = self.config.members.bootstrap_block
        if not block:
            return torch.ones(members, batch.reward.numel(), device=batch.reward.device)
        if batch.step is None:
            raise ValueError("a bootstrap needs Sequence.step to know its blocks; without: members.bootstrap_block 0")
        return bootstrap_weights(members, batch.step.flatten() // block)

    def _each(self, deter: Float[Tensor, "*B D"]) -> Float[Tensor, "K *B D"]:
        return deter.expand(self.num_members, *deter.shape)

    def _remember(self, latent: RSSMLatent, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B D"]:
        """The next memory, for any leading dimensions."""
        cell = self.rssm.cell
        deter = cell(latent.deter.flatten(0, -2), latent.stoch.flatten(0, -2), cell.embed_action(action).flatten(0, -2))
        return deter.unflatten(0, action.shape[:-1])

    def _predict(self, deter: Float[Tensor, "K *B D"]) -> Float[Tensor, "K *B S"]:
        return self.members(deter.flatten(1, -2)).unflatten(1, deter.shape[1:-1])

    def imagine_members(
        self, latent: RSSMLatent, action: Float[Tensor, "K *B A"], generator: Generator | None = None
    ) -> RSSMLatent:
        deter = self._remember(latent, action)
        return RSSMLatent(deter, self.predictions.sample(self._predict(deter), generator))

    def imagine_mean(
        self, latent: RSSMLatent, action: Float[Tensor, "*B A"], generator: Generator | None = None
    ) -> RSSMLatent:
        deter = self._remember(latent, action)
        return RSSMLatent(deter, self.predictions.mean(self._predict(self._each(deter))))

    @torch.no_grad()
    def match_moments(self, latent: RSSMLatent, generator: Generator | None = None) -> RSSMLatent:
        return RSSMLatent(redraw_normal(latent.deter, generator), self.predictions.redraw(latent.stoch, generator))

    def member_stats(self, latent: RSSMLatent, action: Float[Tensor, "*B A"]) -> Float[Tensor, "K *B S"]:
        return self._predict(self._each(self._remember(latent, action)))

    def member_moments(self, stats: Float[Tensor, "K *B S"]) -> tuple[Float[Tensor, "K *B Z"], Float[Tensor, "K *B Z"]]:
        return self.predictions.moments(stats)

    def member_log_prob(self, stats: Float[Tensor, "K *B S"], latent: RSSMLatent) -> Float[Tensor, "K *B"]:
        return self.predictions.log_prob(stats, latent.stoch)

    def one_vs_rest(self, stats: Float[Tensor, "K *B S"]) -> Float[Tensor, "K *B"]:
        return self.predictions.one_vs_rest(stats)

    def disagreement(self, latent: RSSMLatent, action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        return self.predictions.disagreement(self.member_stats(latent, action))

    def initial(self, batch: int) -> RSSMLatent:
        return self.rssm.initial(batch)

    def observe(
        self,
        latent: RSSMLatent,
        prev_action: Float[Tensor, "B A"],
        obs: UInt8[Tensor, "B h w c"],
        is_first: Bool[Tensor, " B"],
        generator: Generator | None = None,
    ) -> RSSMLatent:
        return self.rssm.observe(latent, prev_action, obs, is_first, generator)

    def imagine(
        self, latent: RSSMLatent, action: Float[Tensor, "B A"], generator: Generator | None = None
    ) -> RSSMLatent:
        """By the RSSM's own prior, which no member is."""
        return self.rssm.imagine(latent, action, generator)

    def reenact(self, latent: RSSMLatent, action: Float[Tensor, "B A"], observed: RSSMLatent) -> RSSMLatent:
        return self.rssm.reenact(latent, action, observed)

    def rollout(
        self, latent: RSSMLatent, actions: Float[Tensor, "B H A"], generator: Generator | None = None
    ) -> RSSMLatent:
        return self.rssm.rollout(latent, actions, generator)

    def filter(self, batch: Sequence, generator: Generator | None = None) -> RSSMLatent:
        return self.rssm.filter(batch, generator)

    def features(self, latent: RSSMLatent) -> Float[Tensor, "*B F"]:
        return self.rssm.features(latent)

    def reward(self, latent: RSSMLatent) -> Float[Tensor, "*B"]:
        return self.rssm.reward(latent)

    def reward_members(self, latent: RSSMLatent) -> Float[Tensor, "R *B"]:
        return self.reward(latent)[None] if self.reward_heads is None else self.reward_heads(self.features(latent)).mean

    def continues(self, latent: RSSMLatent) -> Float[Tensor, "*B"]:
        return self.rssm.continues(latent)

    def decode(self, latent: RSSMLatent) -> UInt8[Tensor, "*B h w c"]:
        return self.rssm.decode(latent)

    def pack(self, latent: RSSMLatent) -> UInt8[Tensor, "*B L"]:
        return self.rssm.pack(latent)

    def unpack(self, packed: UInt8[Tensor, "*B L"]) -> RSSMLatent:
        return self.rssm.unpack(packed)


# P(X <= n) of Poisson(1), in units of 2^-32: integers, so that every device draws the same
POISSON = [int(2**32 * sum(math.exp(-1) / math.factorial(i) for i in range(n + 1))) for n in range(12)]


def bootstrap_weights(members: int, block: Int64[Tensor, " N"]) -> Float[Tensor, "K N"]:
    """Poisson(1) weights: whole numbers of mean 1, functions of the member and the block's number alone."""
    keys = scramble(torch.arange(1, members + 1, device=block.device))
    drawn = scramble(keys[:, None] ^ block)
    return torch.bucketize(drawn, torch.tensor(POISSON, device=block.device), right=True).float()


def scramble(x: Int64[Tensor, "*B"]) -> Int64[Tensor, "*B"]:
    """A permutation of the 32-bit numbers that looks random (lowbias32 of C. Wellons' hash-prospector)."""
    low = 0xFFFFFFFF  # products overflow 64 bits and keep these
    x = x & low
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = ((x ^ (x >> 15)) * 0x846CA68B) & low
    return x ^ (x >> 16)
