"""Server of the page (GET / and its files) and of the JSON API (GET /api/models, POST /api/draw
and /api/stop, described by /api/openapi.json), with a thread for each connection.

All responses come from memory: the path of a request never names a file.
"""

import logging
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.inference.request import from_json
from vqd_jax.web.demo import access
from vqd_jax.web.demo.connection import JSON, Connection, Refusal, to_json
from vqd_jax.web.demo.queue import Job, JobQueue

MAX_CONNECTIONS = 256  # open at once; further ones are closed
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": JSON,
}


class Server(socketserver.ThreadingTCPServer):
    """Serves until `shutdown`. `models` is the response to GET /api/models; `parse` turns the JSON
    of a request into a request for `queue`; `allowed` are further names of this server.
    """

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        models: dict[str, Any],
        parse: Callable[[Any], Any],
        queue: JobQueue,
        allowed: frozenset[str] = frozenset(),
    ):
        self.models, self.parse, self.queue, self.allowed = models, parse, queue, allowed
        self.files = {
            f"/{file.name}": (file.read_bytes(), TYPES[file.name.rpartition(".")[2]])
            for package in ("vqd_jax.web", "vqd_jax.web.demo")
            for file in (resources.files(package) / "static").iterdir()
            if file.name.rpartition(".")[2] in TYPES
        }
        self.files |= {
            "/": self.files["/index.html"],
            "/api/openapi.json": self.files.pop("/openapi.json"),
        }
        self.stops: dict[str, Job] = {}  # by the path of a request that cancels the job
        self.clients: dict[socket.socket, str] = {}  # of the open connections
        self.parse_lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Requests)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot serve at {host}:{port}: {getattr(error, 'strerror', None) or error}"
            ) from error

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:  # :: takes IPv4 connections, too
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the client has fewer connections than are left for others."""
        client = access.client(client_address[0])
        own, left = [*self.clients.values()].count(client), MAX_CONNECTIONS - len(self.clients)
        self.clients[request] = client
        return own < left

    def close_request(self, request: Any) -> None:
        self.clients.pop(request, None)
        super().close_request(request)

    def parse_one(self, content: bytes) -> Any:
        """Parses one request at a time: its image may need much memory."""
        with self.parse_lock:
            return self.parse(from_json(content))

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a lost connection is no failure
            logging.exception("a request failed")


class Requests(Connection):
    """The requests of a connection."""

    server: Server

    def answer(self, method: str, path: str, headers: dict[str, str], content: bytes) -> None:
        # what a GET answers, other sites cannot read
        origin = headers.get("origin", "") if method == "POST" else ""
        site = headers.get("sec-fetch-site", "")
        if reason := access.refusal(headers.get("host", ""), origin, site, self.server.allowed):
            raise Refusal(403, reason)
        if method == "POST" and path == "/api/draw":
            self._draw(content, headers.get("content-type", ""))
        elif method == "POST" and path.startswith("/api/stop/"):
            if job := self.server.stops.get(path):
                self.server.queue.cancel(job)
            self.send(to_json({"stopped": bool(job)}), JSON)
        elif method == "POST":
            raise Refusal(404, "not found: POST requests go to /api/draw")
        elif method not in ("GET", "HEAD"):
            raise Refusal(501, "a request is a GET or a POST")
        elif path == "/api/models":
            self.send(to_json(self.server.models), JSON)
        elif path in self.server.files:
            self.send(*self.server.files[path])
        else:
            paths = "the page is at /, its JSON API at /api/models and /api/draw"
            raise Refusal(404, f"not found: {paths}")

    def _draw(self, content: bytes, kind: str) -> None:
        """Sends a line of JSON for each event; cancels the job when the connection is lost."""
        if kind.partition(";")[0].strip().lower() != JSON:
            raise Refusal(415, "the Content-Type of a request must be application/json")
        try:
            request = self.server.parse_one(content)
            job = self.server.queue.submit(request, access.client(self.client_address[0]))
        except UserError as error:
            raise Refusal(400, str(error)) from error
        except Exception as error:  # a bug, or out of memory
            logging.exception("a request could not be parsed")
            message = "the request could not be parsed: see the log of the server"
            raise Refusal(500, message) from error
        del content, request
        stop = f"/api/stop/{secrets.token_hex(8)}"
        self.server.stops[stop] = job
        # nginx collects a response before it passes it on, unless it is told not to
        more = {"X-Accel-Buffering": "no", "X-Stop": stop[1:]}
        try:
            self.stream(map(to_json, job.events()), "application/x-ndjson", more)
        finally:
            del self.server.stops[stop]
            self.server.queue.cancel(job)
