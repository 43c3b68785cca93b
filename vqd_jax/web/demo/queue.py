"""Requests wait in a line; one thread works on the first. Whoever asked follows the work, and can
leave the line at any time.
"""

import collections
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from vqd_jax.core.errors import UserError

WAITING = 200  # requests at most
BEAT = 0.5  # seconds between two words to one who waits: who has gone is noticed by them

Event = dict[str, Any]


class JobQueue:
    """`work(request)` yields events. Requests are worked on one by one, in the order in which they
    came.
    """

    def __init__(self, work: Callable[[Any], Iterator[Event]], *, waiting: int = WAITING):
        self.changed = threading.Condition()
        self._work, self._most = work, waiting
        self._jobs: collections.deque[Job] = collections.deque()
        self._now: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="drawing")
        self._thread.start()

    def join(self, request: Any) -> "Job":
        """The request at the end of the line; UserError if that is too long."""
        with self.changed:
            if len(self._jobs) >= self._most:
                raise UserError(f"{len(self._jobs)} requests are waiting already: try again later")
            job = Job(self, request)
            self._jobs.append(job)
            self.changed.notify_all()
        return job

    def before(self, job: "Job") -> int:
        """How many are before this one; 0 for the one that is worked on."""
        with self.changed:
            return self._jobs.index(job) + (self._now is not None) if job in self._jobs else 0

    def leave(self, job: "Job") -> None:
        """Nobody waits for this one any more: it is not begun, or ends with its next event."""
        with self.changed:
            job.left = True
            if job in self._jobs:
                self._jobs.remove(job)

    def close(self, seconds: float) -> bool:
        """Nothing more is begun, and what is worked on ends with its next event; whether it did
        within these seconds.
        """
        with self.changed:
            self._closed = True
            self._jobs.clear()
            if self._now:
                self._now.left = True
            self.changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job = self._now = self._jobs.popleft()
            try:
                for event in self._work(job.request):
                    job.say(event)
                    if job.left:
                        break
            except UserError as error:
                job.say({"error": str(error)})
            except Exception:  # a bug, or no memory: the next request may do
                logging.exception("a request could not be drawn")
                job.say({"error": "this could not be drawn; the log of the server says why"})
            job.say(None)
            with self.changed:
                self._now = None
            del job


class Job:
    """A request in a line, and the last event of its work: who is slow to follow misses those
    between.
    """

    def __init__(self, line: JobQueue, request: Any):
        self.request, self.left = request, False
        self._line, self._event, self._said, self._ended = line, None, 0, False

    def say(self, event: Event | None) -> None:
        """The next event; None after the last."""
        with self._line.changed:
            self._ended = event is None
            if event is not None:
                self._event, self._said = event, self._said + 1
            self._line.changed.notify_all()

    def follow(self) -> Iterator[Event]:
        """The events as they come, and {"waiting": requests before this one} every BEAT seconds
        without; ends after the last event.
        """
        heard = 0
        yield {"waiting": self._line.before(self)}
        while True:
            with self._line.changed:
                news = self._line.changed.wait_for(
                    lambda heard=heard: self._said > heard or self._ended, BEAT
                )
                event, said = self._event, self._said
            if said > heard:
                heard = said
                yield event
            elif news:
                return
            else:
                yield {"waiting": self._line.before(self)}
