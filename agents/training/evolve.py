"""The phase that improves an agent by trying variations of it, dreamt or in real environments."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from agents.base import Evolving
from agents.training.config import RunConfig
from agents.training.evaluate import Evaluation, Stage, evaluate, training_seeds
from agents.training.learner import Learner
from agents.training.phases import Tally, Work
from agents.training.sections import EvolvePhase
from worldmodels.base import Latent, WorldModel
from worldmodels.replay.memory import Replay


class Evolve(Work):
    """A block is a generation. Its noise comes from the run's seed and the count of updates, and from nothing else."""

    films_itself: ClassVar[bool] = True
    DREAMS = 100  # to compare with real episodes when these are played; the paper has as many

    def __init__(
        self,
        phase: EvolvePhase,
        index: int,
        config: RunConfig,
        learner: Learner,
        recorded: Callable[[], Replay],
        stage: Stage,
        tally: Tally,
    ):
        super().__init__()
        if not isinstance(learner.agent, Evolving):
            raise ValueError(f"{config.agent_name} cannot evolve: take the evolve phase out of --training.phases")
        self.phase, self.index, self.config, self.learner = phase, index, config, learner
        self.agent, self.recorded, self.stage, self.tally = learner.agent, recorded, stage, tally

    @torch.no_grad()
    def block(self, worked: Callable[[dict[str, Tensor]], None]) -> None:
        seed = int(np.random.SeedSequence([self.config.seed, self.learner.updates]).generate_state(1)[0])
        generator = Generator(next(self.learner.model.parameters()).device).manual_seed(seed)
        candidates = self.agent.ask(generator)
        if self.agent.where == "dream":
            returns = self.dream(candidates, self.agent.rollouts, generator)
        else:
            returns = self.play(candidates, seed)
        metrics = self.agent.tell(candidates, returns)
        self.tally.done[self.index] += 1
        self.tally.elsewhere += 1
        self.learner.updates += 1
        totals = returns.mean(1)
        metrics |= {"mean": totals.mean().item(), "best": totals.max().item()}
        count = f"generation {self.tally.done[self.index]}/{self.phase.generations} in the {self.agent.where}"
        self.about = f"{count}: mean {metrics['mean']:.1f}, best {metrics['best']:.1f}"
        if self.agent.where == "dream" and self.evaluates(crossed=False):
            std, mean = torch.std_mean(self.dream(self.agent.acting[None], self.DREAMS, generator), correction=0)
            metrics |= {"dream": mean.item(), "dream_std": std.item()}
            self.about += f", what acts {mean:.1f} +- {std:.1f}"
        worked({f"evolve/{name}": torch.tensor(value) for name, value in metrics.items()})

    def dream(self, candidates: Float[Tensor, "N D"], starts: int, generator: Generator) -> Float[Tensor, "N R"]:
        """Returns in dreams that begin at recorded first images."""
        start = first_latents(self.learner.model, self.recorded(), starts, generator)
        return self.agent.dream(self.learner.model, start, candidates, generator)

    def play(self, candidates: Float[Tensor, "N D"], seed: int) -> Float[Tensor, "N R"]:
        """Returns in real environments, the same episodes for all candidates."""
        rollouts = self.agent.rollouts
        seeds = training_seeds([seed, 1], rollouts) * len(candidates)
        lanes, begun = candidates.repeat_interleave(rollouts, 0), 0

        def policy(batch: int) -> Trial:
            nonlocal begun
            begun += batch
            return Trial(self.learner.model, self.agent, lanes[begun - batch : begun], seed)

        played: Evaluation = evaluate(self.stage, policy, seeds)
        self.tally.tried += sum(played.lengths) * self.stage.env.action_repeat
        return torch.tensor(played.returns).view(len(candidates), rollouts)

    @property
    def finished(self) -> bool:
        return self.tally.done[self.index] >= self.phase.generations

    def evaluates(self, crossed: bool) -> bool:
        every = self.phase.eval_every
        return self.finished or bool(every and self.tally.done[self.index] % every == 0)


class Trial:
    """A policy of a candidate for each environment. Images uint8 [B, h, w, c] to actions float32 [B, A]."""

    def __init__(self, model: WorldModel, agent: Evolving, candidates: Float[Tensor, "B D"], seed: int):
        self.model, self.agent = model, agent
        device = next(model.parameters()).device
        self.candidates = candidates.to(device)
        self.generator = Generator(device).manual_seed(seed)
        self.latent: Latent = model.initial(len(candidates))
        self.action = torch.zeros(len(candidates), model.spaces.action_dim, device=device)

    @torch.no_grad()
    def __call__(self, obs: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        device = self.action.device
        image, first = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (obs, is_first))
        self.latent = self.model.observe(self.latent, self.action, image, first, self.generator)
        self.action = self.agent.act_as(self.model, self.latent, self.candidates)
        return self.action.float().cpu().numpy()


def first_latents(model: WorldModel, replay: Replay, count: int, generator: Generator) -> Latent:
    """What a model makes of so many first images of recorded episodes, drawn with replacement."""
    device = next(model.parameters()).device
    image = replay.first_images(count, generator).to(device)
    begins = torch.ones(count, dtype=torch.bool, device=device)
    nothing = torch.zeros(count, model.spaces.action_dim, device=device)
    return model.observe(model.initial(count), nothing, image, begins, generator)
