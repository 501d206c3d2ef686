"""Planning: search for action sequences that a scoring function likes. Pure functions: no model, no agent in here."""

from agents.planning.gradient import Gradient
from agents.planning.search import Found, Plan, Score, SearchSpace, chunked
from agents.planning.shooting import CEM, ICEM, MPPI, RandomShooting

Planner = RandomShooting | CEM | ICEM | MPPI | Gradient
"""``initial(batch, space, device) -> Plan`` and ``planner(score, plan, space, generator) -> Found``."""

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "Found",
    "Gradient",
    "Plan",
    "Planner",
    "RandomShooting",
    "Score",
    "SearchSpace",
    "chunked",
]
