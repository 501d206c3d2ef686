"""Expert iteration: a slow expert plans in the model, a fast apprentice imitates it, and the expert begins with that.

Paper: Anthony, Tian, Barber, "Thinking Fast and Slow with Deep Learning and Tree Search", 2017, arXiv 1705.08439.
The expert is any planner:

    tree         a search guided by the apprentice's policy and value; w: share of visits, or Gumbel's improved policy
    sequences    a planner of ``mpc.py``, whose futures end in the apprentice's value; w: 1 for the action taken
    apprentice   -sum_k w_k log pi(a_k | s) - entropy H[pi],   of the last ``memory`` steps that the expert acted in
    critic       -log p(z_t | s_t),   z_t = sum_{i<n} gamma^i r_{t+i+1} + gamma^n v_{t+n},   of replayed sequences

The expert acts when collecting, either of them at evaluation (``control``). A search for sequences begins with what
the apprentice would do in imagination (``start: apprentice``; random shooting begins nowhere); a tree has it as its
prior.

Deviations: online, with an update every few steps, where the paper fits its network anew in each iteration; pUCT where
the paper adds w_a pi / (n + 1) to UCT. Every step that was planned is learned from, with the features of its time: the
world model learns on, so features drift and old steps are forgotten, where the paper keeps all. Sequence searches,
continuous actions and the model are not the paper's. Actions of sequences beyond +-0.99 are learned as +-0.99: a
squashed normal has no density at the ends.

Metrics: ``held_out`` cross-entropy with the expert on steps not learned from and ``agreement``, how often the likeliest
action is the expert's favourite there (of continuous ones: mean |difference|), 0 while there are none; ``entropy``;
``remembered`` steps; ``value`` and ``return``, means.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from agents.actor import ActorCritic, add_noise
from agents.apprentice import Advice, ApprenticeConfig, TreeExpert, imitation, policy_of
from agents.base import Carry, Simulating
from agents.imagination import dream, move_particles
from agents.memory import Ring
from agents.mpc import Scoring, search_sequences
from agents.planning import Plan, SearchSpace
from agents.planning.search import first_plan, reopened
from agents.returns import n_step_return
from agents.soft import drawn
from worldmodels.base import Latent, Losses, Sequence, Spaces, WorldModel
from worldmodels.distributions import OneHot

INSIDE = 0.99  # greatest continuous action of a sequence to imitate


@dataclass(frozen=True, kw_only=True)
class SequenceExpert(Scoring):
    """A planner of action sequences; imagined futures end in the apprentice's value."""

    type: Literal["sequences"]
    start: Literal["apprentice", "plan"]  # a search begins with the apprentice's actions, or as the planner does

    def compared(self, spaces: Spaces) -> int:
        """K, the actions in an ``Advice``."""
        return 1

    @torch.no_grad()
    def __call__(
        self,
        apprentice: ActorCritic,
        model: WorldModel,
        latent: Latent,
        plan: Plan,
        space: SearchSpace,
        discount: float,
        generator: Generator | None,
    ) -> tuple[Advice, Plan]:
        """Advice on latents ``[B]``, and what the next search begins with."""
        if self.start == "apprentice":
            plan = plan._replace(mean=self.foretold(apprentice, model, latent, space, generator))
        move, value = move_particles(model, generator), lambda features: apprentice.critic(features).mean
        found = search_sequences(self, model, latent, plan, space, move, generator, discount=discount, value=value)
        action = found.actions[:, :1]
        return Advice(action[:, 0], action, torch.ones_like(action[..., 0]), found.score), found.plan

    def foretold(
        self,
        apprentice: ActorCritic,
        model: WorldModel,
        latent: Latent,
        space: SearchSpace,
        generator: Generator | None,
    ) -> Float[Tensor, "B H A"]:
        """What the apprentice would do in one imagined future, as the mean of a search."""
        act = lambda features: policy_of(apprentice, features).mode  # noqa: E731
        dreamed = dream(model, act, latent, self.planner.horizon, generator)
        policy = policy_of(apprentice, dreamed.features[:, :-1])
        return reopened(policy.log_probs.exp() if isinstance(policy, OneHot) else policy.mode, space)


