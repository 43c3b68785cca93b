"""The demo without a browser: which requests are accepted, the queue, the server, and that its
images are those of `vqd sample`.
"""

import base64
import concurrent.futures
import contextlib
import gc
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.commands import run_in_process
from helpers.workdirs import make_workdir
from vqd_jax.core.errors import UserError
from vqd_jax.core.shipped import MODEL
from vqd_jax.data.image_bytes import encode_png
from vqd_jax.inference import pipeline
from vqd_jax.inference import request as recipe
from vqd_jax.stages import sampling
from vqd_jax.web.demo import access, api
from vqd_jax.web.demo import connection as limits
from vqd_jax.web.demo import server as serving
from vqd_jax.web.demo.queue import JobQueue
from vqd_jax.web.demo.server import Server

CRAB = {"prompts": ["a twitter style emoji of a crab"], "num": 3, "calls": 3, "seed": 5}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny model with many diffusion steps."""
    changes = {"process.T": 1000, "data.source": "emoji", "denoiser.layers": 1}
    return make_workdir(tmp_path_factory.mktemp("runs") / "tiny", changes)


@pytest.fixture(scope="module")
def model(workdir):
    return pipeline.load(workdir)


@pytest.fixture(scope="module")
def weights(model):
    return model.digest


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


# ---- requests


def test_events_show_every_call_and_the_files_reproduce_the_images(model, weights, tmp_path):
    asked = api.parse_request(model, CRAB)
    *seen, done = api.draw(model, asked, weights)
    assert (
        [event["call"] for event in seen] == [1, 2, 3]
        and {event["calls"] for event in [*seen, done]} == {3}
        and done["done"]
    )
    assert seen[0]["pictures"] != seen[1]["pictures"] and all(
        len(event["pictures"]) == 3 for event in [*seen, done]
    )
    want = model(CRAB["prompts"] * 3, seed=5, calls=3, output="np")
    for i, url in enumerate(done["pictures"]):
        np.testing.assert_array_equal(pixels(url), want[i])
        (tmp_path / "x.png").write_bytes(base64.b64decode(url.partition(",")[2]))
        again, which = recipe.read_file(model, str(tmp_path / "x.png"), weights)
        np.testing.assert_array_equal(recipe.generate(model, again)[which], want[i])


def test_initial_images_are_resized_and_only_the_mask_is_repainted(model, weights):
    rng = np.random.default_rng(0)
    large, mask = rng.integers(0, 256, (80, 100, 3), np.uint8), np.zeros((80, 100, 3), np.uint8)
    mask[:, :50] = 255
    asked = api.parse_request(
        model,
        CRAB
        | {
            name: base64.b64encode(encode_png(x)).decode()
            for name, x in (("init_image", large), ("mask", mask))
        },
    )
    *_, done = api.draw(model, asked, weights)
    for url in done["pictures"]:
        np.testing.assert_array_equal(pixels(url)[:, 8:], asked.edit.image[:, 8:])
        assert (pixels(url)[:, :8] != asked.edit.image[:, :8]).any()


@pytest.mark.parametrize(
    "fields,sentence",
    [
        ({"num": 17}, "at most 16 images are drawn at once, got 17"),
        ({"prompts": ["a", "b"], "num": 9}, "at most 16.*got 18"),
        ({"prompts": ["a"] * 1000, "num": 1_000_000}, "at most 16.*got 1000000000"),
        ({"prompts": [" AND ".join("abcdefghi")]}, "at most 8 prompts are blended in one, got 9"),
        (
            {"prompts": ["a cat AND a dog :" + "9" * 400]},
            r"the weight of 'a dog' must be a number in -50\.\.50, got inf",
        ),
        ({"guidance": 51}, r"guidance must be a number in -50\.\.50, got 51"),
        ({"temperature": 11}, r"temperature must be a number in 0\.\.10"),
        ({"batch": 2}, "at most 2 images"),
        ({"calls": 1001}, r"^steps must be in 1\.\.1000, got 1001$"),
        ({"calls": "x"}, "^steps must be a whole number, got 'x'$"),
    ],
)
def test_requests_are_bounded(model, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        api.parse_request(model, CRAB | fields)


@pytest.mark.parametrize(
    "prompt",
    ["x" * 1000, "日本語の犬", "حصان", "👩‍🚀", "a\nb\x00c", "‮abc", "<b onload=x>", "%s ${x} '\""],
)
def test_prompts_of_any_length_and_script_are_drawn(model, weights, prompt):
    *_, done = api.draw(model, api.parse_request(model, CRAB | {"prompts": [prompt]}), weights)
    text = json.loads(
        Image.open(io.BytesIO(base64.b64decode(done["pictures"][0].partition(",")[2]))).text[
            recipe.KEY
        ]
    )
    assert text["prompts"] == [prompt]


def test_a_small_file_with_a_large_picture_is_refused(model):
    """Its pixels would take a thousand times as much memory as the request."""
    file = io.BytesIO()
    Image.new("L", (5000, 4000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(
        UserError,
        match="the init_image is not an image that can be read .*at most 16,777,216 are read",
    ):
        api.parse_request(model, CRAB | {"init_image": base64.b64encode(file.getvalue()).decode()})


@pytest.mark.slow  # 8 s
def test_different_requests_do_not_fill_the_memory(model, weights, monkeypatch):
    """Few compiled samplers are kept in memory, and one that was dropped gives the same images."""
    monkeypatch.setattr(api, "MAX_PROGRAMS", 1)
    drawn, kept = [], []
    for calls in (3, 2, 3):
        *_, done = api.draw(model, api.parse_request(model, CRAB | {"calls": calls}), weights)
        drawn.append(done["pictures"])
        kept.append(sampling.compiled_samplers())
    assert kept == [1, 2, 1] and drawn[0] == drawn[2] != drawn[1]


def test_model_info_lists_what_is_accepted(model, workdir, weights):
    about = api.model_info(model, str(workdir), weights)
    assert (about["name"], about["size"], about["calls"], about["model"]) == (
        "tiny",
        16,
        1000,
        weights,
    )
    for name in about["samplers"]:
        api.parse_request(model, CRAB | {"sampler": name})
    api.parse_request(model, {"prompts": about["examples"][:1], **about["sampling"]})


def test_suggestions_are_the_captions_beside_the_model(model, tmp_path, weights, capsys):
    captions = lambda: api.model_info(model, str(tmp_path), weights)["captions"]
    assert captions() == []
    (tmp_path / "captions.txt").write_text("a crab\na \u2028 é\n")
    assert captions() == ["a crab", "a \u2028 é"]
    (tmp_path / "captions.txt").write_bytes(b"\xff\xfe")
    assert captions() == [] and "there are no suggestions: " in capsys.readouterr().out


def test_suggestions_of_models_that_are_no_local_workdir(model, tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    captions = lambda workdir: api.model_info(model, workdir, weights)["captions"]
    assert (
        captions("hf://someone/emoji") == captions("gs://bucket/emoji") == captions("x.bin") == []
    )
    assert "a google style emoji of a robot" in captions(MODEL)


# ---- the queue, with work that needs no model


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


def test_requests_run_in_order_one_at_a_time():
    work = Work()
    work.go.clear()
    queue = JobQueue(work)
    jobs = [queue.submit((i, 3)) for i in range(20)]
    wait(lambda: queue.position(jobs[1]) == 1 and queue.position(jobs[0]) == 0)
    assert [queue.position(job) for job in jobs] == list(range(20))
    assert next(jobs[7].events()) == {"waiting": 7}
    work.go.set()
    assert [heard(job)[-1] for job in jobs] == [{"done": i} for i in range(20)]
    assert work.done == [(i, j) for i in range(20) for j in range(3)]


def test_cancelled_requests_stop_and_others_run():
    work = Work()
    work.go.clear()
    queue = JobQueue(work)
    first, second, third = (queue.submit((name, 1000)) for name in "abc")
    last = queue.submit(("d", 2))
    queue.cancel(second)
    wait(lambda: queue.position(third) == 1)
    queue.cancel(first)
    queue.cancel(third)
    work.go.set()
    assert heard(last)[-1] == {"done": "d"}
    assert len([w for w in work.done if w[0] == "a"]) <= 1 and {name for name, _ in work.done} <= {
        "a",
        "d",
    }


def test_an_error_is_an_event_and_the_queue_goes_on(caplog):
    def work(request):
        yield {"call": 1}
        raise request

    queue = JobQueue(work)
    assert heard(queue.submit(UserError("a sentence")))[-1] == {"error": "a sentence"}
    assert heard(queue.submit(ZeroDivisionError("x")))[-1]["error"].startswith(
        "the images could not be generated"
    )
    assert "ZeroDivisionError" in caplog.text
    assert heard(queue.submit(UserError("again")))[-1] == {"error": "again"}


def test_a_closed_queue_stops_its_job_and_starts_no_other():
    work = Work()
    queue = JobQueue(work)
    first = queue.submit(("first", 10**9))
    next(event for event in first.events() if "call" in event)
    second = queue.submit(("second", 1))
    assert queue.close(20.0) and heard(first)[-1].keys() == {"call"}
    assert {name for name, _ in work.done} == {"first"} and not queue._waiting and second
    work = Work()
    work.go.clear()
    queue = JobQueue(work)
    queue.submit(("hangs", 1))
    wait(lambda: queue._current)
    assert not queue.close(0.1)
    work.go.set()


def test_the_queue_is_bounded():
    work = Work()
    work.go.clear()
    queue = JobQueue(work, max_waiting=3)
    first = queue.submit(("first", 1))
    wait(lambda: not queue._waiting)
    jobs = [queue.submit((i, 1), f"client {i}") for i in range(3)]
    for client in ("client 0", "client 3"):
        with pytest.raises(UserError, match="the queue is full: 3 requests .*, try again later"):
            queue.submit(("more", 1), client)
    work.go.set()
    assert [heard(job)[-1]["done"] for job in [first, *jobs]] == ["first", 0, 1, 2]


def test_no_client_can_fill_the_queue():
    """Each may have as many waiting requests as there are places for others, so one is left."""
    work = Work()
    work.go.clear()
    queue = JobQueue(work, max_waiting=16)
    queue.submit(("first", 1))
    wait(lambda: not queue._waiting)
    taken = []
    for client in "abcd":
        with pytest.raises(UserError, match="the queue is full: .*from this address"):
            while True:
                queue.submit((client, 1), client)
        taken.append(len(queue._waiting[client]))
    assert taken == [8, 4, 2, 1]
    work.go.set()


def test_clients_take_turns():
    """One that sends a request at a time gets every second turn beside one with 50 waiting."""
    steps, done = threading.Semaphore(0), []

    def work(request):
        assert steps.acquire(timeout=20)
        yield {"done": request}
        done.append(request)

    queue = JobQueue(work)
    many = [queue.submit("a", "a") for _ in range(50)]
    wait(lambda: queue.position(many[1]) == 1)
    for turn in range(5):
        one = queue.submit("b", "b")
        assert queue.position(one) == 1 and queue.position(many[turn + 1]) == 2
        for following in (one, many[turn + 1]):
            steps.release()
            wait(lambda job=following: queue._current is job)
        assert heard(one) == [{"done": "b"}]
    assert done == ["a", "b"] * 5
    for job in many:
        queue.cancel(job)
    steps.release()
    assert queue.close(20.0)


def test_positions_foretell_the_order():
    """Whoever leaves, and whoever came first."""
    rng = np.random.default_rng(0)
    work = Work()
    work.go.clear()
    queue = JobQueue(work)
    queue.submit(("first", 1), "a")
    wait(lambda: not queue._waiting)
    jobs = {i: queue.submit((i, 1), "abbccc"[rng.integers(6)]) for i in range(30)}
    for i in (3, 4, 17):
        queue.cancel(jobs.pop(i))
    foretold = {queue.position(job): i for i, job in jobs.items()}
    assert [*sorted(foretold)] == [*range(1, 28)]
    assert jobs[foretold[1]].client != "a"  # whose request runs already
    work.go.set()
    for job in jobs.values():
        heard(job)
    assert [name for name, _ in work.done] == ["first", *(foretold[i] for i in range(1, 28))]


def wait(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- the server


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


def test_the_interface_is_described_as_it_is(model, weights):
    """Every field of a request, its bounds, its example and the fields of events; nothing else is
    taken.
    """
    with served(Work()) as server:
        status, headers, body = ask(server, "GET", "/api/openapi.json")
    said = json.loads(body)
    fields, example = (
        said["components"]["schemas"]["Request"][name] for name in ("properties", "example")
    )
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert {*said["paths"]} == {"/api/models", "/api/draw", "/api/stop/{id}"} and {*example} <= {
        *fields
    }
    text = json.loads(recipe.metadata(model, api.parse_request(model, CRAB), weights)[recipe.KEY])
    more = {"negative_prompt", "init_image", "mask", "extend", "strength"}
    assert {*fields} == {*text} - {"batch"} | more
    assert fields["sampler"]["enum"] == [*api.SAMPLERS]
    words = {"calls": "steps"}
    for name, field in fields.items():
        for bound, outside in (("minimum", -1), ("maximum", 1)):
            if bound in field:
                api.parse_request(
                    model,
                    example
                    | {name: field[bound], "negative_prompt": ""}
                    | ({"num": 1} if name != "num" else {}),
                )
                with pytest.raises(UserError, match=f"{words.get(name, name)}|at most 16 images"):
                    api.parse_request(model, example | {name: field[bound] + outside})
    *seen, done = api.draw(
        model, api.parse_request(model, example | {"num": 3, "calls": 3}), weights
    )
    events = said["components"]["schemas"]["Event"]["properties"]
    assert {*seen[0]} | {*done} | {"waiting", "error"} == {*events}


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


def read_until(connection, end):
    answer = b""
    while end not in answer:
        chunk = connection.recv(1000)
        assert chunk, answer
        answer += chunk
    return answer


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


def test_the_command_explains_bad_addresses(workdir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for argument, message in (
            (f"--port={port}", f"cannot serve at 127.0.0.1:{port}: Address already in use"),
            ("--host=999.1.1.1", "cannot serve at 999.1.1.1"),
        ):
            done = run_in_process("demo", f"--workdir={workdir}", argument, ok=False)
            assert done.returncode != 0 and message in done.stderr
            assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_server_while_it_samples(workdir):
    process = subprocess.Popen(
        [sys.executable, "-m", "vqd_jax", "demo", f"--workdir={workdir}", "--port=0"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    try:
        address = "127.0.0.1", int(re.search(r":(\d+)/", process.stdout.readline())[1])
        connection = http.client.HTTPConnection(*address, timeout=300)
        connection.request(
            "POST",
            "/api/draw",
            json.dumps(CRAB | {"calls": 1000}),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        while '"call": 2' not in (line := answer.readline().decode()):
            assert line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        answered = answer.read().decode()
    finally:
        process.kill()
    told = [line for line in err.splitlines() if "longer than the 8 tokens" not in line]
    assert (process.returncode, out, told) == (0, "\n", [])
    assert '"done"' not in answered
