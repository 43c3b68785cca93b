"""A queue of requests with one worker thread, in which clients take turns. A client follows the
events of its request and can cancel it at any time.
"""

import collections
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vqd_jax.core.errors import UserError

MAX_WAITING = 200  # requests
HEARTBEAT = 0.5  # seconds between events while waiting, through which a lost connection is noticed

Event = dict[str, Any]


class JobQueue:
    """Runs `work(request)`, which yields events, for one request at a time: the oldest of each
    client in turn.
    """

    def __init__(self, work: Callable[[Any], Iterator[Event]], *, max_waiting: int = MAX_WAITING):
        self.changed = threading.Condition()
        self._work = work
        self._max_waiting = max_waiting
        self._waiting: dict[str, collections.deque[Job]] = {}  # of each client, the next one first
        self._current: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="drawing")
        self._thread.start()

    def submit(self, request: Any, client: str = "") -> "Job":
        """Appends the request. UserError if the queue is full: a client may have as many waiting
        requests as there are places for others.
        """
        with self.changed:
            waiting, own = len(self._order()), len(self._waiting.get(client, ()))
            if own >= self._max_waiting - waiting:
                raise UserError(
                    f"the queue is full: {waiting} requests are waiting, {own} of them from this "
                    "address, try again later"
                )
            job = Job(self, request, client)
            self._waiting.setdefault(client, collections.deque()).append(job)
            self.changed.notify_all()
        return job

    def position(self, job: "Job") -> int:
        """Number of requests ahead of this one; 0 for the running one."""
        with self.changed:
            order = self._order()
            return order.index(job) + (self._current is not None) if job in order else 0

    def cancel(self, job: "Job") -> None:
        """Removes a waiting job; a running one stops after its next event."""
        with self.changed:
            job.cancelled = True
            if self._remove(job):
                job.end()

    def _order(self) -> "list[Job]":
        """The waiting jobs in rounds, one of each client; whose job runs comes last."""
        running = self._current and self._current.client
        clients = sorted(self._waiting, key=lambda client: client == running)
        rounds = itertools.zip_longest(*(self._waiting[client] for client in clients))
        return [job for jobs in rounds for job in jobs if job]

    def _remove(self, job: "Job") -> bool:
        """Whether the job was waiting."""
        own = self._waiting.get(job.client, ())
        waited = job in own
        if waited:
            own.remove(job)
            if not own:
                del self._waiting[job.client]
        return waited

    def close(self, timeout: float) -> bool:
        """Drops the waiting jobs and stops the running one after its next event. Returns whether
        the worker has ended within `timeout` seconds.
        """
        with self.changed:
            self._closed = True
            self._waiting.clear()
            if self._current:
                self._current.cancelled = True
            self.changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._current = self._order()[0]
                self._remove(job)
            try:
                for event in self._work(job.request):
                    job.publish(event)
                    if job.cancelled:
                        break
            except UserError as error:
                job.publish({"error": str(error)})
            except Exception:  # a bug, or out of memory: the next request may succeed
                logging.exception("a request failed")
                job.publish(
                    {"error": "the images could not be generated: see the log of the server"}
                )
            job.end()
            with self.changed:
                self._current = None
                if job.client in self._waiting:  # the others come first
                    self._waiting[job.client] = self._waiting.pop(job.client)
            del job


class Job:
    """A queued request and the latest event of its work; a slow reader misses earlier events."""

    def __init__(self, queue: JobQueue, request: Any, client: str):
        self.request = request
        self.client = client
        self.cancelled = False
        self._queue = queue
        self._event: Event | None = None
        self._published = 0
        self._ended = False

    def publish(self, event: Event) -> None:
        """Replaces the latest event."""
        with self._queue.changed:
            self._event = event
            self._published += 1
            self._queue.changed.notify_all()

    def end(self) -> None:
        """Marks the latest event as the last one."""
        with self._queue.changed:
            self._ended = True
            self._queue.changed.notify_all()

    def events(self) -> Iterator[Event]:
        """Yields events as they are published, and {"waiting": requests ahead} at the start and
        after every HEARTBEAT seconds without one. Ends after the last event.
        """
        read = 0
        yield {"waiting": self._queue.position(self)}
        while True:
            with self._queue.changed:
                notified = self._queue.changed.wait_for(
                    lambda read=read: self._published > read or self._ended, HEARTBEAT
                )
                event, published = self._event, self._published
            if published > read:
                read = published
                yield event
            elif notified:
                return
            else:
                yield {"waiting": self._queue.position(self)}
