"""Beginning with a saved world model: which of its parts to keep, and a report that leaves no tensor out.

A recipe names the parts that stay as they were initialised; a part is a module of that name, at any depth:
``encoder``, ``decoder``, ``reward_head`` and ``continue_head`` (every world model with the capability has to name them
so), ``reward_heads`` and ``objective``; ``reward_head.output`` is the last layer inside that head. ``dynamics`` is all
that is none of these, ``everything`` all there is. ``action_inputs`` are the tensors whose shape depends on the action
size, found by building the same model for another size; they stay fresh whatever the recipe where the actions are
others. Everything else has to fit.

    fractional    W = W_fresh + omega W_saved         (Sasso et al. 2023; omega 0.2)
    frozen        no gradient and no optimiser touches it: for the first N updates (APV: 100), or as long as the run

A world model that contains another, as an ensemble contains an RSSM, says so by a field of its ``Config`` whose type is
the other's ``Config``, and calls the module like the field. A saved model fills such a part, the rest stays fresh.

What to keep follows Plan2Explore (Sekar et al. 2020), URLB's recipe (Rajeswar et al. 2023: all but the reward head),
fractional transfer (Sasso et al. 2023, arXiv 2205.14410) and APV (Seo et al. 2022, 2203.13880: no rewards, no actions).
What ``frozen`` fixes and ``new-visuals`` and ``new-dynamics`` fix at first is nobody's recipe.

Deviations. Sasso et al. copy the critic's last layer so too, and we never copy any of an agent; they have no continue
head, which is copied here as the reward head is; their action inputs are always fresh, since their tasks have other
actions, and ours only then. Theirs are layers of unit normals; in a two-hot head omega scales logits. APV puts a second
RSSM with actions on the one learned from video, and that one stands for 100 updates with its encoder; here it is one
RSSM whose action inputs are fresh, and they learn meanwhile. Nothing has a lower learning rate instead of none, and
``same-domain`` makes the continue head anew though ends may be the same.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_type_hints

import torch

from worldmodels.base import Decoding, Rewarded, Spaces, WorldModel
from worldmodels.pretrained import Saved, building, check_fits, described, world_model_config
from worldmodels.strict import ConfigError, at_least, did_you_mean

ACTION_INPUTS, DYNAMICS, EVERYTHING = "action_inputs", "dynamics", "everything"
LOOKS = ("encoder", "decoder", "objective")
HEADS = ("reward_head", "reward_heads", "continue_head")
REQUIRED = {"encoder": WorldModel, "decoder": Decoding, "reward_head": Rewarded, "continue_head": Rewarded}
OUTCOMES = ("loaded", "fractional", "re-initialised", "skipped")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """The numbers in recipes."""

    omega: float  # what a fractional copy has of the saved weight, 0 to 1
    frozen_updates: int  # updates before that learns which a recipe freezes at first; 0: it learns at once

    def __post_init__(self) -> None:
        at_least(self, 0, "omega", "frozen_updates")
        if self.omega > 1:
            raise ValueError(f"omega must be at most 1, got {self.omega}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done with the parts of a world model, and when that is the thing to do; all others are just loaded."""

    when: str
    fresh: tuple[str, ...] = ()  # stay as they were initialised
    fractional: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()  # as far as they were loaded
    thaws: bool = True  # what is frozen learns after ``TransferConfig.frozen_updates``; else never

    @property
    def numbers(self) -> tuple[str, ...]:
        """The fields of ``TransferConfig`` that it reads."""
        return ("omega",) * bool(self.fractional) + ("frozen_updates",) * (bool(self.frozen) and self.thaws)


RECIPES = {
    "same-task": Recipe(when="the same task again"),
    "same-domain": Recipe(when="another task in the same domain", fresh=HEADS),
    "fractional": Recipe(
        when="another task in the same domain, with rewards of the same kind",
        fractional=tuple(f"{head}.output" for head in HEADS),
    ),
    "frozen": Recipe(
        when="another task in the very same world: rewards and ends alone are learned",
        fresh=HEADS,
        frozen=(EVERYTHING,),
        thaws=False,
    ),
    "new-dynamics": Recipe(when="the same task and looks, other physics", frozen=("encoder",)),
    "new-visuals": Recipe(when="the same task and physics, other looks", fresh=LOOKS, frozen=(DYNAMICS,)),
    "video": Recipe(
        when="learned from video: no actions, no rewards", fresh=(ACTION_INPUTS, *HEADS), frozen=("encoder", DYNAMICS)
    ),
}


class Frozen(NamedTuple):
    """Tensors of a world model that stand still, and for how many updates; None: as long as the run."""

    tensors: tuple[str, ...]
    updates: int | None


NOTHING_FROZEN = Frozen((), 0)


class Row(NamedTuple):
    """What became of one tensor."""

    outcome: Literal["loaded", "fractional", "re-initialised", "skipped"]
    tensor: str
    shape: str
    why: str  # empty where it was loaded and learns


@dataclass(frozen=True)
class Report:
    """What a world model took from a saved one: every tensor of either is in one row."""

    recipe: str
    source: str
    rows: tuple[Row, ...]
    frozen: Frozen

    def names(self, outcome: str) -> list[str]:
        return [row.tensor for row in self.rows if row.outcome == outcome]

    def lines(self) -> list[str]:
        """The report as text: counts for each module, then one line for each tensor."""
        counts = Counter((row.tensor.partition(".")[0], row.outcome) for row in self.rows)
        counts.update((name.partition(".")[0], "frozen") for name in self.frozen.tensors)
        modules, columns = dict.fromkeys(module for module, _ in counts), (*OUTCOMES, "frozen")
        width = max(map(len, (*modules, "module")))
        table = [f"{'module':{width}}  {'  '.join(columns)}"]
        for module in modules:
            numbers = (f"{counts[module, column] or '-':>{len(column)}}" for column in columns)
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


