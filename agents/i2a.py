"""I2A: a model-free actor-critic that is also told, in a learned code, what its world model imagines of each action.

Paper: Weber, Racaniere et al., "Imagination-Augmented Agents for Deep Reinforcement Learning", NeurIPS 2017,
arXiv 1707.06203.

    rollout a   z_1 = model(z, a), z_{i+1} = model(z_i, a_i), a_i ~ pi^(. | z_i)       one for each action, tau steps
    frame       [features(z_i), reward(z_i), continue(z_i)]
    e_a         an LSTM over the frames' codes from the last to the first
    code        [e_1 .. e_|A|, path(features(z))]  ->  pi, V

``policy``, ``value`` and ``entropy`` are those of ``a2c.py``, whose card says how the run is on-policy by numbers. They
teach path, encoder and heads; imagination has no gradient. The rollout policy pi^ learns on real steps alone:

    rollout    -sum_a sg(pi(a | s)) log pi^(a | s)

``core: copy`` is the paper's copy model: imagined states are the state itself, rewards 0, same weights and cost.
``rewards: false`` is its agent without rewards, which sees no predicted ends either: in a task that ends when it is
solved they would tell the same. A path alone, without imagination, is ``a2c``.

Deviations: an abstract model, latents in place of frames (the paper's M predicts pixels, as the world model ``pixels``
does); it starts from the posterior and is sampled. It learns with the agent from the same steps and from older ones,
where the paper pretrains and freezes it: ``--world-model RUN --optimizers.model.lr 0`` does that. The path sees the
posterior's features and not the image. What lies after a predicted end is passed over by the LSTM, as far as it is
predicted. With continuous actions, which the paper does not have, ``candidates`` first actions are drawn from pi^,
stand in every frame, and codes are averaged; ``rollout`` then compares with one sample of pi.

Metrics: those of ``a2c.py``; ``imitation``, KL(pi || pi^) in nats; ``imagined_reward``, the mean over rollouts of the
sum of rewards.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from agents.a2c import OnPolicyConfig, PathConfig, actor_critic_losses, newest_windows
from agents.actor import Actor, ActorConfig, Policy, require_entropy
from agents.base import Agent, Carry
from worldmodels.base import Latent, Losses, Rewarded, Sequence, WorldModel, map_latent
from worldmodels.distributions import OneHot, TanhNormal, symlog
from worldmodels.layers import step_precision


@dataclass(frozen=True, kw_only=True)
class Config(OnPolicyConfig):
    core: Literal["model", "copy"]
    depth: int  # tau
    candidates: int  # rollouts where actions are continuous; of discrete ones each has one
    rewards: bool  # whether the encoder sees predicted rewards and ends
    rollout: ActorConfig  # pi^
    frame: PathConfig  # of each imagined state, before the LSTM
    encoded: int  # size of e_a

    def __post_init__(self) -> None:
        super().__post_init__()
        require_entropy(self.rollout)
        for name in ("depth", "candidates", "encoded"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")

    def build(self, model: WorldModel) -> "I2A":
        return I2A(self, model)


class Imagined(NamedTuple):
    """n rollouts of tau steps from each of N latents, without a graph."""

    frames: Float[Tensor, "N n tau W"]
    alive: Float[Tensor, "N n tau"]
    """How likely the episode reaches a step: 1 for the first, then the product of the continue probabilities."""
    reward: Float[Tensor, "N n tau"]


class RolloutEncoder(nn.Module):
    """e of a rollout: an LSTM from its last frame to its first, which passes over what is not alive."""

    def __init__(self, frame: int, path: PathConfig, size: int):
        super().__init__()
        self.size = size
        self.frame = path.build(frame)
        self.lstm = nn.LSTMCell(path.units, size)

    def forward(self, frames: Float[Tensor, "M tau W"], alive: Float[Tensor, "M tau"]) -> Float[Tensor, "M E"]:
        codes = self.frame(frames).float()
        state = codes.new_zeros(2, len(codes), self.size)
        for code, weight in zip(reversed(codes.unbind(1)), reversed(alive.unbind(1)), strict=True):
            state = torch.lerp(state, torch.stack(self.lstm(code, tuple(state))).float(), weight.unsqueeze(-1))
        return state[0]


class I2A(Agent):
    """See the card at the top of the file."""

    needs: ClassVar[tuple[type, ...]] = (Rewarded,)

    def __init__(self, config: Config, model: WorldModel):
        super().__init__(model)
        self.config, self.scales = config, config.scales
        size, self.discrete = self.spaces.action_dim, self.spaces.discrete
        self.rollouts = size if self.discrete else config.candidates
        self.path = config.path.build(model.feature_dim)
        self.rollout = Actor(model.feature_dim, model.spaces, config.rollout)
        frame = model.feature_dim + 2 + (0 if self.discrete else size)
        self.encoder = RolloutEncoder(frame, config.frame, config.encoded)
        code = config.path.units + config.encoded * (self.rollouts if self.discrete else 1)
        self.actor = Actor(code, model.spaces, config.actor)
        self.critic = config.critic.build(code)

    def first_actions(self, features: Float[Tensor, "N F"], generator: Generator | None) -> Float[Tensor, "N n A"]:
        """Every discrete action once, in order; of continuous ones draws from the rollout policy."""
        if self.discrete:
            return torch.eye(self.rollouts, device=features.device).expand(len(features), -1, -1)
        spread = features.unsqueeze(1).expand(-1, self.rollouts, -1)
        return self.rollout(spread).sample(generator).clamp(-1, 1)

    @torch.no_grad()
    def imagine(self, model: WorldModel, latent: Latent, generator: Generator | None) -> Imagined:
        """The imagination core from latents ``[N]``."""
        assert isinstance(model, Rewarded)  # ``needs``
        first = self.first_actions(model.features(latent), generator)
        now = map_latent(lambda part: part.repeat_interleave(self.rollouts, 0), latent)
        action = given = first.flatten(0, 1)
        frames, rewards, going_on = [], [], [action.new_ones(len(action))]
        with step_precision(len(action), action):
            for _ in range(self.config.depth):
                now = now if self.config.core == "copy" else model.imagine(now, action, generator)
                features = model.features(now)
                reward, continues = torch.zeros_like(given[:, 0]), torch.ones_like(given[:, 0])
                if self.config.rewards and self.config.core == "model":
                    reward, continues = model.reward(now), model.continues(now)
                seen = [features, symlog(reward).unsqueeze(-1), continues.unsqueeze(-1)]
                frames.append(torch.cat(seen if self.discrete else [*seen, given], -1))
                rewards.append(reward)
                going_on.append(going_on[-1] * continues)
                action = self.rollout(features).sample(generator)
                action = action if self.discrete else action.clamp(-1, 1)
        stacked = (torch.stack(parts, 1) for parts in (frames, going_on[:-1], rewards))
        return Imagined(*(part.unflatten(0, (-1, self.rollouts)) for part in stacked))

    def code(
        self, model: WorldModel, latent: Latent, generator: Generator | None
    ) -> tuple[Float[Tensor, "N C"], Imagined]:
        """What actor and critic see of latents ``[N]``: the rollouts' codes in order of actions, then the path's."""
        imagined = self.imagine(model, latent, generator)
        torch.clear_autocast_cache()  # torch before 2.13 reuses casts made without gradients, and would learn nothing
        encoded = self.encoder(imagined.frames.flatten(0, 1), imagined.alive.flatten(0, 1))
        encoded = encoded.unflatten(0, (-1, self.rollouts))
        gathered = encoded.flatten(1) if self.discrete else encoded.mean(1)
        return torch.cat([gathered, self.path(model.features(latent).detach()).float()], -1), imagined

    def act(
        self, model: WorldModel, latent: Latent, carry: Carry, *, explore: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "B A"], Carry]:
        return self.actor.act(self.code(model, latent, generator)[0], explore=explore, generator=generator), carry

    def loss(self, model: WorldModel, latent: Latent, batch: Sequence) -> Losses:
        latent, batch = newest_windows(latent, batch, self.config.newest)
        code, imagined = self.code(model, map_latent(lambda part: part.flatten(0, 1), latent), None)
        code = code.unflatten(0, batch.reward.shape)
        learned = actor_critic_losses(self.actor, self.critic, code, batch, self.config.discount)
        distance, divergence = distillation(self.actor(code.detach()), self.rollout(model.features(latent).detach()))
        metrics = {"imitation": divergence.mean(), "imagined_reward": imagined.reward.sum(-1).mean()}
        return Losses(learned.terms | {"rollout": distance.mean()}, learned.metrics | metrics)


def distillation(teacher: Policy, pupil: Policy) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """The cross-entropy of a policy with what imitates it, whose gradient is the pupil's alone, and their KL (nats).

    Exact for discrete actions; an estimate from one sample of the teacher for continuous ones.
    """
    if isinstance(teacher, OneHot) and isinstance(pupil, OneHot):
        cross = -(teacher.log_probs.detach().exp() * pupil.log_probs).sum(-1)
        return cross, (cross - teacher.entropy()).detach()
    assert not isinstance(teacher, TanhNormal | OneHot) and not isinstance(pupil, TanhNormal)  # ``require_entropy``
    action = teacher.sample().detach()
    cross = -pupil.log_prob(action)
    return cross, (cross + teacher.log_prob(action)).detach()
