"""POPLIN: plan with CEM around a policy network, or in its weights, and distil what was found into the policy.

Paper: Wang and Ba, "Exploring Model-based Planning with Policy Networks", arXiv 1906.08649; the frame is that of PETS
(``pets.py``), whose CEM searches entries e_1..e_H; raw actions are clipped to [-1, 1] in imagination as in the world:

    a-init     a_t = pi(s^_t; theta) + e_t, s^ imagined once with pi alone      e_t in [-1, 1]^A
    a-replan   a_t = pi(s_t; theta) + e_t, s imagined with e                    e_t in [-1, 1]^A
    p-sep      a_t = pi(s_t; theta + e_t)                                       e_t in R^D
    p-uni      a_t = pi(s_t; theta + e)                                         one e for all t

The bounds of residuals are PETS's bounds of actions, so pi = 0 is PETS, draw by draw. The next search begins with the
mean shifted and a 0 appended (p-uni: with the e executed), or with 0 where an episode or another theta begins.

``distill`` learns from features s and results a* of the last ``memory`` planned steps; every fifth step is held out. a*
is the action of a-init and a-replan, and pi(s; theta + e_1), not clipped, of p-sep and p-uni:

    bc    E |pi(s; theta') - a*|^2
    gan   discriminator: -E log D(s, a*) - E log(1 - D(s, f)) - entropy H(D);  policy: -E log D(s, f)
          f = pi(s; theta' + xi), xi as the planner first draws; p-sep and p-uni only
    avg   theta <- theta + mean of e_1 since the last time; p-sep and p-uni only, nothing has a gradient

theta' learns, theta plans; every ``distill_every`` updates theta <- theta'. ``imaginary`` best first entries of each
search are further a* (the paper's BC-AI, BC-PI, GAN-PI; 0: BC-AR, BC-PR, GAN-PR).

Deviations: a minibatch at each update of the world model, where the paper trains 100 epochs after each episode and
stops early; AVG as in the paper, its code replaces theta by the mean; decay of weights is decoupled. The world model
learns on, so features drift: old steps are forgotten, none is encoded again. Whitened by mean and std of what is
remembered, moving from one distillation to the next. WGAN is left out.

Memory: ``memory`` (F + (1 + imaginary) A) numbers; a search holds candidates x horizon x A or D (p-uni: x D).
Metrics: ``held_out`` |pi - a*|^2 and ``distance``, mean |clipped pi - clipped a*|, on steps held out, 0 while there are
none; ``remembered`` steps; ``distillations`` so far.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor, nn

from agents.base import Agent, Carry, Planning, frozen
from agents.imagination import Move, imagined_returns, move_particles
from agents.memory import Ring
from agents.pets import check_particles, propagate
from agents.planning import CEM, Found, Plan, Planner, RandomShooting, Score, SearchSpace, chunked
from agents.planning.noise import cut
from agents.planning.search import where
from worldmodels.base import Ensembled, Latent, Losses, Rewarded, Sequence, WorldModel, map_latent
from worldmodels.distributions import random_normal

WHITENING_RATE = 0.1  # share of the new statistics in the next ones
WHITENING_FLOOR = 0.1  # least std to divide by: features that hardly move yet may move more tomorrow

RawActions = Callable[[Latent, int], Tensor]  # actions [P, M, A] before clipping, from latents [P, M] at step t


@dataclass(frozen=True, kw_only=True)
class Config:
    variant: Literal["a-init", "a-replan", "p-sep", "p-uni"]
    propagation: Literal["model", "E", "TS1", "TSinf", "DS", "MM"]  # model: its ``imagine``; else as in PETS
    planner: Planner  # its horizon is that of imagination; stds are of actions or of weights
    particles: int  # sampled futures of each candidate, averaged
    discount: float
    stop_at_end: bool  # rewards count as far as the episode is predicted to go on; the paper counts all
    rows: int  # latents imagined at once, at most; bounds the memory, changes nothing else
    bf16_rows: int = 0  # so many at once are imagined in bf16 where hardware has it; 0: none, as in runs saved before
    hidden: tuple[int, ...]  # sizes of the policy's hidden layers; []: linear
    noise_on: Literal["all", "last"]  # layers whose weights p-sep and p-uni search
    control: Literal["plan", "policy"]  # how to act when not exploring
    distill: Literal["bc", "avg", "gan"]
    imaginary: int  # of each search, the first entries of so many best candidates are learned from too
    memory: int  # planned steps to learn from
    batch: int  # of them in one update
    distill_every: int  # updates between two policies to plan with
    discriminator: tuple[int, ...]  # sizes of the hidden layers of gan's
    entropy: float  # weight of the entropy of gan's discriminator

    def __post_init__(self) -> None:
        for name in ("particles", "rows", "memory", "batch", "distill_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if min(self.hidden + self.discriminator, default=1) < 1:
            raise ValueError("hidden and discriminator are sizes of layers, 1 or more each")
        if self.distill != "bc" and self.variant.startswith("a-"):
            raise ValueError(f"distill must be bc with variant {self.variant}: {self.distill} needs searched weights")
        if self.bf16_rows < 0:
            raise ValueError(f"bf16_rows must be 0 or more, not {self.bf16_rows}")
        if self.imaginary < 0 or (self.imaginary and self.distill == "avg"):
            raise ValueError(f"imaginary must be 0 or more, 0 with distill avg, not {self.imaginary}")

    def build(self, model: WorldModel) -> "POPLIN":
        return POPLIN(self, model)


class PolicyNet(nn.Module):
    """A tanh MLP from features to unbounded actions whose weights may be other ones for each candidate.

    ``dim`` is D, the length of what is added to weights and biases, layer by layer, from layer ``fixed`` on. At first
    the weights of a hidden unit have length 1, those of an action 0.01 (normc).
    """

    mean: Tensor
    std: Tensor
    whitened: Tensor

    def __init__(self, features: int, actions: int, hidden: tuple[int, ...], noise_on: str):
        super().__init__()
        linear = [nn.Linear(a, b) for a, b in pairwise((features, *hidden, actions))]
        for i, layer in enumerate(linear):
            layer.weight.data = F.normalize(torch.randn(layer.weight.shape)) * (1.0 if i < len(hidden) else 0.01)
            nn.init.zeros_(layer.bias)
        self.layers, self.fixed = nn.ModuleList(linear), len(hidden) if noise_on == "last" else 0
        self.shapes = [layer.weight.shape for layer in linear[self.fixed :]]
        self.sizes = [p.numel() for layer in linear[self.fixed :] for p in (layer.weight, layer.bias)]
        self.dim = sum(self.sizes)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("whitened", torch.tensor(False))

    def white(self, features: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        return (features.float() - self.mean) / self.std

    @torch.no_grad()
    def adapt(self, features: Float[Tensor, "N F"]) -> None:
        """Whiten by statistics nearer to these."""
        rate = torch.where(self.whitened, WHITENING_RATE, 1.0)
        self.mean.lerp_(features.mean(0), rate)
        self.std.lerp_(features.std(0, correction=0).clamp_min(WHITENING_FLOOR), rate)
        self.whitened.fill_(True)

    def forward(self, features: Float[Tensor, "*B F"], omega: Float[Tensor, "M D"] | None = None) -> Tensor:
        """Actions ``[*B, A]``; with ``omega``, of features ``[P, M, F]``, candidate m by theta + omega_m."""
        x, added = self.white(features), [] if omega is None else self.parts(omega)
        for i, layer in enumerate(self.layers):
            y = layer(x)
            if omega is not None and i >= self.fixed:
                weight, bias = added[i - self.fixed]
                y = y + bias + torch.einsum("pmi,moi->pmo", x, weight)
            x = y.tanh() if i < len(self.layers) - 1 else y
        return x.float()

    def parts(self, omega: Float[Tensor, "M D"]) -> list[tuple[Tensor, Tensor]]:
        """What each searched layer gets: weights [M, O, I] and biases [M, O]."""
        flat = omega.split(self.sizes, -1)
        return [(w.unflatten(-1, shape), b) for w, b, shape in zip(flat[::2], flat[1::2], self.shapes, strict=True)]

    @torch.no_grad()
    def add(self, omega: Float[Tensor, " D"]) -> None:
        """theta <- theta + omega."""
        for parameter, part in zip(self.layers[self.fixed :].parameters(), omega.split(self.sizes), strict=True):
            parameter += part.view_as(parameter)


class Carried(NamedTuple):
    """A ``Plan`` of entries, the policy it is for, and for ``collected`` what the last search found."""

    mean: Float[Tensor, "B S X"]
    elites: Float[Tensor, "B K S X"]
    begun: Bool[Tensor, " B"]
    generation: Int64[Tensor, " B"]
    targets: Float[Tensor, "B G A"]  # a* and those of ``imaginary`` candidates
    omega: Float[Tensor, "B D"]  # executed; D = 0 unless AVG asks for it


class Noted:
    """A score that notes the first entries of the best it has seen."""

    def __init__(self, score: Score, count: int, plan: Plan):
        self.score, self.entries = score, plan.mean[:, :1].repeat(1, count, 1)
        self.scores = plan.mean.new_full((len(plan.mean), count), -torch.inf)

    def __call__(self, candidates: Float[Tensor, "B N S X"]) -> Float[Tensor, "B N"]:
        scores = self.score(candidates)
        if count := self.scores.shape[1]:
            seen = torch.where(scores.isfinite(), scores, -torch.inf).detach()
            self.scores, best = torch.cat([self.scores, seen], 1).topk(count, 1)
            entries = torch.cat([self.entries, candidates[:, :, 0].detach()], 1)
            self.entries = torch.take_along_dim(entries, best[..., None], 1)
        return scores


class POPLIN(Agent, Planning):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)
    generation: Tensor
    omega_sum: Tensor

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(model)
        if self.spaces.discrete:
            why = "discrete ones cannot be added up and clipped: choose another --agent, such as planet"
            raise ValueError(f"POPLIN needs a world model that is of continuous actions; {why}")
        if config.propagation != "model":
            if not isinstance(model, Ensembled):
                why = f"{type(model).__name__} is not: choose another --world-model, or --agent.propagation model"
                raise ValueError(f"propagation {config.propagation} needs a world model that is Ensembled; {why}")
            check_particles(config.particles, config.propagation, model)
        features, actions = model.feature_dim, self.spaces.action_dim
        self.config, self.planner, self.horizon = config, config.planner, config.planner.horizon
        self.scoring = {name: getattr(config, name) for name in ("particles", "discount", "stop_at_end", "bf16_rows")}
        self.scoring["horizon"] = self.horizon
        self.residual, self.futures_at_once = config.variant.startswith("a-"), max(1, config.rows // config.particles)
        self.policy, self.acting = (PolicyNet(features, actions, config.hidden, config.noise_on) for _ in range(2))
        self.acting.requires_grad_(False).load_state_dict(self.policy.state_dict())
        self.space = SearchSpace(actions, False) if self.residual else SearchSpace(self.policy.dim, False, None)
        if config.variant == "p-uni":
            self.planner = replace(config.planner, horizon=1)
        self.planner.initial(1, self.space, torch.device("cpu"))  # refuses what cannot be searched, before the run
        if config.distill == "avg":
            self.policy.requires_grad_(False)
        if config.distill == "gan":
            self.discriminator = make_discriminator(features + actions, config.discriminator)
        # Adam does not care for the scale of a term that has an optimiser of its own
        self.scales = {"bc": {"policy": 1.0}, "avg": {}, "gan": {"policy": 1.0, "discriminator": 1.0}}[config.distill]
        self.ring = Ring(config.memory, features, (1 + config.imaginary, actions))
        self.register_buffer("generation", torch.tensor(0))
        self.register_buffer("omega_sum", torch.zeros(self.policy.dim if config.distill == "avg" else 0))

    def initial(self, batch: int, device: torch.device) -> Carried:
        targets = torch.zeros(batch, *self.ring.targets.shape[1:], device=device)
        omega = torch.zeros(batch, len(self.omega_sum), device=device)
        generation = self.generation.to(device).repeat(batch)
        return Carried(*self.planner.initial(batch, self.space, device), generation, targets, omega)

    def move(self, model: WorldModel, generator: Generator | None) -> Move:
        """How the particles of a candidate go on."""
        if self.config.propagation == "model":
            return move_particles(model, generator)
        assert isinstance(model, Ensembled)  # ``__init__``
        return propagate(model, self.config.propagation, generator)

    def raw(self, features: Float[Tensor, "P M F"], entry: Float[Tensor, "M X"]) -> Float[Tensor, "P M A"]:
        """What the policy does with an entry of each of M candidates, before clipping."""
        return self.acting(features) + entry if self.residual else self.acting(features, entry)

    def behave(
        self, model: WorldModel, entries: Float[Tensor, "M S X"], base: Float[Tensor, "B H A"] | None
    ) -> RawActions:
        """What M candidates do in latents ``[P, M]``; each of B rows has M / B of them."""
        repeated = None if base is None else base.repeat_interleave(len(entries) // len(base), 0)

        def raw(latent: Latent, t: int) -> Tensor:
            entry = entries[:, min(t, entries.shape[1] - 1)]  # p-uni has but one
            if repeated is None:
                return self.raw(model.features(latent), entry)
            return (repeated[:, t] + entry).expand(len(latent[0]), -1, -1)

        return raw

    def unroll(
        self, model: WorldModel, latent: Latent, raw: RawActions, generator: Generator | None
    ) -> Float[Tensor, "B H A"]:
        """The raw actions of one imagined future of each latent ``[B]``: by the mean with E, else by ``imagine``."""
        move = self.move(model, generator) if self.config.propagation == "E" else move_particles(model, generator)
        actions, latent = [], map_latent(lambda part: part[None], latent)
        for t in range(self.horizon):
            actions.append(raw(latent, t))
            latent = move(latent, actions[-1].clamp(-1, 1))
        return torch.stack(actions, 2)[0]

    @torch.no_grad()
    def search(
        self, model: WorldModel, latent: Latent, carry: Carried, generator: Generator | None
    ) -> tuple[Found, Float[Tensor, "B H A"] | None, Float[Tensor, "B E X"]]:
        """What to do from each latent ``[B]``; a-init: the raw actions of pi alone; first entries of the best seen."""
        config, base = self.config, None
        if config.variant == "a-init":
            base = self.unroll(model, latent, lambda now, t: self.acting(model.features(now)), generator)
        move = self.move(model, generator)

        def score(entries: Float[Tensor, "B N S X"]) -> Float[Tensor, "B N"]:
            raw = self.behave(model, entries.flatten(0, 1), base)
            act = lambda now, t: raw(now, t).clamp(-1, 1)  # noqa: E731
            return imagined_returns(model, latent, act, move, futures=entries.shape[1], **self.scoring)

        fresh, other = self.initial(len(carry.mean), carry.mean.device), carry.generation != self.generation
        mean, elites = where(other, fresh.mean, carry.mean), where(other, fresh.elites, carry.elites)
        plan = Plan(mean, elites, carry.begun & ~other)
        noted = Noted(chunked(score, self.futures_at_once), config.imaginary, plan)
        found = self.planner(noted, plan, self.space, generator)
        forgets = isinstance(self.planner, CEM) and not self.planner.warm_start
        if config.variant == "p-uni" and not forgets:
            found = found._replace(plan=found.plan._replace(mean=found.actions))
        known = noted.scores.isfinite()[..., None]
        return found, base, torch.where(known, noted.entries, found.actions[:, :1])

    @torch.no_grad()
    def plan(
        self, model: WorldModel, latent: Latent, carry: Carry, generator: Generator | None
    ) -> Float[Tensor, "B H A"]:
        found, base, _ = self.search(model, latent, carry, generator)
        return self.unroll(model, latent, self.behave(model, found.actions, base), generator).clamp(-1, 1)

    @torch.no_grad()
    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carried]:
        features = model.features(latent)
        if self.config.control == "policy" and not explore:
            return self.acting(features).clamp(-1, 1), carry
        found, _, tried = self.search(model, latent, carry, generator)
        entries = torch.cat([found.actions[:, :1], tried], 1)  # the one executed first
        repeated = features.repeat_interleave(entries.shape[1], 0)
        targets = self.raw(repeated[None], entries.flatten(0, 1))[0].unflatten(0, entries.shape[:2])
        clipped = targets.clamp(-1, 1)
        generation, omega = self.generation.repeat(len(entries)), entries[:, 0, : len(self.omega_sum)]
        return clipped[:, 0], Carried(*found.plan, generation, clipped if self.residual else targets, omega)

    def collected(
        self, features: Float[Tensor, "B F"], action: Float[Tensor, "B A"], carry: Carry, is_first: Bool[Tensor, " B"]
    ) -> None:
        self.ring.add(features, carry.targets)
        self.omega_sum += carry.omega.sum(0)

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        features, targets, valid = self.ring.draw(self.config.batch, held_out=False)
        terms = {}
        if self.config.distill == "bc":
            terms["policy"] = valid * (self.policy(features)[:, None] - targets).square().sum(-1).mean()
        if self.config.distill == "gan":
            terms = {name: valid * term for name, term in self.play(features, targets).items()}
        # last, and with gradients on: autocast would otherwise hand casts without a gradient to the terms above
        features, targets, valid = self.ring.draw(self.config.batch, held_out=True)
        action, target = self.policy(features).detach(), targets[:, 0]
        error, distance = (action - target).square().sum(-1), (action.clamp(-1, 1) - target.clamp(-1, 1)).abs()
        metrics = {"held_out": valid * error.mean(), "distance": valid * distance.mean()}
        metrics |= {"remembered": self.ring.written.clamp_max(self.config.memory).float()}
        return Losses(terms, metrics | {"distillations": self.generation.float()})

    def play(self, features: Float[Tensor, "N F"], targets: Float[Tensor, "N G A"]) -> dict[str, Tensor]:
        """The two players' losses, each of gradient to itself alone."""
        assert not isinstance(self.planner, RandomShooting)  # cannot search weights
        xi = self.planner.initial_std * cut(random_normal((len(features), self.policy.dim), features, None))
        fake = self.policy(features[None], xi)[0]
        seen = self.policy.white(features)
        with frozen(self.discriminator):
            fooled = self.discriminator(torch.cat([seen, fake], -1)).float()
        real = torch.cat([seen[:, None].expand(-1, targets.shape[1], -1), targets], -1)
        true, false = (self.discriminator(x).float() for x in (real, torch.cat([seen, fake.detach()], -1)))
        logits = torch.cat([true.flatten(), false.flatten()])
        entropy = (F.softplus(logits) - logits.sigmoid() * logits).mean()
        told_apart = F.softplus(-true).mean() + F.softplus(false).mean()
        return {"policy": F.softplus(-fooled).mean(), "discriminator": told_apart - self.config.entropy * entropy}

    def after_update(self, updates: int) -> None:
        if updates % self.config.distill_every or not self.ring.written:
            return
        seen = self.ring.features[: int(self.ring.written)]
        if self.config.distill == "avg":
            self.policy.add(self.omega_sum / self.ring.written)
            self.policy.adapt(seen)  # at once: nothing would learn to make up for it
            self.omega_sum.zero_()
            self.ring.written.zero_()
        self.acting.load_state_dict(self.policy.state_dict())
        if self.config.distill != "avg":
            self.policy.adapt(seen)
        self.generation += 1


def make_discriminator(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """A leaky-ReLU MLP to one logit: is this what the planner does?"""
    layers = [part for a, b in pairwise((inputs, *hidden)) for part in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], 1))
