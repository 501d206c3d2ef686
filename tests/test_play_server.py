"""Playing over HTTP: frames arrive, and nothing that arrives does harm."""

import http.client
import json
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, needs_browser
from stage import SIZE, Stage, same

from agents.training.config import RunConfig
from agents.training.play import server
from agents.training.play.server import COMMANDS, MAX_BODY, MAX_CONNECTIONS, PlayServer
from agents.training.play.session import Session, View
from worldmodels.envs.gl import RenderingError

RIGHT = [1.0, 0.0]


@pytest.fixture
def web(tmp_path: Path, debug_run: Callable[..., RunConfig]) -> Iterator[PlayServer]:
    serving = PlayServer(Stage(tmp_path, debug_run("dreamer", None, "--env.size", str(SIZE)), "toy:reach").session, 0)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.close()


Answer = tuple[int, bytes]


def ask(web: PlayServer, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request on a connection of its own; ``body`` as JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", web.server_port, timeout=20)
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, content, {"Content-Type": "application/json"} | named)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def view_of(answer: Answer) -> tuple[dict[str, Any], np.ndarray]:
    status, content = answer
    assert status == 200, content
    line, _, pixels = content.partition(b"\n")
    facts = json.loads(line)
    return facts, np.frombuffer(pixels, np.uint8).reshape(facts["count"], SIZE, SIZE, 3)


def error_of(answer: Answer) -> str:
    line = json.loads(answer[1])["error"]
    assert line and "\n" not in line and len(line) <= 500 and "Traceback" not in line
    return line


