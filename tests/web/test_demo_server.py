"""The server of the demo, with work that needs no model: the page, clients, and other sites."""

import concurrent.futures
import contextlib
import gc
import http.client
import json
import re
import socket
import tracemalloc

import pytest

from helpers.demo_server import Work, ask, events, read_until, served, wait
from vqd_jax.core.errors import UserError
from vqd_jax.web.demo import access


def test_fifty_requests_of_ten_clients_are_all_answered_in_order_in_flat_memory():
    order = []

    def read(fields):
        order.append(fields["name"])
        return fields["name"], 20

    class Big(Work):
        def __call__(self, request):
            for event in super().__call__(request):
                yield event | {"pictures": [request[0] * 100_000]}

    work = Big()
    with served(work, read) as server, concurrent.futures.ThreadPoolExecutor(10) as clients:
        peaks = []
        tracemalloc.start()
        for _ in range(3):
            order.clear(), work.done.clear()
            answers = [*clients.map(lambda i: events(server, name=f"{i:02d}"), range(50))]
            assert [answer[-1]["done"] for answer in answers] == [f"{i:02d}" for i in range(50)]
            del answers
            drawn = list(dict.fromkeys(name for name, _ in work.done))
            assert sorted(drawn) == [f"{i:02d}" for i in range(50)]
            assert (
                max(abs(drawn.index(name) - i) for i, name in enumerate(order)) < 10
            )  # clients that read at once may join in turn
            gc.collect()
            peaks.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert peaks[-1] < peaks[0] + 2_000_000


def test_a_client_that_goes_stops_the_work():
    work = Work()
    work.go.clear()
    with served(work) as server:
        body = json.dumps({"name": "gone", "count": 100_000})
        connection = socket.create_connection(server.server_address[:2])
        connection.sendall(
            "POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            f"application/json\r\nContent-Length: {len(body)}"
            f"\r\n\r\n{body}".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait(lambda: server.queue._current is not None)  # one that still waits would be removed
        connection.close()
        wait(lambda: server.queue._current.cancelled)
        work.go.set()
        assert events(server, name="next", count=1)[-1] == {"done": "next"}
    assert len([w for w in work.done if w[0] == "gone"]) <= 1


def test_requests_can_be_stopped():
    """Where a proxy keeps the connection that the browser has closed: a waiting one and one that
    runs end, and only whoever has the address can do that.
    """
    work = Work()
    work.go.clear()
    fields = json.dumps({"name": "x", "count": 100_000})
    with served(work) as server, contextlib.ExitStack() as stack:
        answers = []
        for _ in range(2):
            client = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
            stack.enter_context(contextlib.closing(client))
            client.request("POST", "/api/draw", fields, {"Content-Type": "application/json"})
            answers.append(client.getresponse())
            wait(lambda: server.queue._current)
        stops = [answer.headers["X-Stop"] for answer in answers]
        assert stops[0] != stops[1] and not any(stop.startswith("/") for stop in stops)
        for stop in ("api/stop/", "api/stop/x", stops[0] + "x"):
            assert ask(server, "POST", f"/{stop}")[2] == b'{"stopped": false}\n'
        assert ask(server, "POST", f"/{stops[0]}", Origin="http://example.org")[0] == 403
        assert not server.queue._current.cancelled and server.queue._waiting
        for stop in reversed(stops):
            assert ask(server, "POST", f"/{stop}")[2] == b'{"stopped": true}\n'
        wait(lambda: len(server.stops) == 1)
        assert not server.queue._waiting and answers[1].read().endswith(b'{"waiting": 1}\n')
        work.go.set()
        assert b"done" not in answers[0].read()
        wait(lambda: not server.stops)
        assert ask(server, "POST", f"/{stops[0]}")[2] == b'{"stopped": false}\n'


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "//etc/passwd",
        "/%2e%2e/setup.cfg",
        "/page.js/../../__main__.py",
        "/__main__.py",
        "/file=x",
        "/pretrained/emoji/README.md",
        "/api/draw",
        "//[",
    ],
)
def test_nothing_but_the_page_can_be_read(path):
    with served(Work()) as server:
        status, _, body = ask(server, "GET", path)
        assert status == 404 and set(json.loads(body)) == {"error"}


def test_the_page_is_all_here():
    """Every file that the page names is served, none from elsewhere, and the browser is told to
    load nothing else. All addresses are relative, for proxies that add a prefix.
    """
    with served(Work()) as server:
        todo, seen = ["/"], {}
        while todo:
            path = todo.pop()
            status, headers, body = ask(server, "GET", path)
            assert status == 200 and "default-src 'self'" in headers["Content-Security-Policy"]
            seen[path] = text = body.decode()
            assert not re.findall(
                r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", "")
            )
            assert not re.findall(r"""(?:href|src|action|from|import|fetch)[\s=(]*["'`]/""", text)
            todo += [
                f"/{name}"
                for name in re.findall(r'(?:src|href)="([^"]+)"|from "\./([^"]+)"', text)
                for name in name
                if name
                if f"/{name}" not in seen
            ]
        assert {*seen} == {
            "/",
            "/shared.css",
            "/page.css",
            "/page.js",
            "/editor.js",
            "/gallery.js",
            "/icon.svg",
        }
        assert {*server.files} == {*seen} | {"/index.html", "/api/openapi.json"}