@dataclass(frozen=True, kw_only=True)
class Config(ApprenticeConfig):
    expert: TreeExpert | SequenceExpert
    memory: int  # planned steps to learn from
    batch: int  # of them in one update

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1 or self.batch < 1:
            raise ValueError(f"memory and batch must be 1 or more, not {self.memory} and {self.batch}")

    def build(self, model: WorldModel) -> "ExIt":
        return ExIt(self, model)


class Carried(NamedTuple):
    """A ``Plan``, empty for trees, and for ``collected`` what the expert said last."""

    mean: Float[Tensor, "B H A"]
    elites: Float[Tensor, "B E H A"]
    begun: Bool[Tensor, " B"]
    labels: Float[Tensor, "B K A1"]  # actions, and the weight of each as a last entry


class ExIt(ActorCritic, Simulating):
    """See the card at the top of the file."""

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config, self.scales = config, config.scales
        self.space = SearchSpace(self.spaces.action_dim, self.spaces.discrete)
        shape = (config.expert.compared(self.spaces), self.spaces.action_dim + 1)
        self.ring = Ring(config.memory, model.feature_dim, shape)
        self.initial(1, torch.device("cpu"))  # refuses what cannot be searched, before the run

    @property
    def simulations(self) -> int:
        expert = self.config.expert
        return expert.search.simulations if isinstance(expert, TreeExpert) and self.config.control == "expert" else 0

    def initial(self, batch: int, device: torch.device) -> Carried:
        expert, labels = self.config.expert, torch.zeros(batch, *self.ring.targets.shape[1:], device=device)
        if isinstance(expert, TreeExpert):
            return Carried(*first_plan(batch, 0, 0, self.space, device), labels)
        return Carried(*expert.planner.initial(batch, self.space, device), labels)

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carried]:
        config = self.config
        if config.control == "apprentice" and not explore:
            return super().act(model, latent, carry, explore=explore, generator=generator)
        plan = Plan(*carry[:3])
        if isinstance(config.expert, TreeExpert):
            advice = config.expert(self, model, latent, config.discount, explore=explore, generator=generator)
        else:
            advice, plan = config.expert(self, model, latent, plan, self.space, config.discount, generator)
        action, noise = advice.action, config.actor.exploration_noise
        if explore and noise:
            action = add_noise(action, self.spaces.discrete, noise, generator)
        labels = torch.cat([advice.actions, advice.weights.unsqueeze(-1)], -1)
        return action if self.spaces.discrete else action.clamp(-1, 1), Carried(*plan, labels)

    def collected(
        self, features: Float[Tensor, "B F"], action: Float[Tensor, "B A"], carry: Carry, is_first: Bool[Tensor, " B"]
    ) -> None:
        self.ring.add(features, carry.labels)

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        config, features = self.config, model.features(latent).detach()
        critic = self.critic(features)
        alive = (~batch.is_terminal).float()
        value = critic.mean.detach()
        returns = n_step_return(batch.reward, config.discount * alive, batch.is_last, value, config.return_steps)
        imitated, entropy, _ = self.imitated(held_out=False)
        terms = {
            "actor": imitated - config.entropy * entropy,
            "critic": (alive * critic.loss(returns)).sum() / alive.sum().clamp_min(1),
        }
        held_out, _, agreement = self.imitated(held_out=True)
        metrics = {"held_out": held_out.detach(), "agreement": agreement, "entropy": entropy.detach()}
        metrics |= {"remembered": self.ring.written.clamp_max(config.memory).float()}
        return Losses(terms, metrics | {"value": value.mean(), "return": returns.mean()})

    def imitated(self, held_out: bool) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """Cross-entropy with the expert in remembered steps, the policy's entropy there, and ``agreement``."""
        features, labels, there = self.ring.draw(self.config.batch, held_out)
        actions, weights = labels[..., :-1], labels[..., -1]
        policy = policy_of(self, features)
        favourite = torch.take_along_dim(actions, weights.argmax(-1)[:, None, None], 1).squeeze(1)
        apart = (policy.mode - favourite).abs()
        agreement = 1 - apart.amax(-1) if self.spaces.discrete else apart.mean(-1)
        if not self.spaces.discrete:
            actions = actions.clamp(-INSIDE, INSIDE)
        means = (part.mean() for part in (imitation(policy, actions, weights), drawn(policy)[1], agreement.detach()))
        imitated, entropy, agreed = (there * mean for mean in means)
        return imitated, entropy, agreed
