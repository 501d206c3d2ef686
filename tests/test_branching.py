"""Branched rollouts: nothing that was imagined is kept, and their length follows the count of updates."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import awake
from torch import Tensor

from agents.branching import Branching, Schedule
from agents.soft import Lessons, replayed_transitions
from worldmodels.base import Latent, Sequence, map_latent

Build = Callable[..., Any]
each_agent = pytest.mark.parametrize("name", ["dyna", "mbpo", "m2ac"])
ROWS = 21  # transitions in the batch


@pytest.fixture
def pair(debug_run: Build, make_spaces: Build) -> Build:
    """A world model that has no weight at zero, and its agent with rollouts of two steps, all of which count."""

    def made(name: str) -> tuple[Any, Branching]:
        run = debug_run(name)
        torch.manual_seed(0)
        model = run.world_model.build(make_spaces(False))
        changes: dict[str, Any] = {"rollout": Schedule(begin=0, end=1, first=2, last=2)}
        changes |= {"kept": 1.5} if name == "m2ac" else {}
        agent = dataclasses.replace(run.agent, **changes).build(model)
        awake(model, agent, seed=7)
        return model, agent

    return made


@torch.no_grad()
def taught(model: Any, agent: Branching, batch: Sequence) -> tuple[Latent, Lessons]:
    """The latents that rollouts branch off from, and the lessons; the same noise at every call."""
    torch.manual_seed(3)
    latent = model.filter(batch)
    lessons = agent.lessons(model, latent, replayed_transitions(model.features(latent), batch))
    return map_latent(lambda part: part[:, :-1].flatten(0, 1), latent), lessons


def led_to(model: Any, name: str, start: Latent, action: Tensor) -> Tensor:
    """Features ``[K, N, F]`` of where actions lead, by each member, or by the model where it has none."""
    with torch.no_grad():
        if name != "m2ac":
            return model.features(model.imagine(start, action))[None]
        several = map_latent(lambda part: part.expand(model.num_members, *part.shape), start)
        return model.features(model.imagine_members(several, action.expand(model.num_members, *action.shape)))


@each_agent
def test_what_is_imagined_is_of_the_newest_weights(name: str, pair: Build, make_batch: Build, constant_noise: None):
    model, agent = pair(name)
    batch = make_batch()
    _, before = taught(model, agent, batch)
    agent.loss(model, model.filter(batch), batch)
    agent.after_update(1)
    old = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    start, after = taught(model, agent, batch)
    action, arrived = after.action[ROWS : 2 * ROWS], after.features[2 * ROWS :]

    def distance(model: Any) -> Tensor:
        """Of where the first imagined step led to from the nearest place that a member says, by row."""
        return (led_to(model, name, start, action) - arrived).abs().amax(-1).amin(0)

    assert distance(model).max() < 1e-4 and distance(old).min() > 1e-3
    assert not torch.equal(before.features, after.features)


@each_agent
def test_an_agent_that_has_imagined_is_one_that_never_did(name: str, pair: Build, make_batch: Build):
    model, agent = pair(name)
    _, fresh = pair(name)
    batch, before = make_batch(), copy.deepcopy(agent.state_dict())
    for seed in range(3):
        agent.loss(model, model.filter(make_batch(seed=seed)), batch)
    assert all(torch.equal(part, before[key]) for key, part in agent.state_dict().items())
    assert {key.split(".")[0] for key in before} == {"actor", "critics", "target_critics", "temperature", "updates"}
    assert [(key, part.shape) for key, part in agent.named_buffers()] == [("updates", ())], "no room for transitions"
    fresh.load_state_dict(agent.state_dict())
    used, unused = (taught(model, learner, batch)[1] for learner in (agent, fresh))
    assert all(torch.equal(a, b) for a, b in zip(used[:4], unused[:4], strict=True))


@each_agent
def test_rollouts_are_as_long_as_the_count_of_updates_says_also_after_loading(
    name: str, pair: Build, make_batch: Build
):
    model, agent = pair(name)
    config = dataclasses.replace(agent.branching, rollout=Schedule(begin=10, end=30, first=1, last=3))
    agent, other, batch = config.build(model), config.build(model), make_batch()
    for updates, length in ((5, 1), (20, 2), (40, 3)):
        agent.after_update(updates)
        other.load_state_dict(agent.state_dict())
        for learner in (agent, other, copy.deepcopy(other)):
            lessons = taught(model, learner, batch)[1]
            assert lessons.metrics["rollout"].item() == length and len(lessons.target) == ROWS * (1 + length)
