"""A session over HTTP, for a browser on the same machine: one page, and a command for every method of the session.

``GET /`` is the page and ``GET /facts`` what does not change, as JSON. ``POST /look``, ``/choose``, ``/reset``,
``/step``, ``/rejoin`` and ``/record`` take a JSON object and answer with a line of JSON (``View.facts``, and ``count``
of images), a newline, and the images as raw bytes, uint8 [count, h, w, 3]. An error is ``{"error": LINE}``.

Whoever can reach the port may play: so it listens on 127.0.0.1 alone, wants that name in ``Host`` (a page elsewhere
could have its own name resolve to this machine) and, where a browser says where a command comes from, this page. No
name of a file comes from a client. All sizes and counts are bounded. Commands are carried out one after the other by
one thread, since GL contexts belong to threads.
"""

import json
import re
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Any, ClassVar

import numpy as np

from agents.training.cli import is_the_users
from agents.training.play.session import Session, View

MAX_CONNECTIONS = 16  # more are told to come back; a browser has six at most
MAX_BODY = 4096  # bytes
TIMEOUT_S = 30  # of a connection on which nothing arrives
COMMANDS: dict[str, tuple[set[str], set[str]]] = {  # keys that a body must have, and may have
    "/look": (set(), set()),
    "/choose": (set(), {"show", "driver", "futures", "temperature", "seed"}),
    "/reset": ({"episode", "frame"}, set()),
    "/step": (set(), {"action"}),
    "/rejoin": (set(), set()),
    "/record": ({"on", "fps"}, set()),
}
LOCAL = re.compile(r"(localhost|127\.0\.0\.1)(:\d{1,5})?")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
JSON, BYTES, HTML = "application/json", "application/octet-stream", "text/html; charset=utf-8"


class Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: HTTPStatus, line: str):
        super().__init__(line)
        self.status = status


class PlayServer(ThreadingHTTPServer):
    """Serves the session that ``build`` makes; ``build`` and all commands run on one thread. Port 0 is any free one.

    Raises what ``build`` raises, and ``OSError`` where the port is taken.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, build: Callable[[], Session], port: int):
        super().__init__(("127.0.0.1", port), PlayHandler)
        self.seats = BoundedSemaphore(MAX_CONNECTIONS)
        self.worker = ThreadPoolExecutor(1, "session")
        try:
            self.session = self.worker.submit(build).result()
        except BaseException:
            self.server_close()
            self.worker.shutdown()
            raise

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """Free the port and what the session holds."""
        self.server_close()
        self.worker.submit(self.session.close).result()
        self.worker.shutdown()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or 503 where there are too many."""
        if not self.seats.acquire(blocking=False):
            request.settimeout(1)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was to be had
            self.seats.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.seats.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break; anything else is a bug of ours, and the server goes on."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class PlayHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of requests that name none; 0.9 has no status to refuse them with
    server_version, sys_version = "play", ""
    timeout: ClassVar[float] = TIMEOUT_S
    disable_nagle_algorithm = True  # else the images wait 40 ms for the headers' acknowledgement
    server: PlayServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """The page, or the facts."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A command."""
        self._answer(self._command)

    def _get(self) -> tuple[str, bytes]:
        self._check_sender()
        if self.path == "/":
            return HTML, files("agents.training.play").joinpath("page.html").read_bytes()
        if self.path == "/facts":
            return JSON, json.dumps(self.server.worker.submit(self.server.session.describe).result()).encode()
        raise Refused(HTTPStatus.NOT_FOUND, "there is / and /facts")

    def _command(self) -> tuple[str, bytes]:
        self._check_sender()
        if self.path not in COMMANDS:
            raise Refused(HTTPStatus.NOT_FOUND, f"the commands are {', '.join(COMMANDS)}")
        body = self._body()
        must, may = COMMANDS[self.path]
        if not must <= body.keys() <= must | may:
            raise Refused(HTTPStatus.BAD_REQUEST, f"{self.path} takes {', '.join(sorted(must | may)) or 'nothing'}")
        session = self.server.session
        method: Callable[..., View] = getattr(session, "view" if self.path == "/look" else self.path[1:])
        return BYTES, encoded(self.server.worker.submit(method, **body).result())

    def _check_sender(self) -> None:
        host, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(host) != 1 or not LOCAL.fullmatch(host[0]):
            raise Refused(HTTPStatus.FORBIDDEN, "Host is to be localhost or 127.0.0.1: open the address as printed")
        if origin not in (None, f"http://{host[0]}"):
            raise Refused(HTTPStatus.FORBIDDEN, "commands of other pages are not carried out")

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != JSON:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a command is {JSON}")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"\d{1,9}", length, re.ASCII):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a command says its Content-Length")
        if int(length) > MAX_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a command has at most {MAX_BODY} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)), parse_constant=not_a_number)
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, f"not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "a command is a JSON object")
        return body

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        """Send what ``make`` gives; what is wrong is one line, and what is wrong with us a traceback here besides."""
        try:
            kind, content = make()
        except Refused as refused:
            self.send_error(refused.status, str(refused))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            if isinstance(error, (ValueError, OSError)) and is_the_users(error):
                self._refuse_kindly(str(error))
                return
            traceback.print_exc()
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _refuse_kindly(self, line: str) -> None:
        """A command that was understood and cannot be carried out: the connection goes on."""
        self._send(HTTPStatus.BAD_REQUEST, JSON, json.dumps({"error": one_line(line)}).encode())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line of JSON; the connection ends, since what is left on it was not read."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send(status, JSON, json.dumps({"error": one_line(message or status.phrase)}).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for every frame says nothing."""


def encoded(view: View) -> bytes:
    """A view as it is sent."""
    line = json.dumps(view.facts | {"count": len(view.images)}, allow_nan=False)
    return line.encode() + b"\n" + np.stack(view.images).tobytes()


def one_line(text: str) -> str:
    """The text without line breaks, and not long."""
    return " ".join(text.split())[:500]


def not_a_number(text: str) -> float:
    """JSON has no NaN and no infinities."""
    raise ValueError(f"{text} is no number")
