"""The one place where weights change: one backward, one clip and one step for each optimiser."""

from typing import Any

import torch
from torch import Tensor, nn

from agents.base import Agent, held
from agents.training.lightning import LightningModule
from agents.training.optim import OptimizerConfig
from worldmodels.base import Latent, Losses, Storing, WorldModel, on_device
from worldmodels.replay.memory import Replay, Sample
from worldmodels.transfer import NOTHING_FROZEN, Frozen


class Learner(LightningModule):
    """A world model and an agent that learn together from replayed sequences.

    ``optimizers`` names what each optimiser trains: ``all``, or parts: ``model`` (the world model) or parts of it such
    as ``model.vae``, and names of the agent's own submodules, such as ``actor`` and ``critic``. Together they must
    cover every trainable parameter once. In a phase where only some are ``moving``, what the others train is held, and
    so is what is ``frozen`` of the world model: it has no gradient, no moments, no decay and no share in a clip's norm.
    What begins to move late is warmed up then. The agent's loss sees the posterior with its graph, and each loss term
    says itself what it must not reach, so one backward through the sum gives every optimiser its own gradients.
    """

    def __init__(
        self,
        model: WorldModel,
        agent: Agent,
        optimizers: dict[str, OptimizerConfig],
        model_scales: dict[str, float],
        precision: str,
        frozen: Frozen = NOTHING_FROZEN,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.agent = model, agent
        self.replay: Replay | None = None  # where latents are written back to; the phase's own
        self.optimizer_configs = optimizers
        self.model_scales = model_scales
        self.autocast_enabled = precision == "bf16"
        self.moving: tuple[str, ...] | None = None  # the optimisers that move in the phase under way; None: all
        self.frozen = frozen
        self.fixed = [p for name, p in model.named_parameters() if name in frozen.tensors]
        self.made: list[torch.optim.Optimizer] = []  # once, for all phases
        self.updates = 0
        """Changes of weights so far; a generation of what evolves counts as one."""
        self.metrics: dict[str, Tensor] = {}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        if not self.made:
            groups = parameter_groups(self.model, self.agent, list(self.optimizer_configs))
            self.made = [config.build(self.apart(groups[name])) for name, config in self.optimizer_configs.items()]
        return self.made

    def apart(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """What is frozen as a group of its own; each group counts the updates that it ``moved`` and ``waited`` in."""
        fixed = {id(parameter) for parameter in self.fixed}
        split = {frozen: [p for p in parameters if (id(p) in fixed) == frozen] for frozen in (False, True)}
        return [{"params": part, "frozen": frozen, "moved": 0, "waited": 0} for frozen, part in split.items() if part]

    def transfer_batch_to_device(self, batch: Sample, device: torch.device, dataloader_idx: int) -> Sample:
        # the index stays on the CPU, where the replay needs it
        return Sample(on_device(batch.sequence, device), batch.index)

    def training_step(self, sample: Sample, _: int) -> None:
        with held(self.standing()):
            latent, model_losses, agent_losses, total = self.losses(sample)
            for optimizer in self._optimizers():
                optimizer.zero_grad(set_to_none=True)
            if total.requires_grad:  # else all that the phase trains is still frozen
                self.manual_backward(total)
        metrics = {"total": total.detach()} | self.move_weights()
        self.remember(sample, latent)
        for room, losses in (("model", model_losses), ("agent", agent_losses)):
            for part in losses:
                metrics |= {f"{room}/{name}": value.detach() for name, value in part.items()}
        self.metrics = metrics

    def losses(self, sample: Sample) -> tuple[Latent, Losses, Losses, Tensor]:
        """The posterior, both rooms' losses and their weighted sum."""
        # own autocast: Lightning's forbids the cache of cast weights, and the RSSM would cast them at every time step
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_enabled):
            latent, model_losses = self.model.loss(sample.sequence)
            idle = self.agent_stands()
            agent_losses = Losses({}, {}) if idle else self.agent.loss(self.model, latent, sample.sequence)
        total = weighted(model_losses, self.model_scales, "world model")
        if not idle:
            total = total + weighted(agent_losses, self.agent.scales, "agent")
        return latent, model_losses, agent_losses, total

    def agent_stands(self) -> bool:
        """Whether no weight moves that the agent's loss could teach; to be asked while what stands is held."""
        moves = any(parameter.requires_grad for parameter in self.agent.parameters())
        return self.moving is not None and not moves and not self.agent.teaches

    def standing(self) -> list[Tensor]:
        """What is not trained in this update: in the phase under way, and what is still frozen."""
        still: list[Tensor] = []
        for name, optimizer in zip(self.optimizer_configs, self.made, strict=True):
            for group in optimizer.param_groups:
                still += group["params"] if not self.moves(name) or self.waits(group) else []
        return still

    def moves(self, name: str) -> bool:
        """Whether the optimiser of this name does anything in the phase under way."""
        return self.moving is None or name in self.moving

    def waits(self, group: dict[str, Any]) -> bool:
        """Whether a group of an optimiser is still frozen."""
        return group["frozen"] and (self.frozen.updates is None or group["waited"] < self.frozen.updates)

    def _optimizers(self) -> list[Any]:
        optimizers: Any = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def move_weights(self) -> dict[str, Tensor]:
        """Clip, step, and move the agent's targets; the norms of the gradients before and after clipping."""
        metrics = {}
        for (name, config), optimizer in zip(self.optimizer_configs.items(), self._optimizers(), strict=True):
            if not self.moves(name):
                continue
            parameters: list[Tensor] = []
            for group in optimizer.param_groups:
                waits = self.waits(group)
                parameters += [] if waits else group["params"]
                group["waited" if waits else "moved"] += 1
                group["lr"] = config.lr * min(1.0, group["moved"] / max(1, config.warmup))
            if not parameters:
                continue
            norms = config.clip_gradients(parameters)
            metrics |= {f"gradient_norm/{name}": norms.before, f"gradient_norm_clipped/{name}": norms.after}
            optimizer.step()
        self.updates += 1
        self.agent.after_update(self.updates)
        return metrics

    def remember(self, sample: Sample, latent: Latent) -> None:
        """Write the posterior back to where the sample came from."""
        if isinstance(self.model, Storing) and self.replay is not None and self.replay.packed_bytes:
            self.replay.write_back(sample.index, self.model.pack(latent))


def weighted(losses: Losses, scales: dict[str, float], room: str) -> Tensor:
    """The sum of all terms times their scales; both must name exactly the same terms."""
    if losses.terms.keys() != scales.keys():
        missing, unknown = sorted(losses.terms.keys() - scales), sorted(scales.keys() - losses.terms)
        raise ValueError(f"the {room}'s scales lack {missing} and have no use for {unknown}: correct its YAML")
    return sum((scales[name] * term for name, term in losses.terms.items()), torch.zeros(()).to(_device(losses)))


def _device(losses: Losses) -> torch.device:
    return next(iter(losses.terms.values()), torch.zeros(())).device


def parameter_groups(model: WorldModel, agent: Agent, names: list[str]) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters that each optimiser of these names has; together all, each once."""
    everything = [p for module in (model, agent) for p in module.parameters() if p.requires_grad]
    if names == ["all"]:
        return {"all": everything}
    inner = {f"model.{name}": part for name, part in model.named_children()}
    parts = {"model": model} | inner | dict(agent.named_children())
    groups, taken = {}, set()
    for name in names:
        if name not in parts:
            raise ValueError(f"no part {name!r} for an optimiser: there are {sorted(parts)}, or 'all' by itself")
        groups[name] = [p for p in parts[name].parameters() if p.requires_grad]
        if taken & {id(p) for p in groups[name]}:
            raise ValueError(f"the optimisers {names} train something twice: take a part or parts of it, not both")
        taken |= {id(p) for p in groups[name]}
    if len(taken) != len(everything):
        raise ValueError(f"the optimisers {names} leave parameters untrained: there are {sorted(parts)}, or 'all'")
    return groups
