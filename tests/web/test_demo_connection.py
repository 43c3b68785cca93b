"""HTTP as the demo speaks it, with work that needs no model: ambiguous, slow and large requests, many
connections.
"""

import concurrent.futures
import contextlib
import http.client
import json
import re
import socket
import time

import pytest

from helpers.demo_server import Work, ask, events, read_until, sent_raw, served, wait
from vqd_jax.core.errors import UserError
from vqd_jax.web.demo import connection as limits
from vqd_jax.web.demo import server as serving

GET, POST = (b"%b HTTP/1.1\r\nHost: localhost\r\n" % what for what in (b"GET /", b"POST /api/draw"))


NEXT = b"GET /api/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


AMBIGUOUS = {
    "a GET with a body": GET + b"Content-Length: 5\r\n\r\nhello",
    "a GET with a chunked body": GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length and chunked": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\nhello",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two hosts": GET + b"Host: example.org\r\n\r\n",
    "the same host twice": GET + b"Host: localhost\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 6\r\n\r\nhello",
    "a space before the colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "a bare carriage return": POST + b"X: y\rContent-Length: 5\r\n\r\nhello",
    "a line without a colon": POST + b"hello\r\nContent-Length: 5\r\n\r\nhello",
    "a name that is no token": POST + b"Content-Length\x0b: 5\r\n\r\nhello",
    "an empty name": POST + b": x\r\n\r\n",
    "a zero byte": GET + b"X: \x00\r\n\r\n",
    "a first line folded": b"GET / HTTP/1.1\r\n X: y\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "another version": b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "too many headers": GET + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
    "a long header": GET + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_requests_are_refused_and_end_the_connection(request_):
    """A proxy might see other requests in the same bytes; none of what follows is answered."""
    with served() as server:
        answer, closed = sent_raw(server, request_ + NEXT)
        assert closed and answer.count(b"HTTP/1.1 ") <= 1 and b"toy" not in answer
        assert re.match(rb"HTTP/1\.1 (400|403|413|414|431|501|505) |$", answer)
        if answer:  # it may have ended before everything was sent
            head, _, body = answer.partition(b"\r\n\r\n")
            assert b"connection: close" in head.lower() and {*json.loads(body)} == {"error"}
        answer, closed = sent_raw(server, NEXT + NEXT)
        assert not closed and answer.count(b"HTTP/1.1 200 ") == 2


def test_old_clients_and_proxies_get_no_chunks():
    """nginx asks in HTTP/1.0, whose answers end with the connection; and it shall not collect what
    it passes on.
    """
    body = b'{"name": "x", "count": 1}'
    head = b"POST /api/draw HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with served() as server:
        sent = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        answer, closed = sent_raw(server, sent)
    head, _, lines = answer.partition(b"\r\n\r\n")
    assert closed and head.startswith(b"HTTP/1.1 200") and b"chunked" not in head
    assert re.search(rb"(?i)x-accel-buffering: no", head)
    assert [*map(json.loads, lines.splitlines())][-1] == {"done": "x"}


@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6(host):
    with served(host=host) as server:
        port = server.server_address[1]
        assert server.address == f"http://[{host}]:{port}/"
        for name in ("::1", "127.0.0.1") if host == "::" else ("::1",):
            connection = http.client.HTTPConnection(name, port, timeout=20)
            connection.request("GET", "/api/models")
            assert json.loads(connection.getresponse().read()) == {"name": "toy"}
            connection.close()


def test_bodies_may_come_in_chunks(monkeypatch):
    monkeypatch.setattr(limits, "MAX_BODY", 1000)
    with served() as server:
        for name, status in (("x", 200), ("x" * 2000, 413)):
            body = json.dumps({"name": name, "count": 1}).encode()
            connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
            kind = {"Content-Type": "application/json"}
            parts = (body[i : i + 7] for i in range(0, len(body), 7))
            connection.request("POST", "/api/draw", parts, kind, encode_chunked=True)
            assert connection.getresponse().status == status
            connection.close()


def test_slow_headers_time_out(monkeypatch):
    """However many bytes still come, and also if none ever came, or after another request."""
    monkeypatch.setattr(limits, "HEADER_TIMEOUT", 0.4)
    with served() as server, contextlib.ExitStack() as stack:
        connect = lambda: stack.enter_context(socket.create_connection(server.server_address[:2]))
        silent, slow, second = connect(), connect(), connect()
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        second.sendall(NEXT + b"GET / HTTP/1.1\r\n")
        ended = set()

        def all_ended():
            for connection in {silent, slow, second} - ended:
                with contextlib.suppress(OSError):
                    if connection is not silent:
                        connection.sendall(b"X: y\r\n")
                if gone(connection):
                    ended.add(connection)
            return len(ended) == 3

        wait(all_ended, seconds=5)
        assert ask(server, "GET", "/")[0] == 200


def test_bad_and_large_requests_are_one_sentence(monkeypatch):
    def read(fields):
        raise UserError("calls must be in 1..100")

    monkeypatch.setattr(limits, "MAX_BODY", 2**20)
    with served(Work(), read) as server:
        for body, status, sentence in (
            ("{}", 400, "calls must be in 1..100"),
            ("{", 400, "the request is not valid JSON"),
            (b"\xff", 400, "the request is not valid JSON"),
            ("[" * 100_000, 400, "the request is not valid JSON"),
            (b"0" * (2**20 + 1), 413, "the body of a request must have at most 1 MiB"),
        ):
            got, _, answer = ask(server, "POST", "/api/draw", body)
            assert (got, json.loads(answer)) == (status, {"error": sentence})
        for length in (b"-5", b"+5", b"0x5", b"", b"1_0", "²".encode("latin-1"), b"9" * 5000):
            with socket.create_connection(server.server_address[:2]) as connection:
                connection.sendall(
                    b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: %b\r\n\r\n"
                    % length
                )
                assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("close", [True, False])
def test_connections_are_kept_alive_unless_the_client_declines(close):
    body = b'{"name": "x", "count": 1}'
    head = (
        b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
        b"application/json\r\nContent-Length: %d\r\n" % len(body)
    )
    with (
        served(Work()) as server,
        socket.create_connection(server.server_address[:2], timeout=20) as connection,
    ):
        for _ in range(1 if close else 3):
            connection.sendall(head + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200") and b'{"done": "x"}' in answer
        if close:
            assert connection.recv(1) == b""


def test_other_methods():
    with served() as server:
        status, headers, body = ask(server, "HEAD", "/page.js")
        assert status == 200 and int(headers["Content-Length"]) > 1000 and body == b""
        for method in ("PUT", "OPTIONS", "CONNECT", "DELETE", "TRACE"):
            assert ask(server, method, "/")[0] == 501
        upgrade = NEXT[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        for request in (upgrade, NEXT.replace(b"/api", b"http://example.org/api", 1)):
            answer, _ = sent_raw(server, request + NEXT)
            assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 404 "))


def test_a_bug_is_answered_too(caplog):
    with served(Work(), lambda fields: fields["name"]) as server:
        status, _, body = ask(server, "POST", "/api/draw", "{}")
    assert (status, json.loads(body)["error"]) == (
        500,
        "the request could not be parsed: see the log of the server",
    )
    assert "KeyError" in caplog.text


def test_endless_bodies_time_out(monkeypatch):
    """In chunks that come at once, but are hardly a byte each: the time is limited, too."""
    monkeypatch.setattr(limits, "BODY_TIMEOUT", 0.3)
    with served() as server, socket.create_connection(server.server_address[:2], 20) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"1;" + b"x" * 10_000 + b"\r\n \r\n"
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < start + 10:
                connection.sendall(chunk)
        assert time.monotonic() < start + 5


def test_slow_bodies_time_out(monkeypatch):
    monkeypatch.setattr(limits, "BODY_TIMEOUT", 0.5)
    with served(Work()) as server, socket.create_connection(server.server_address[:2]) as slow:
        slow.sendall(
            b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
        )

        def tried():
            with contextlib.suppress(OSError):
                slow.sendall(b" ")
            return gone(slow)

        wait(tried)
        assert ask(server, "GET", "/")[0] == 200


def test_connections_are_bounded(monkeypatch):
    """A connection beyond the limit is closed at once and takes no thread; later ones are served,
    and those of another client, which has its own share.
    """
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 6)
    with served(Work()) as server:
        with contextlib.ExitStack() as stack:
            idle = [
                stack.enter_context(socket.create_connection(server.server_address[:2]))
                for _ in range(3)
            ]
            more = stack.enter_context(socket.create_connection(server.server_address[:2]))
            wait(lambda: gone(more))
            assert not any(map(gone, idle))
            other = socket.create_connection(server.server_address[:2], 20, ("127.0.0.2", 0))
            stack.enter_context(other).sendall(NEXT)
            read_until(other, b"toy")
        wait(lambda: not server.clients)
        assert ask(server, "GET", "/")[0] == 200


def gone(connection):
    """Whether the other side has closed this one, maybe after an answer."""
    connection.settimeout(0.05)
    try:
        while connection.recv(1000):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def test_requests_are_parsed_one_at_a_time():
    together, most = [], []

    def read(fields):
        together.append(1)
        most.append(len(together))
        time.sleep(0.01)
        together.pop()
        return "x", 1

    with served(Work(), read) as server, concurrent.futures.ThreadPoolExecutor(8) as clients:
        list(clients.map(lambda i: events(server), range(16)))
    assert most == [1] * 16
