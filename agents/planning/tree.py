"""Trees of imagined futures, one for each of B roots, grown together; the rule of selection is an argument.

A simulation goes down from the root along the actions that a rule selects, expands one new node with a single batched
call of the model, and adds the return that this found to every edge on the way back. What MuZero (Schrittwieser et al.
2020, arXiv 1911.08265, appendix B) and its descendants differ in is the rule: ``puct``, ``gumbel``.

Letters: B roots (environments, which never exchange anything), N nodes (the root is 0, simulation i expands node i),
A actions, D steps of a path.

    G_t = r_{t+1} + discount_{t+1} G_{t+1},  G of a leaf = its value;  Q(s, a) = mean of G over the visits of the edge

Rewards and discounts belong to the node in which they arrive. A discount is that of time times the probability that
the episode goes on: at 0, nothing below counts. -1 makes it a game of two players.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

NONE = -1  # no such node, no such action

Embedding = Any  # a tensor or a NamedTuple of embeddings, all ``[B, ...]``: whatever a model needs to go on from a node


class Root(NamedTuple):
    """Where a search begins. Logits need not be normalised; an action with -inf is not possible."""

    logits: Float[Tensor, "B A"]
    value: Float[Tensor, " B"]
    embedding: Embedding


class Step(NamedTuple):
    """What a model says of the node that an action leads to."""

    embedding: Embedding
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    logits: Float[Tensor, "B A"]
    value: Float[Tensor, " B"]


Recurrent = Callable[[Embedding, Int64[Tensor, " B"], Generator | None], Step]
"""One imagined step. It is called once for every edge, so a sampled step stays as it was within a search."""


class Nodes(NamedTuple):
    """What a rule of selection sees: the first n nodes of each tree."""

    logits: Float[Tensor, "B n A"]  # log probabilities of the prior
    value: Float[Tensor, "B n"]  # the model's
    visits: Float[Tensor, "B n A"]
    q: Float[Tensor, "B n A"]  # 0 where there was no visit
    low: Float[Tensor, "B 1"]  # the least Q ever seen in the tree, not beyond an end; inf before there is one
    high: Float[Tensor, "B 1"]

    @property
    def mean_value(self) -> Float[Tensor, "B n"]:
        """Of the model's value and of all returns from here."""
        return (self.value + (self.visits * self.q).sum(-1)) / (1 + self.visits.sum(-1))


Rule = Callable[[Nodes], Int64[Tensor, "B n"]]
"""The action to take next at each node. Where a tie is left, the first action wins, as in ``argmax``."""


class Tree(NamedTuple):
    """B trees. Nodes that were not needed, as the path of their simulation ended at the greatest depth, have no parent.

    Only ``grow`` changes the tensors, and only those that it made itself.
    """

    embedding: Embedding  # [B, N, ...]
    logits: Float[Tensor, "B N A"]
    value: Float[Tensor, "B N"]
    reward: Float[Tensor, "B N"]
    discount: Float[Tensor, "B N"]
    parent: Int64[Tensor, "B N"]
    action: Int64[Tensor, "B N"]  # that led here
    child: Int64[Tensor, "B N A"]
    visits: Float[Tensor, "B N A"]  # of edges; floats, for arithmetic
    total: Float[Tensor, "B N A"]  # sum of returns over the visits
    low: Float[Tensor, " B"]
    high: Float[Tensor, " B"]

    def first(self, count: int) -> Nodes:
        """The root alone, or also the nodes that the first simulations made."""
        logits, value, visits, total = (part[:, :count] for part in (self.logits, self.value, self.visits, self.total))
        return Nodes(logits, value, visits, total / visits.clamp_min(1), self.low[:, None], self.high[:, None])


class Path(NamedTuple):
    """The edges of one simulation in each tree, the last one leading to its leaf."""

    node: Int64[Tensor, "B D"]
    action: Int64[Tensor, "B D"]
    arrived: Int64[Tensor, "B D"]
    taken: Bool[Tensor, "B D"]  # false beyond the end of a path that is shorter than others


