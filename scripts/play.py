"""Drive inside a world model's dream, or watch the agent: python scripts/play.py RUN

Prints the address of a page on this machine: dream, real environment or both, parallel futures, any frame of the
run's replay to begin at, films into RUN/videos (of zoo:NAME into ./videos). Ctrl-C ends it. What there is to see is
in docs/play.md.
"""

import argparse
from functools import partial
from pathlib import Path

from agents.training.cli import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="play.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="folder that training wrote, an exported one, or zoo:NAME"
    )
    parser.add_argument("--port", type=int, default=8000, help="of the page, on 127.0.0.1 alone; 0 is any free one")
    arguments = parser.parse_args(argv)
    run, port = arguments.run, arguments.port
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, not {port}")

    from agents.pretrained import load_trained
    from agents.training.devices import choose_device
    from agents.training.play.server import PlayServer
    from agents.training.play.session import Session
    from agents.training.play.starts import starts_of
    from worldmodels.envs import make_env

    trained = load_trained(run, choose_device("auto"))
    make = partial(make_env, trained.card.task, trained.card.env, 0)
    starts, videos = starts_of(run, trained.model.spaces, make), run / "videos" if run.is_dir() else Path("videos")
    try:
        server = PlayServer(lambda: Session(trained, starts, make, videos), port)
    except OSError as error:
        if error.filename is not None:  # a file, and not the port
            raise
        raise ValueError(f"cannot listen on port {port} ({error.strerror}): choose another with --port") from error
    print(f"open {server.address} in a browser on this machine; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    run_script(main)
