"""The queue of the demo, with work that needs no model: order, fairness, cancelling, errors."""

import threading

import numpy as np
import pytest

from helpers.demo_server import Work, heard, wait
from vqd_jax.core.errors import UserError
from vqd_jax.web.demo.queue import JobQueue


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