def raw(web: PlayServer, request: bytes) -> bytes:
    """What comes back for bytes that may be no HTTP at all."""
    with socket.create_connection(("127.0.0.1", web.server_port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_frames_arrive(web: PlayServer) -> None:
    facts, images = view_of(ask(web, "POST", "/look", {}))
    assert facts["show"] == "dream" and images.shape == (2, SIZE, SIZE, 3)
    view_of(ask(web, "POST", "/choose", {"futures": 3, "driver": "person"}))
    films = [view_of(ask(web, "POST", "/step", {"action": RIGHT})) for _ in range(4)]
    assert [facts["step"] for facts, _ in films] == [1, 2, 3, 4] and films[-1][1].shape == (4, SIZE, SIZE, 3)
    now = web.session.view()
    assert np.array_equal(films[-1][1], np.stack(now.images)) and films[-1][0] == now.facts | {"count": 4}
    assert not np.array_equal(films[0][1][1], films[-1][1][1])


def test_the_page_and_the_facts(web: PlayServer) -> None:
    status, page = ask(web, "GET", "/")
    assert status == 200 and b"</html>" in page
    assert not [word for word in (b"https:", b"http:", b"@import", b"url(") if word in page], "nothing from elsewhere"
    assert json.loads(ask(web, "GET", "/facts")[1])["task"] == "toy:reach"


def test_many_commands_go_over_one_connection(web: PlayServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.server_port, timeout=20)
    for body, status in ((b"{}", 200), (b'{"action": 3}', 200), (b"{}", 200)):
        connection.request("POST", "/step", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == status and response.read()
    connection.request("POST", "/reset", b'{"episode": 99, "frame": 0}', {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert (response.status, error_of((400, response.read()))) == (400, "episode is a whole number from 0 to 1")
    connection.request("POST", "/look", b"{}", {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200, "a refused command does not end the connection"
    connection.close()


def test_another_host_is_refused(web: PlayServer) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example:80", "localhost.evil:1", "", "192.168.0.1", "localhost:x"):
        for method, path in (("GET", "/"), ("GET", "/facts"), ("POST", "/step")):
            answer = ask(web, method, path, {} if method == "POST" else None, Host=host)
            assert answer[0] == 403 and "Host" in error_of(answer)
    assert web.session.view().facts["step"] == 0


def test_commands_of_other_pages_are_refused(web: PlayServer) -> None:
    port = web.server_port
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"):
        assert ask(web, "POST", "/step", {}, Origin=origin)[0] == 403
    assert ask(web, "POST", "/step", {}, Content_Type="text/plain")[0] == 415, "a form of another page needs no leave"
    assert web.session.view().facts["step"] == 0
    assert ask(web, "POST", "/step", {}, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(web, "POST", "/step", {}, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_unknown_routes_and_methods_are_refused(web: PlayServer) -> None:
    secrets = ("/../../etc/passwd", "/page.html", "/%2e%2e/", "/videos/play-000.mp4")
    for path in (*secrets, "/?x=1", "/close", "/__init__", "*"):
        for method, body in (("GET", None), ("POST", {})):
            answer = ask(web, method, path, body)
            assert answer[0] == 404 and error_of(answer), path
    assert ask(web, "POST", "/", {})[0] == 404 and ask(web, "GET", "/step")[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "HEAD"):
        assert ask(web, method, "/step")[0] == 501


def test_malformed_commands_are_400_and_one_line(web: PlayServer) -> None:
    values = (b"[]", b"1", b"null", b'"x"', b'{"other": 1}', b'{"action": 1, "self": 2}')
    for body in (b"", b"{", b"no", b"\xff\xfe", b"[" * 4000, b'{"action": NaN}', b'{"action": Infinity}', *values):
        answer = ask(web, "POST", "/step", body)
        assert answer[0] == 400 and error_of(answer), body
    assert web.session.view().facts["step"] == 0


def test_no_value_does_harm(web: PlayServer) -> None:
    web.session.choose(driver="person")
    before = web.session.view()
    for value in (None, -1, 10**300, "../../etc/passwd", [[]], {"a": {}}):
        for path, (must, may) in COMMANDS.items():
            for names in [{name} for name in may] or [must]:
                answer = ask(web, "POST", path, dict.fromkeys(names, value))
                assert answer[0] == (200 if path == "/look" else 400), (path, value)
    assert same(before, web.session.view())


def test_bodies_are_bounded(web: PlayServer) -> None:
    answer = ask(web, "POST", "/step", b" " * (MAX_BODY + 1))
    assert answer[0] == 413 and str(MAX_BODY) in error_of(answer)
    head = f"POST /step HTTP/1.1\r\nHost: localhost:{web.server_port}\r\nContent-Type: application/json\r\n".encode()
    assert b" 413 " in raw(web, head + b"Content-Length: 999999999\r\n\r\n{}")
    for length in (b"-1", b"1e3", b"", b"9999999999999999999999", "\u0663".encode()):
        assert b" 411 " in raw(web, head + b"Content-Length: " + length + b"\r\n\r\n{}")
    assert b" 411 " in raw(web, head + b"\r\n")
    assert b" 411 " in raw(web, head + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert b" 400 " in raw(web, head + b"Content-Length: 50\r\n\r\n{"), "it ends before it should"


def test_what_is_no_http_is_refused(web: PlayServer, capfd: pytest.CaptureFixture[str]) -> None:
    for request, status in (
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
        (b"GET / HTTP/9.9\r\n\r\n", b" 505 "),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", b" 431 "),
        (b"GET / HTTP/1.1\r\n\r\n", b" 403 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b" 403 "),
        (b"GET /\r\n\r\n", b" 403 "),
    ):
        assert status in raw(web, request).partition(b"\r\n")[0] + b" ", request[:40]
    assert raw(web, b"") == b""
    assert ask(web, "GET", "/facts")[0] == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_more_connections_than_seats_are_turned_away(web: PlayServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", web.server_port), timeout=20) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        answered: list[socket.socket] = []
        for _ in range(200):
            answered, _, _ = select.select(idle, [], [], 0)
            if len(answered) == 2 * MAX_CONNECTIONS:
                break
            time.sleep(0.05)
        assert [connection.recv(100)[:12] for connection in answered] == [b"HTTP/1.1 503"] * 2 * MAX_CONNECTIONS
        assert sum(thread.name.startswith("Thread") for thread in threading.enumerate()) <= MAX_CONNECTIONS + 1
    finally:
        for connection in idle:
            connection.close()
    for _ in range(200):  # the seats are given back as the threads see the end
        if ask(web, "GET", "/facts")[0] == 200:
            break
    else:
        pytest.fail("the seats were not given back")


def test_a_connection_that_says_nothing_is_closed(web: PlayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.PlayHandler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", web.server_port), timeout=20) as connection:
        connection.sendall(b"POST /step HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        assert connection.recv(100) == b""


def test_a_flood_of_commands_is_carried_out_one_by_one(web: PlayServer) -> None:
    statuses: list[int] = []

    def flood() -> None:
        for _ in range(10):
            statuses.append(ask(web, "POST", "/step", {})[0])

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 80 and web.session.view().facts["step"] == 80


def test_a_bug_of_ours_is_answered_with_one_line_and_the_server_goes_on(
    web: PlayServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(action: object = None) -> View:
        raise RuntimeError("two\nlines")

    with monkeypatch.context() as patch:
        patch.setattr(web.session, "step", broken)
        answer = ask(web, "POST", "/step", {})
    assert answer[0] == 500 and error_of(answer) == "RuntimeError: two lines"
    assert "Traceback" in capfd.readouterr().err, "whoever runs the program sees it"
    assert ask(web, "POST", "/step", {})[0] == 200


def test_a_film_that_cannot_be_written_is_one_line(web: PlayServer) -> None:
    web.session.videos.write_text("a file where a folder should be")
    assert ask(web, "POST", "/record", {"on": True, "fps": 15})[0] == 200
    answer = ask(web, "POST", "/record", {"on": False, "fps": 15})
    assert answer[0] == 400 and "videos" in error_of(answer)
    assert view_of(ask(web, "POST", "/step", {}))[0]["recording"] is None


def test_a_port_that_is_taken_and_a_session_that_cannot_be(web: PlayServer) -> None:
    with pytest.raises(OSError):
        PlayServer(lambda: web.session, web.server_port)

    def none() -> Session:
        raise RenderingError("no GL library renders here")

    with pytest.raises(ValueError, match="no GL"):
        PlayServer(none, 0)


@needs_browser
def test_the_page_shows_the_dream_in_a_browser(web: PlayServer) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    result = subprocess.run([str(CHROMIUM), *flags, web.address], capture_output=True, text=True, timeout=120)
    shown = result.stdout.partition("<script>")[0]
    for text in ("toy:reach", "dreamer on rssm-v3", "step 0", "return 0.00", "2 of 2", "Space plays"):
        assert text in shown, (text, result.stderr[-500:])
    assert 'class="error"' not in shown and shown.count("<canvas") == 3, "where it begins, the dream, the chart"
