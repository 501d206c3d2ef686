"""Updates of several learners in turns, each in a process of its own that stays: a, b, a, b, ...

    python results/peers/compare.py OUT.json ROUNDS "PYTHON RUNNER WORDS" "PYTHON RUNNER WORDS" ...

The first is what the others are compared with: each round gives a ratio, and the median of these is said with half
the distance of their quartiles. Seconds are CPU seconds as well as wall time; with one thread a busy machine changes
the former less.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def start(words: str) -> subprocess.Popen[str]:
    python, runner, *more = words.split()
    env = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [python, str(HERE / runner), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)


def answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{child.args} ended with {child.wait()}")
    return json.loads(line)


def compare(rounds: int, asked: list[str]) -> list[dict[str, Any]]:
    children: list[subprocess.Popen[str]] = []
    rows: list[dict[str, Any]] = []
    for words in asked:  # one after the other: what a child does to warm up is no competition for the next
        children.append(start(words))
        rows.append(answer(children[-1]) | {"wall": [], "cpu": []})
    for _ in range(rounds):
        for child, row in zip(children, rows, strict=True):
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            for clock, seconds in answer(child).items():
                row[clock].append(seconds)
    for child in children:
        child.communicate()
    for row in rows:
        for clock in ("wall", "cpu"):
            ratios = [a / b for a, b in zip(row[clock], rows[0][clock], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            row |= {
                f"{clock}_median": statistics.median(row[clock]), f"{clock}_times_the_first": statistics.median(ratios),
                f"{clock}_ratio_spread": (quartiles[2] - quartiles[0]) / 2,
            }  # fmt: skip
    return rows


def main(out: str, rounds: str, *asked: str) -> None:
    before = os.getloadavg()[0]
    rows = compare(int(rounds), list(asked))
    words = [" ".join(["python", *line.split()[1:]]) for line in asked]  # whose environment it is, its name says
    report = {"asked": words, "load": [before, os.getloadavg()[0]], "learners": rows}
    Path(out).write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['name']:28} {row['precision']}  {row['parameters']['all']:>9} weights  {row['gflop']:6.1f} GFLOP  "
            f"cpu {row['cpu_median']:6.2f} s  x{row['cpu_times_the_first']:.2f} +- {row['cpu_ratio_spread']:.2f}  "
            f"wall {row['wall_median']:6.2f} s  x{row['wall_times_the_first']:.2f}"
        )
    print(f"load {report['load']}, threads {rows[0]['threads']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
