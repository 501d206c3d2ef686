"""One page about runs: python scripts/report.py RUN... --out report.html

Learning curves with intervals over seeds, agents compared, films by checkpoint, errors of imagination, the use of the
latent, warnings, differing configs. A file that opens from disk without a network; where there are many films they lie
in a folder beside it. Runs that differ by their seed alone are one curve. docs/report.md says how to read it.
"""

import argparse
import sys
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders that training wrote")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page, default: report.html")
    parser.add_argument(
        "--look", type=int, default=8, metavar="EPISODES", help="recorded episodes that are imagined, 0: none"
    )
    parser.add_argument("--play", action="store_true", help="imagine new episodes on evaluation's seeds instead")
    arguments = parser.parse_args(argv)
    if arguments.look < 0:
        raise ValueError(f"--look must be 0 or more, not {arguments.look}")
    if arguments.out.suffix != ".html":
        raise ValueError(f"cannot write {arguments.out}: a report ends in .html")

    from agents.training.report.page import build

    def note(problem: str) -> None:
        print(f"warning: {problem}", file=sys.stderr)

    page, count = build(arguments.runs, arguments.out, episodes=arguments.look, play=arguments.play, note=note)
    print(f"{page}: {count} run{'s' if count != 1 else ''}, {page.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run_script(main)
