"""Beginning with a saved world model: which of its parts to keep, and a report that leaves no tensor out.

A recipe names the parts that stay as they were initialised; a part is a module of that name, at any depth:
``encoder``, ``decoder``, ``reward_head`` and ``continue_head`` (every world model with the capability has to name them
so), ``reward_heads`` and ``objective``. ``action_inputs`` are the tensors whose shape depends on the action size, found
by building the same model for another size; they stay fresh whatever the recipe where the actions are others.
Everything else has to fit.

A world model that contains another, as an ensemble contains an RSSM, says so by a field of its ``Config`` whose type is
the other's ``Config``, and calls the module like the field. A saved model fills such a part, the rest stays fresh.

What to keep follows Plan2Explore (Sekar et al. 2020), URLB's recipe (Rajeswar et al. 2023: all but the reward head),
fractional transfer (Sasso et al. 2023: fresh action inputs) and APV (Seo et al. 2022: no rewards, no actions).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_type_hints

import torch

from worldmodels.base import Decoding, Rewarded, Spaces, WorldModel
from worldmodels.pretrained import Saved, building, check_fits, described, world_model_config
from worldmodels.strict import ConfigError, did_you_mean

ACTION_INPUTS = "action_inputs"
HEADS = ("reward_head", "reward_heads", "continue_head")
REQUIRED = {"encoder": WorldModel, "decoder": Decoding, "reward_head": Rewarded, "continue_head": Rewarded}
OUTCOMES = ("loaded", "re-initialised", "skipped")


@dataclass(frozen=True)
class Recipe:
    """What of a world model stays as it was initialised, and when that is the thing to do."""

    fresh: tuple[str, ...]
    when: str


RECIPES = {
    "same-task": Recipe((), "the same task again"),
    "same-domain": Recipe(HEADS, "another task in the same domain"),
    "new-dynamics": Recipe((), "the same task and looks, other physics"),
    "new-visuals": Recipe(("encoder", "decoder", "objective"), "the same task and physics, other looks"),
    "video": Recipe((ACTION_INPUTS, *HEADS), "learned from video: no actions, no rewards"),
}


class Row(NamedTuple):
    """What became of one tensor."""

    outcome: Literal["loaded", "re-initialised", "skipped"]
    tensor: str
    shape: str
    why: str  # empty where it was loaded


@dataclass(frozen=True)
class Report:
    """What a world model took from a saved one: every tensor of either is in one row."""

    recipe: str
    source: str
    rows: tuple[Row, ...]

    def names(self, outcome: str) -> list[str]:
        return [row.tensor for row in self.rows if row.outcome == outcome]

    def lines(self) -> list[str]:
        """The report as text: counts for each module, then one line for each tensor."""
        counts = Counter((row.tensor.partition(".")[0], row.outcome) for row in self.rows)
        modules = dict.fromkeys(module for module, _ in counts)
        width = max(map(len, (*modules, "module")))
        table = [f"{'module':{width}}  {'  '.join(OUTCOMES)}"]
        for module in modules:
            numbers = (f"{counts[module, outcome] or '-':>{len(outcome)}}" for outcome in OUTCOMES)
            table.append(f"{module:{width}}  {'  '.join(numbers)}")
        each = [
            f"{row.outcome:14}  {row.tensor} {row.shape}{f': {row.why}' if row.why else ''}"
            for outcome in OUTCOMES
            for row in self.rows
            if row.outcome == outcome
        ]
        return [f"transfer {self.recipe}: {RECIPES[self.recipe].when}; from {self.source}", *table, *each]


def choose_recipe(name: str | None, source_task: str, task: str) -> str:
    """The recipe of this name; if None the one for these (canonical) tasks. Raises ``ConfigError``."""
    if name is None:
        return "same-task" if source_task == task else "same-domain"
    if name not in RECIPES:
        raise ConfigError(f"unknown transfer recipe {name!r}. {did_you_mean(name, RECIPES)}")
    return name


def part_for(inner: type, outer: type) -> str | None:
    """The part of a world model with ``Config`` ``outer`` that is one with ``Config`` ``inner``.

    Empty: the whole is one. None: there is no such part.
    """
    if inner is outer:
        return ""
    found = [name for name, hint in get_type_hints(outer).items() if hint is inner]
    assert len(found) < 2, f"a saved model could fill {found}"
    return found[0] if found else None


def load_weights(model: WorldModel, saved: Saved, recipe: str, part: str = "") -> Report:
    """Copy into a newly built model all of a saved one that the recipe keeps; nothing is copied if some of it misfits.

    ``part`` is the module that the saved one fills (``part_for``); what is not in it stays as it is. Raises
    ``ConfigError`` for an unknown recipe, with everything that does not fit, and for a part that the recipe
    re-initialises and the model does not name.
    """
    parts = RECIPES[choose_recipe(recipe, "", "")].fresh
    filled = model.get_submodule(part)
    assert isinstance(filled, WorldModel)
    own, there = filled.state_dict(), saved.tensors
    check_named(filled, own, parts)
    fresh = {name: f"{part} ({recipe})" for part in parts for name in {*own, *there} if part in name.split(".")}
    if why := other_actions(saved.card.spaces, filled.spaces) or (
        ACTION_INPUTS in parts and f"action input ({recipe})"
    ):
        fresh |= dict.fromkeys(action_inputs(saved), why)
    cure = "; build it as it was (no --world-model.* settings, the same --env.size), or see --transfer"
    kept = {name: tensor for name, tensor in there.items() if name not in fresh}
    wanted = {name: tensor for name, tensor in own.items() if name not in fresh}
    check_fits(kept, wanted, f"{saved.source} does not fit this world model", cure)
    rows, card, prefix = [], saved.card, f"{part}." if part else ""
    for full, tensor in model.state_dict().items():
        name = full.removeprefix(prefix) if full.startswith(prefix) else None
        if name in kept:
            tensor.copy_(kept[name])
        why = f"not in {card.world_model.name}" if name is None else fresh.get(name, "")
        rows.append(Row("loaded" if name in kept else "re-initialised", full, described(tensor), why))
    for name in sorted(there.keys() - own):
        rows.append(Row("skipped", prefix + name, described(there[name]), f"not in this world model, {fresh[name]}"))
    origin = f"{saved.source}, {card.world_model.name} of {card.task} after {card.training.env_steps} env steps"
    return Report(recipe, origin, tuple(rows))


def check_named(model: WorldModel, names: Iterable[str], parts: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` where a part that has to be re-initialised would not be found."""
    modules = {module for name in names for module in name.split(".")}
    for part in parts:
        if part in REQUIRED and isinstance(model, REQUIRED[part]) and part not in modules:
            raise ConfigError(f"{type(model).__name__} has no module named {part}, which this recipe re-initialises")


def other_actions(there: Spaces, here: Spaces) -> str:
    """In what actions differ, empty if in nothing."""
    if there.discrete != here.discrete:
        return f"actions are {'discrete' if here.discrete else 'continuous'} here and were not there"
    if there.action_dim != here.action_dim:
        return f"the action size is {here.action_dim} here and was {there.action_dim}"
    return ""


def action_inputs(saved: Saved) -> set[str]:
    """The names of the tensors whose shape depends on the action size."""
    config, spaces = world_model_config(saved.card, saved.source), saved.card.spaces
    with building(saved.source), torch.device("meta"):
        one, other = (config.build(replace(spaces, action_dim=spaces.action_dim + i)).state_dict() for i in (0, 1))
    return {name for name, tensor in one.items() if other[name].shape != tensor.shape}
