"""Stochastic value gradients: what happened is taken again with a gradient, noise and all, and climbed.

Paper: Heess et al., "Learning Continuous Control Policies by Stochastic Value Gradients", NeurIPS 2015,
arXiv 1510.09142. With the noise eta of the policy and xi of the model inferred from a real step (s, a, s'):

    a~  = pi(s, eta)       equal to a, with the derivatives of pi in theta and s
    s~' = f(s, a~, xi)     equal to s', with those of f
    SVG(0)     w Q(s, a~)                                          no model
    SVG(1)     w (r(s~') + gamma live V(s~'))                      one step of the model
    SVG(inf)   sum_t gamma^t (prod live) r(s~_{t+1})               the whole path, no critic
    w          min(pi(a | s) / pi_k(a | s), clip), no gradient; pi_k is the policy that acted

Each also climbs alpha H[pi(. | s)]. ``reenact`` of policies and of world models is the inference. States are posterior
latents, s' their samples. Rewards come from the model's head; ends are those that happened, without a gradient. Real
steps keep the errors of a model from adding up: between two of them it is only differentiated. Random actions of the
prefill have a density too; where none was kept (other agents' episodes) w = 1.

Deviations. The learner is soft actor-critic: V(s) = E_a[min_l Q_l(s, a)] + alpha H by one action sampled at s~', the
policy held there, from twin critics that learn as in ``sac.py``; the paper's V needs importance weights, a Q does not.
w multiplies the entropy as well. pi(a | s) is read at today's latent of a state that pi_k saw as another. The
world model is Dreamer's, not networks that predict each dimension's change.
SVG(inf): a replayed window plays the episode, and what comes after it counts nothing; the paper's is on policy, from
one whole episode. Here the path is an old one, and no weight makes up for it. It asks no critic; they learn all the
same, to say what its policy is worth. An episode that begins inside a window begins a path.
Categorical latents and discrete actions, which the paper does not have: s' and a are kept, with the straight-through
derivative of their probabilities; no noise is inferred. Gaussian latents are exact, xi beyond 5 counting as 5 in the
gradient; the world model's metric ``noise`` is the mean of xi^2.

Metrics: those of ``sac.py``; SVG(0) and SVG(1): ``importance`` (mean w) and ``known`` (share of steps with a density);
SVG(inf): ``gradient_norm/step_1`` .. (``gradients.py``), of the windows' steps.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from agents.base import frozen
from agents.gradients import Watch, watch_steps
from agents.soft import Lessons, SoftActorCritic, SoftConfig, Transitions, drawn, td_lessons
from worldmodels.base import Latent, Reparameterised, Rewarded, Sequence, WorldModel, choose, map_latent


@dataclass(frozen=True, kw_only=True)
class Config(SoftConfig):
    variant: Literal["svg0", "svg1", "svg-inf"]
    importance_clip: float  # greatest w; SVG(inf) has none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance_clip <= 0:
            raise ValueError(f"importance_clip must be more than 0, not {self.importance_clip}")
        if self.actor.exploration_noise:
            raise ValueError("actor.exploration_noise must be 0 here: with it, actions have not the policy's density")

    def build(self, model: WorldModel) -> "SVG":
        return SVG(self, model)


class SVG(SoftActorCritic):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded, Reparameterised)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(config, model)
        self.config = config

    def lessons(self, model: WorldModel, latent: Latent, real: Transitions) -> Lessons:
        return td_lessons(self, real)

    def log_prob(self, features: Float[Tensor, "B F"], action: Float[Tensor, "B A"]) -> Float[Tensor, " B"] | None:
        return None if self.config.variant == "svg-inf" else self.policy(features).log_prob(action)

    def emphasis(self, real: Transitions, batch: Sequence) -> tuple[Float[Tensor, " N"], dict[str, Float[Tensor, ""]]]:
        if self.config.variant == "svg-inf":
            return super().emphasis(real, batch)
        with torch.autocast(real.features.device.type, enabled=False):  # bfloat16 would spread w by several percent
            now = self.policy(real.features).log_prob(real.action).detach()
        then = torch.full_like(batch.reward, math.nan) if batch.log_prob is None else batch.log_prob
        return importance(now, then[:, :-1].flatten(), self.config.importance_clip)

    def objective(
        self, model: WorldModel, latent: Latent, real: Transitions
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], dict[str, Float[Tensor, ""]]]:
        policy = self.policy(real.features)
        _, entropy = drawn(policy)
        bonus = self.temperature.value * entropy
        if self.config.variant == "svg-inf":
            watch = watch_steps(latent[0].shape[1] - 1, 0.0, real.reward.device)
            return self.whole_path(model, latent, real, watch) + bonus, entropy, watch.metrics()
        action = policy.reenact(real.action)
        if self.config.variant == "svg0":
            return self.opinion(self.critics(real.features, action)) + bonus, entropy, {}
        return self.one_step(model, latent, real, action) + bonus, entropy, {}

    def one_step(
        self, model: WorldModel, latent: Latent, real: Transitions, action: Float[Tensor, "N A"]
    ) -> Float[Tensor, " N"]:
        """The reward that the action led to, and V after it."""
        assert isinstance(model, Rewarded) and isinstance(model, Reparameterised)  # ``needs``
        now, observed = (map_latent(lambda part, s=s: part[:, s].flatten(0, 1), latent) for s in STEPS)
        moved = model.reenact(now, action, observed)
        with frozen(self.actor):
            value, _ = self.value(self.critics, model.features(moved), self.opinion)
        return model.reward(moved) + self.soft.discount * real.live * value

    def whole_path(self, model: WorldModel, latent: Latent, real: Transitions, watch: Watch) -> Float[Tensor, " N"]:
        """Each reward of the window, discounted from where its path begins."""
        assert isinstance(model, Rewarded) and isinstance(model, Reparameterised)  # ``needs``
        steps = watch.norms.shape[1]
        action, live, same = (part.unflatten(0, (-1, steps)) for part in (real.action, real.live, real.weight))
        now, gains = map_latent(lambda part: part[:, 0], latent), []
        weight = torch.ones_like(live[:, 0])
        for t in range(steps):
            observed = map_latent(lambda part, t=t: part[:, t + 1], latent)
            moved = model.reenact(now, self.policy(model.features(now)).reenact(action[:, t]), observed)
            moved = watch.passed(moved, t)
            gains.append(weight * model.reward(moved))
            going_on = same[:, t] > 0  # else ``observed`` is the next episode's first, where a path begins
            now = choose(going_on, moved, observed)
            weight = torch.where(going_on, self.soft.discount * live[:, t] * weight, 1.0)
        return torch.stack(gains, 1).flatten()


STEPS = slice(None, -1), slice(1, None)  # of each transition: from, to


def importance(
    now: Float[Tensor, " N"], then: Float[Tensor, " N"], clip: float
) -> tuple[Float[Tensor, " N"], dict[str, Float[Tensor, ""]]]:
    """min(exp(now - then), clip), 1 where ``then`` is NaN; metrics."""
    known = then.isfinite()
    weight = torch.where(known, (now - then).clamp(max=math.log(clip)).exp(), 1.0)
    return weight, {"importance": weight.mean(), "known": known.float().mean()}
