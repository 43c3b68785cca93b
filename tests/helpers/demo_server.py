"""A demo's server with work that needs no model, and clients of it."""

import contextlib
import http.client
import json
import socket
import threading
import time

from vqd_jax.web.demo import access
from vqd_jax.web.demo.queue import JobQueue
from vqd_jax.web.demo.server import Server


class Work:
    """Counts events; a request is (name, how many), and waits for `go` at each."""

    def __init__(self):
        self.done, self.go = [], threading.Event()
        self.go.set()

    def __call__(self, request):
        name, count = request
        for i in range(count):
            assert self.go.wait(20)
            self.done.append((name, i))
            yield {"call": i}
        yield {"done": name}


def heard(job):
    return [event for event in job.events() if "waiting" not in event]


def wait(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def served(
    work=None,
    read=lambda fields: (fields["name"], fields["count"]),
    host="127.0.0.1",
    allowed=(),
):
    allowed = access.host_names(allowed)
    server = Server(host, 0, {"name": "toy"}, read, JobQueue(work or Work()), allowed)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server, method, path, body=None, **headers):
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    given = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(
        method,
        path,
        body,
        given | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    answer = connection.getresponse()
    out = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return out


def events(server, **fields):
    status, _, body = ask(server, "POST", "/api/draw", json.dumps(fields))
    assert status == 200
    return [event for event in map(json.loads, body.splitlines()) if "waiting" not in event]


def read_until(connection, end):
    answer = b""
    while end not in answer:
        chunk = connection.recv(1000)
        assert chunk, answer
        answer += chunk
    return answer


def sent_raw(server, content):
    """(the answer, whether the connection was closed then)"""
    answer = b""
    with socket.create_connection(server.server_address[:2], 20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(content)
        connection.settimeout(0.3)
        try:
            while chunk := connection.recv(2**16):
                answer += chunk
        except TimeoutError:
            return answer, False
        except ConnectionError:
            pass
    return answer, True
