"""One update of two checkouts in turns, each in a process of its own: what a change of code gained.

    python results/performance/before_after.py OLD NEW --turns 9 --threads 2 --out OUT.json -- --agent dreamer ...

OLD and NEW are folders; what follows are settings of training. The ratio is the median of those of single turns, with
half the distance of their quartiles.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CHILD = """
import sys, time
import torch
from agents.training import cli
from agents.training.benchmark.update import Case

threads, words = int(sys.argv[1]), sys.argv[2:]
torch.set_num_threads(threads)
case = Case(cli.parse(words).config, threads)
case.update(), case.update()
print("ready", flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    case.update()
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
"""


def start(folder: Path, threads: int, words: list[str]) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(threads), *words],
        cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout is not None
    if not any(line.startswith("ready") for line in child.stdout):
        raise SystemExit(f"{folder} could not make an update of: {' '.join(words)}")
    return child


def main(folders: list[Path], turns: int, threads: int, out: Path, words: list[str]) -> None:
    children = [start(folder, threads, words) for folder in folders]
    seconds: list[list[list[float]]] = [[], []]
    for turn in range(turns):
        for i in (0, 1) if turn % 2 else (1, 0):
            stdin, stdout = children[i].stdin, children[i].stdout
            assert stdin is not None and stdout is not None
            print(file=stdin, flush=True)
            seconds[i].append(list(map(float, stdout.readline().split())))
    report: dict[str, object] = {"words": words, "threads": threads, "turns": turns}
    for clock, name in enumerate(("wall", "cpu")):
        old, new = ([turn[clock] for turn in each] for each in seconds)
        ratios = [a / b for a, b in zip(old, new, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        report[name] = {
            "old": old, "new": new, "old_median": statistics.median(old), "new_median": statistics.median(new),
            "times": statistics.median(ratios), "spread": (high - low) / 2,
        }  # fmt: skip
        print(name, *(f"{key} {value:.3f}" for key, value in report[name].items() if isinstance(value, float)))  # pyright: ignore
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=2, type=Path)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given, words = sys.argv[1:], []
    if "--" in given:
        given, words = given[: given.index("--")], given[given.index("--") + 1 :]
    arguments = parser.parse_args(given)
    main(arguments.folders, arguments.turns, arguments.threads, arguments.out, words)