class Searched(NamedTuple):
    """The result of a search."""

    action: Int64[Tensor, " B"]
    """To execute."""
    weights: Float[Tensor, "B A"]
    """The improved policy, what the prior is to learn: probabilities, 0 for impossible actions."""
    value: Float[Tensor, " B"]
    """Of the root: the mean of the model's value and of every return."""
    visits: Int64[Tensor, "B A"]
    """Their sum is the number of simulations."""
    q: Float[Tensor, "B A"]
    """Mean return after each action, 0 where there was no visit."""
    tree: Tree


def searched(tree: Tree, action: Int64[Tensor, "B 1"], weights: Float[Tensor, "B 1 A"]) -> Searched:
    root = tree.first(1)
    value, visits, q = (part.squeeze(1) for part in (root.mean_value, root.visits, root.q))
    return Searched(action.squeeze(1), weights.squeeze(1), value, visits.long(), q, tree)


def possible(root: Root, invalid: Bool[Tensor, "B A"] | None) -> Bool[Tensor, "B A"]:
    """Actions that are not invalid and have a chance; all of them in a row that would have none, as after an end."""
    valid = root.logits > -torch.inf
    if invalid is not None:
        if invalid.shape != root.logits.shape:
            raise ValueError(f"invalid has to be {tuple(root.logits.shape)}, not {tuple(invalid.shape)}")
        valid = valid & ~invalid
    return valid | ~valid.any(-1, keepdim=True)