def check_numbers(recipe: str, given: Iterable[str]) -> None:
    """Raises ``ConfigError`` where a number was given that the recipe does not read."""
    for name in given:
        if name not in RECIPES[recipe].numbers:
            readers = [other for other in RECIPES if name in RECIPES[other].numbers]
            word = f"--transfer.{name.replace('_', '-')}"
            raise ConfigError(f"{word} means nothing to recipe {recipe}, but to --transfer {', '.join(readers)}")


def part_for(inner: type, outer: type) -> str | None:
    """The part of a world model with ``Config`` ``outer`` that is one with ``Config`` ``inner``.

    Empty: the whole is one. None: there is no such part.
    """
    if inner is outer:
        return ""
    found = [name for name, hint in get_type_hints(outer).items() if hint is inner]
    assert len(found) < 2, f"a saved model could fill {found}"
    return found[0] if found else None


def load_weights(model: WorldModel, saved: Saved, recipe: str, config: TransferConfig, part: str = "") -> Report:
    """Copy into a newly built model all of a saved one that the recipe keeps; nothing is copied if some of it misfits.

    ``part`` is the module that the saved one fills (``part_for``); what is not in it stays as it is. Raises
    ``ConfigError`` for an unknown recipe, with everything that does not fit, and for a part that the recipe
    names and the model does not.
    """
    chosen = RECIPES[choose_recipe(recipe, "", "")]
    filled = model.get_submodule(part)
    assert isinstance(filled, WorldModel)
    own, there = filled.state_dict(), saved.tensors
    check_named(filled, own, chosen)
    fresh = {name: f"{part} ({recipe})" for part in chosen.fresh for name in {*own, *there} if belongs(name, part)}
    if why := other_actions(saved.card.spaces, filled.spaces) or (
        ACTION_INPUTS in chosen.fresh and f"action input ({recipe})"
    ):
        fresh |= dict.fromkeys(action_inputs(saved), why)
    cure = "; build it as it was (no --world-model.* settings, the same --env.size), or see --transfer"
    kept = {name: tensor for name, tensor in there.items() if name not in fresh}
    wanted = {name: tensor for name, tensor in own.items() if name not in fresh}
    check_fits(kept, wanted, f"{saved.source} does not fit this world model", cure)
    prefix = f"{part}." if part else ""
    frozen = frozen_of(chosen, kept, config, prefix)
    rows, card = [], saved.card
    for full, tensor in model.state_dict().items():
        name = full.removeprefix(prefix) if full.startswith(prefix) else None
        if name is None or name not in kept:
            why = f"not in {card.world_model.name}" if name is None else fresh[name]
            rows.append(Row("re-initialised", full, described(tensor), why))
            continue
        fractional = among(name, chosen.fractional)
        tensor.copy_(tensor + config.omega * kept[name].to(tensor) if fractional else kept[name])
        why = f"fresh + {config.omega} saved ({recipe})" if fractional else ""
        why = f"frozen{lasting(frozen)}" if full in frozen.tensors else why
        rows.append(Row("fractional" if fractional else "loaded", full, described(tensor), why))
    for name in sorted(there.keys() - own):
        rows.append(Row("skipped", prefix + name, described(there[name]), f"not in this world model, {fresh[name]}"))
    origin = f"{saved.source}, {card.world_model.name} of {card.task} after {card.training.env_steps} env steps"
    return Report(recipe, origin, tuple(rows), frozen)


def frozen_of(recipe: Recipe, kept: Iterable[str], config: TransferConfig, prefix: str) -> Frozen:
    """What a recipe freezes of what was kept; ``prefix`` is what the names begin with in the whole model."""
    names = tuple(prefix + name for name in kept if among(name, recipe.frozen))
    if not names or (recipe.thaws and not config.frozen_updates):
        return NOTHING_FROZEN
    return Frozen(names, config.frozen_updates if recipe.thaws else None)


def lasting(frozen: Frozen) -> str:
    """For how long, as the report says it after "frozen"."""
    return "" if frozen.updates is None else f" for {frozen.updates} updates"


def belongs(name: str, part: str) -> bool:
    """Whether a tensor is in a part: the part's modules are on the tensor's path, in this order."""
    path = name.split(".")
    if part == DYNAMICS:
        return not {*LOOKS, *HEADS} & {*path}
    rest = iter(path)
    return part == EVERYTHING or all(module in rest for module in part.split("."))


def among(name: str, parts: Iterable[str]) -> bool:
    """Whether a tensor is in any of these parts."""
    return any(belongs(name, part) for part in parts)


def check_named(model: WorldModel, names: Iterable[str], recipe: Recipe) -> None:
    """Raises ``ConfigError`` where a part that the recipe names would not be found."""
    names = list(names)
    for part in (*recipe.fresh, *recipe.fractional, *recipe.frozen):
        needed = REQUIRED.get(part.partition(".")[0])
        if needed and isinstance(model, needed) and not any(belongs(name, part) for name in names):
            raise ConfigError(f"{type(model).__name__} has no module named {part}, which this recipe names")


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
