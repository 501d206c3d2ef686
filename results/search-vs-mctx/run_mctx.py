"""What DeepMind's mctx finds on random tabular worlds: tables, settings and results, as arrays.

    pip install mctx==0.0.71 jax==0.10.2     (in an environment of its own)
    python results/search-vs-mctx/run_mctx.py tests/data/mctx.npz 1

The last number is how often each case is repeated, with another world and other noise. ``cases`` is a JSON list of
settings; arrays are named ``caseN/...`` and ``worldW/...``. No Dirichlet noise, and where there is Gumbel noise it is
drawn here just as mctx will draw it, and kept.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np

STATES, ROOTS = 40, 6
SCALED = {"value_scale": 0.1, "maxvisit_init": 50.0, "rescale_values": True}
PLAIN = {"value_scale": 1.0, "maxvisit_init": 50.0, "rescale_values": False}
CASES: list[dict[str, Any]] = [
    {"search": "puct", "actions": 4, "simulations": 50, "max_depth": 50, "masked": False},
    {"search": "puct", "actions": 20, "simulations": 50, "max_depth": 50, "masked": True},
    {"search": "puct", "actions": 4, "simulations": 60, "max_depth": 2, "masked": False},
    {"search": "puct", "actions": 4, "simulations": 1, "max_depth": 1, "masked": True},
    {"search": "gumbel", "actions": 4, "simulations": 50, "max_depth": 50, "masked": False, "noise": 1.0, **SCALED},
    {"search": "gumbel", "actions": 20, "simulations": 50, "max_depth": 50, "masked": True, "noise": 1.0, **SCALED},
    {"search": "gumbel", "actions": 20, "simulations": 9, "max_depth": 50, "masked": False, "noise": 1.0, **SCALED},
    {"search": "gumbel", "actions": 4, "simulations": 60, "max_depth": 2, "masked": True, "noise": 0.0, **SCALED},
    {"search": "gumbel", "actions": 4, "simulations": 50, "max_depth": 50, "masked": False, "noise": 1.0, **PLAIN},
    {"search": "gumbel", "actions": 20, "simulations": 1, "max_depth": 1, "masked": False, "noise": 0.0, **PLAIN},
]


def world(actions: int, repeat: int) -> dict[str, np.ndarray]:
    """Where each action leads, what it earns; one edge in ten is an end."""
    draw = np.random.default_rng([actions, repeat])
    discount = np.where(draw.random((STATES, actions)) < 0.1, 0.0, 0.97)
    return {
        "next": draw.integers(STATES, size=(STATES, actions)),
        "reward": draw.normal(size=(STATES, actions)).astype(np.float32),
        "discount": discount.astype(np.float32),
        "logits": draw.normal(size=(STATES, actions)).astype(np.float32),
        "value": draw.normal(size=STATES).astype(np.float32),
    }


def run(case: dict[str, Any], tables: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    t = {name: jnp.asarray(table) for name, table in tables.items()}
    state = jnp.arange(ROOTS)

    def recurrent(params: Any, key: Any, action: jax.Array, state: jax.Array) -> tuple[Any, jax.Array]:
        reached = t["next"][state, action]
        return mctx.RecurrentFnOutput(
            reward=t["reward"][state, action],
            discount=t["discount"][state, action],
            prior_logits=t["logits"][reached],
            value=t["value"][reached],
        ), reached

    invalid = np.random.default_rng(seed).random((ROOTS, case["actions"])) < (0.4 if case["masked"] else 0.0)
    invalid[:, 0] &= ~invalid.all(1)
    key = jax.random.PRNGKey(seed)
    given: dict[str, Any] = {
        "params": (), "rng_key": key, "recurrent_fn": recurrent, "num_simulations": case["simulations"],
        "max_depth": case["max_depth"], "invalid_actions": jnp.asarray(invalid, jnp.float32),
        "root": mctx.RootFnOutput(prior_logits=t["logits"][state], value=t["value"][state], embedding=state),
    }  # fmt: skip
    noise = np.zeros((ROOTS, case["actions"]), np.float32)
    if case["search"] == "puct":
        found = mctx.muzero_policy(**given, dirichlet_fraction=0.0, temperature=0.0)
    else:
        noise = case["noise"] * np.asarray(jax.random.gumbel(jax.random.split(key)[1], noise.shape))
        scale = {name: case[name] for name in SCALED}
        q = functools.partial(mctx.qtransform_completed_by_mix_value, **scale)
        found = mctx.gumbel_muzero_policy(**given, gumbel_scale=case["noise"], qtransform=q)
    summary, tree = found.search_tree.summary(), found.search_tree
    results = {
        "action": found.action, "weights": found.action_weights, "value": summary.value, "invalid": invalid,
        "visits": tree.children_visits, "child": tree.children_index, "node_values": tree.node_values, "noise": noise,
    }  # fmt: skip
    narrow = {"visits": np.int16, "child": np.int16, "action": np.int16}
    return {name: np.asarray(part).astype(narrow.get(name, np.asarray(part).dtype)) for name, part in results.items()}


def main(out: Path, repeats: int) -> None:
    cases = [case | {"world": f"{case['actions']}-{repeat}"} for repeat in range(repeats) for case in CASES]
    arrays: dict[str, np.ndarray] = {"cases": np.array(json.dumps(cases))}
    for number, case in enumerate(cases):
        tables = world(case["actions"], repeat=number // len(CASES))
        arrays |= {f"world{case['world']}/{name}": table for name, table in tables.items()}
        arrays |= {f"case{number}/{name}": part for name, part in run(case, tables, seed=number).items()}
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