def log_probs(logits: Float[Tensor, "*B A"], valid: Bool[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
    """Log probabilities among valid actions, -inf for the others; uniform where no valid one has a chance."""
    hopeless = (logits == -torch.inf).all(-1, keepdim=True)
    logits = torch.where(hopeless, 0.0, logits.float())
    return logits.masked_fill(~valid, -torch.inf).log_softmax(-1)


@torch.no_grad()
def grow(
    root: Root,
    recurrent: Recurrent,
    at_root: Rule,
    inside: Rule,
    *,
    simulations: int,
    max_depth: int,
    generator: Generator | None,
) -> Tree:
    """The trees after a number of simulations. ``root.logits`` are log probabilities, see ``log_probs``.

    A path has at most ``max_depth`` edges; one that would be longer ends at a node that is there already, and adds the
    value of that once more.
    """
    tree = plant(root, simulations)
    for new in range(1, simulations + 1):
        path = descend(tree, new, at_root, inside, max_depth)
        expand_(tree, new, path, recurrent, generator)
        back_up_(tree, path)
    return tree


def plant(root: Root, simulations: int) -> Tree:
    """Trees that are nothing but a root, with room for the rest."""
    batch, actions = root.logits.shape
    check_shapes(root, batch, actions)
    value = root.value.float()
    nodes, edges = (batch, simulations + 1), (batch, simulations + 1, actions)
    missing = torch.full(edges, NONE, device=value.device)
    tree = Tree(
        embedding=over_parts(lambda part: part.new_zeros(*nodes, *part.shape[1:]), root.embedding),
        logits=value.new_zeros(edges),
        **{name: value.new_zeros(nodes) for name in ("value", "reward", "discount")},
        parent=missing[..., 0].clone(),
        action=missing[..., 0].clone(),
        child=missing,
        visits=value.new_zeros(edges),
        total=value.new_zeros(edges),
        low=torch.full_like(value, torch.inf),
        high=torch.full_like(value, -torch.inf),
    )
    write_(tree, 0, root.embedding, root.logits, value)
    return tree


def descend(tree: Tree, new: int, at_root: Rule, inside: Rule, max_depth: int) -> Path:
    """Follow the rules to an edge that leads nowhere yet, there to put node ``new``; or to the greatest depth.

    The rules look at all nodes at once, which for tens of simulations is quicker than at one level of the paths after
    the other; it grows with the square of their number.
    """
    choice = torch.cat([at_root(tree.first(1)), inside(tree.first(new))[:, 1:]], 1)
    child = tree.child[:, :new].gather(2, choice.unsqueeze(2)).squeeze(2)
    node = torch.zeros_like(choice[:, :1])
    on = torch.ones_like(node, dtype=torch.bool)
    nodes, taken = [node], [on]
    while len(nodes) < max_depth:
        ahead = child.gather(1, node)
        on = on & (ahead != NONE)
        if not on.any():
            break
        node = torch.where(on, ahead, node)
        nodes.append(node)
        taken.append(on)
    node = torch.cat(nodes, 1)
    arrived = child.gather(1, node)
    return Path(node, choice.gather(1, node), torch.where(arrived == NONE, new, arrived), torch.cat(taken, 1))


def expand_(tree: Tree, new: int, path: Path, recurrent: Recurrent, generator: Generator | None) -> None:
    """Ask the model what the last edge of each path leads to, and make node ``new`` of it where it is new."""
    parent, action, leaf = path.node[:, -1], path.action[:, -1], path.arrived[:, -1]
    row = torch.arange(len(parent), device=parent.device)
    step = recurrent(over_parts(lambda part: part[row, parent], tree.embedding), action, generator)
    check_shapes(step, *tree.logits[:, 0].shape)
    write_(tree, new, step.embedding, step.logits.float().log_softmax(-1), step.value)
    tree.reward[:, new], tree.discount[:, new] = step.reward, step.discount
    tree.child[row, parent, action] = leaf
    is_new = leaf == new
    tree.parent[:, new] = torch.where(is_new, parent, NONE)
    tree.action[:, new] = torch.where(is_new, action, NONE)


def back_up_(tree: Tree, path: Path) -> None:
    """Add the return that each path found to its edges."""
    reward, discount = (part.gather(1, path.arrived) for part in (tree.reward, tree.discount))
    reward, discount = reward.masked_fill(~path.taken, 0), discount.masked_fill(~path.taken, 1)
    ahead, returns = tree.value.gather(1, path.arrived[:, -1:]).squeeze(1), []
    for r, d in zip(reward.unbind(1)[::-1], discount.unbind(1)[::-1], strict=True):
        ahead = torch.addcmul(r, d, ahead)
        returns.append(ahead)
    found = torch.stack(returns[::-1], 1).masked_fill(~path.taken, 0)
    visits, total = tree.visits.flatten(1), tree.total.flatten(1)  # views
    edge = path.node * tree.visits.shape[2] + path.action  # beyond the end of a path stands its last edge again
    visits.scatter_add_(1, edge, path.taken.to(visits))
    total.scatter_add_(1, edge, found)
    q = total.gather(1, edge) / visits.gather(1, edge)
    beyond = torch.cat([torch.zeros_like(path.taken[:, :1]), discount.cumprod(1)[:, :-1] == 0], 1)  # an end
    torch.minimum(tree.low, q.masked_fill(beyond, torch.inf).amin(1), out=tree.low)
    torch.maximum(tree.high, q.masked_fill(beyond, -torch.inf).amax(1), out=tree.high)


def check_shapes(said: Root | Step, batch: int, actions: int) -> None:
    for name in said._fields:
        shape = (batch, actions) if name == "logits" else (batch,)
        if name != "embedding" and getattr(said, name).shape != shape:
            raise ValueError(f"{name} of {batch} nodes has to be {shape}, not {tuple(getattr(said, name).shape)}")


def write_(
    tree: Tree, index: int, embedding: Embedding, logits: Float[Tensor, "B A"], value: Float[Tensor, " B"]
) -> None:
    """Write what a model said of a node."""

    def write(into: Tensor, part: Tensor) -> Tensor:
        into[:, index] = part
        return into

    over_parts(write, tree.embedding, embedding)
    tree.logits[:, index], tree.value[:, index] = logits, value


def over_parts(function: Callable[..., Tensor], *embeddings: Embedding) -> Embedding:
    """Apply ``function`` to corresponding tensors of embeddings, whatever they are nested in."""
    first = embeddings[0]
    if isinstance(first, Tensor):
        return function(*embeddings)
    return type(first)(*(over_parts(function, *parts) for parts in zip(*embeddings, strict=True)))