def test_the_page_uses_the_words_of_the_field():
    with served(Work()) as server:
        page = ask(server, "GET", "/")[2].decode()
    labels = dict(re.findall(r'<label for="(\w+)"[^>]*>([^<]*)', page))
    words = {"prompt": "Prompt", "negative": "Negative prompt", "seed": "Seed", "calls": "Steps"}
    assert words.items() <= labels.items()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_other_sites_are_refused(host):
    """By their Origin, or by the name that leads here (DNS rebinding), wherever one listens."""
    fields = json.dumps({"name": "x", "count": 1})
    with served(host=host) as server:
        port = server.server_address[1]
        machine = socket.gethostname()
        short = machine.partition(".")[0]
        names = "127.0.0.1", "localhost", "LOCALHOST", "[::1]", machine, f"{short}.local"
        for host in (f"{name}:{port}" for name in (*names, "192.168.1.5", "[fe80::1%eth0]")):
            assert ask(server, "GET", "/", Host=host)[0] == 200
            for scheme in ("http", "https"):
                origin = f"{scheme}://{host}"
                assert ask(server, "POST", "/api/draw", fields, Host=host, Origin=origin)[0] == 200
        for headers in (
            {"Host": "example.org"},
            {"Host": "example.org", "Origin": "http://example.org"},
            {"Host": "example.org", "Sec-Fetch-Site": "same-origin"},
            {"Host": ""},
            {"Host": "localhost.example.org"},
            {"Host": "["},
            {"Host": "127.0.0.1@x"},
            {"Host": "x@127.0.0.1"},
            {"Origin": "http://example.org"},
            {"Origin": "http://example.org", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://example.org", "Sec-Fetch-Site": "same-site"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "http://["},
        ):
            status, _, body = ask(server, "POST", "/api/draw", fields, **headers)
            assert status == 403 and "--allow_host=NAME" in json.loads(body)["error"]
        assert ask(server, "POST", "/api/draw", fields, Content_Type="text/plain")[0] == 415
        assert ask(server, "PUT", "/api/draw")[0] == 501


def test_names_are_allowed():
    """Of a proxy that passes the Host on, and of one that replaces it."""
    fields = json.dumps({"name": "x", "count": 1})
    with served(allowed=["Demo.example.org", "10.0.0.1"]) as server:
        for headers in (
            {"Host": "demo.example.org"},
            {"Host": "DEMO.example.org:8443", "Origin": "https://demo.example.org:8443"},
            {"Host": "127.0.0.1:7860", "Origin": "https://demo.example.org"},
            {"Host": "127.0.0.1:7860", "Origin": "http://10.0.0.1:8080"},
        ):
            if "Origin" not in headers:
                assert ask(server, "GET", "/", **headers)[0] == 200
            headers = {name: value.encode() for name, value in headers.items()}
            assert ask(server, "POST", "/api/draw", fields, **headers)[0] == 200
        for name in ("example.org", "x.demo.example.org", "demo.example.org.", "10.0.0.1.x"):
            assert ask(server, "GET", "/", Host=name)[0] == 403
            assert ask(server, "POST", "/api/draw", fields, Origin=f"http://{name}")[0] == 403
    for name in ("", "http://x", "x:80", "*", "*.x", "a b", "x/y", "münchen"):
        with pytest.raises(UserError, match="--allow_host takes the name of a host"):
            access.host_names([name])


def test_browsers_vouch_for_the_page_of_a_proxy():
    """It may replace the Host, and the browser tells that page and server are of one origin."""
    fields = json.dumps({"name": "x", "count": 1})
    told = {"Origin": "https://hub.example.org", "Sec_Fetch_Site": "same-origin"}
    with served() as server:
        assert ask(server, "POST", "/api/draw", fields, **told)[0] == 200


def test_clients_are_told_apart_by_address():
    of = access.client
    assert of("127.0.0.1") != of("127.0.0.2") and of("::ffff:127.0.0.1") == of("127.0.0.1")
    assert of("2001:db8::1") == of("2001:db8::ffff:1") != of("2001:db8:0:1::1")
    assert of("fe80::1%eth0") == of("fe80::2")
    work = Work()
    work.go.clear()
    with served(work) as server:
        body = json.dumps({"name": "x", "count": 1}).encode()
        sent = b"POST /api/draw HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sent += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        with contextlib.ExitStack() as stack:
            for source, ahead in ((1, 0), (1, 1), (1, 2), (2, 1)):
                address = f"127.0.0.{source}", 0
                connection = socket.create_connection(server.server_address[:2], 20, address)
                stack.enter_context(connection).sendall(sent)
                assert b'{"waiting": %d}' % ahead in read_until(connection, b"}\n")
                wait(lambda: server.queue._current)
        work.go.set()
