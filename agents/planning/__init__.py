"""Planning: search for good actions, in sequences (``search``) or in trees (``tree``). Pure functions: no model, no
agent in here."""

from agents.planning.gradient import Gradient
from agents.planning.gumbel import Gumbel
from agents.planning.puct import PUCT
from agents.planning.sampled import Sampled, by_index, draw_actions
from agents.planning.search import Found, Plan, Score, SearchSpace, chunked
from agents.planning.shooting import CEM, ICEM, MPPI, RandomShooting
from agents.planning.tree import Recurrent, Root, Searched, Step, Tree

Planner = RandomShooting | CEM | ICEM | MPPI | Gradient
"""``initial(batch, space, device) -> Plan`` and ``planner(score, plan, space, generator) -> Found``."""

TreeSearch = PUCT | Gumbel
"""``search(root, recurrent, generator, explore=, invalid=) -> Searched``."""

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PUCT",
    "Found",
    "Gradient",
    "Gumbel",
    "Plan",
    "Planner",
    "RandomShooting",
    "Recurrent",
    "Root",
    "Sampled",
    "Score",
    "SearchSpace",
    "Searched",
    "Step",
    "Tree",
    "TreeSearch",
    "by_index",
    "chunked",
    "draw_actions",
]
