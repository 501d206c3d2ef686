"""What each verb of the benchmark asks for; nothing here imports torch, so that --help comes at once."""

from pathlib import Path
from typing import Any

AGENTS = {"required": True, "help": "names, separated by commas"}
TURNS = {"type": int, "default": 10, "help": "calls of each, after one to warm up"}
EPISODES = {"type": int, "default": 20, "help": "one for each seed, the same ones for all"}
CLOCK = {"choices": ["wall", "cpu"], "default": "wall", "help": "cpu: CPU seconds, for one thread on a busy machine"}
ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "act": {
        "--agent": AGENTS,
        "--envs": {"default": "1,8", "help": "numbers of environments"},
        "--against": {"metavar": "WORDS", "help": "settings to add for a second row of each, in quotes"},
        "--turns": TURNS,
        "--clock": CLOCK,
    },
    "env": {
        "--task": {"default": "toy:reach,walker-walk", "help": "names, separated by commas"},
        "--quality": {"default": "full,fast,lean", "help": "of rendering: full, fast, lean"},
        "--workers": {"default": "0", "help": "numbers of processes; 0: one environment in this one"},
        "--steps": {"type": int, "default": 20, "help": "of the whole pool in a turn"},
        "--turns": TURNS,
    },
    "replay": {
        "--sizes": {"default": "2000,20000", "help": "steps held, separated by commas"},
        "--turns": TURNS,
    },
    "run": {},
    "uses": {
        "run": {"type": Path, "help": "folder that training wrote, or an exported one"},
        "--agent": AGENTS,
        "--episodes": EPISODES,
    },
    "update": {
        "--against": {"metavar": "WORDS", "help": "settings to add for a second configuration, in quotes"},
        "--vary": {"metavar": "NAME=VALUES", "help": "length, batch, horizon, image, size or a dotted setting"},
        "--turns": TURNS,
        "--clock": CLOCK,
    },
}
