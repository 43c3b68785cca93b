"""HTTP server of the page (GET / and its files) and of the JSON API (GET /api/model, POST
/api/draw, described by /api/openapi.json), on the standard library alone.

All responses come from memory: the path of a request never names a file. Requests of other sites
are refused by their Origin header; on a loopback address, so are requests with a foreign Host
header (DNS rebinding). Otherwise any site could use the server through a visitor's browser.
"""

import contextlib
import io
import ipaddress
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from vqd_jax.core.errors import UserError
from vqd_jax.web.demo.queue import Job, JobQueue

MAX_BODY = 8 * 2**20  # bytes of a request
MAX_CONNECTIONS = 256  # open at once; further ones are closed
SOCKET_TIMEOUT = 30  # seconds without any byte received or sent
BODY_TIMEOUT = 120  # seconds for the whole body of a request
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; "
    "form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves until `shutdown`. `model_info` is the response to GET /api/model; `parse` turns the
    JSON of a request into a request for `queue`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        model_info: dict[str, Any],
        parse: Callable[[Any], Any],
        queue: JobQueue,
    ):
        self.model_info, self.parse, self.queue = model_info, parse, queue
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
        self.local = is_loopback(host)
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.parse_lock = threading.Lock()
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot serve at {host}:{port}: {getattr(error, 'strerror', None) or error}"
            ) from error

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def parse_one(self, content: bytes) -> Any:
        """Parses one request at a time: its image may need much memory."""
        with self.parse_lock:
            return self.parse(_from_json(content))

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a lost connection is no failure
            logging.exception("a request failed")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vqd_jax", ""
    timeout = SOCKET_TIMEOUT
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._same_origin():
            return
        if path == "/api/model":
            self._send(HTTPStatus.OK, _json(self.server.model_info), "application/json")
        elif path in self.server.files:
            self._send(HTTPStatus.OK, *self.server.files[path])
        else:
            self._send_error(
                HTTPStatus.NOT_FOUND,
                "not found: the page is at /, its JSON API at /api/model and /api/draw",
            )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = self._content()
        if not self._same_origin():
            return
        if self.path.partition("?")[0] != "/api/draw":
            self._send_error(HTTPStatus.NOT_FOUND, "not found: POST requests go to /api/draw")
        elif content is None:
            self._send_error(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a request needs a Content-Length of at most {MAX_BODY // 2**20} MiB",
            )
        elif self.headers.get_content_type() != "application/json":
            self._send_error(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "the Content-Type of a request must be application/json",
            )
        else:
            try:
                job = self.server.queue.submit(self.server.parse_one(content))
            except UserError as error:
                self._send_error(HTTPStatus.BAD_REQUEST, str(error))
            except Exception:  # a bug, or out of memory
                logging.exception("a request could not be parsed")
                self._send_error(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "the request could not be parsed: see the log of the server",
                )
            else:
                del content
                self._stream(job)

    def _stream(self, job: Job) -> None:
        """Sends a line of JSON for each event; cancels the job when the connection is lost."""
        try:
            self._send_headers(
                HTTPStatus.OK, "application/x-ndjson", {"Transfer-Encoding": "chunked"}
            )
            for event in job.events():
                line = _json(event)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # gone, or too slow
            self.close_connection = True
        finally:
            self.server.queue.cancel(job)

    def _content(self) -> bytes | None:
        """The body of the request; None if it is too long, incomplete or has no length."""
        text = self.headers.get("Content-Length", "")
        length = int(text) if re.fullmatch(r"[0-9]{1,11}", text) else None
        accepted = length is not None and length <= MAX_BODY
        content = io.BytesIO()
        left = min(length or 0, 8 * MAX_BODY)
        end = time.monotonic() + BODY_TIMEOUT
        while left and time.monotonic() < end:
            chunk = self.rfile.read1(min(left, 2**16))
            if not chunk:
                break
            left -= len(chunk)
            if accepted:  # otherwise read and discard: most clients read only after sending all
                content.write(chunk)
        if accepted and not left:
            return content.getvalue()
        self.close_connection = True
        return None

    def _same_origin(self) -> bool:
        """Checks the Host and Origin headers; answers 403 and returns False for another site."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        name = re.sub(r":[0-9]*$", "", host).removeprefix("[").removesuffix("]")
        foreign_host = self.server.local and not is_loopback(name)
        foreign_origin = origin and origin not in (f"http://{host}", f"https://{host}")
        if foreign_host or foreign_origin:
            self._send_error(HTTPStatus.FORBIDDEN, "requests from other sites are not accepted")
            return False
        return True

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self._send(status, _json({"error": message}), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        with contextlib.suppress(OSError):
            self._send_headers(status, kind, {"Content-Length": str(len(content))})
            if self.command != "HEAD":
                self.wfile.write(content)

    def _send_headers(self, status: HTTPStatus, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | more | {"Content-Type": kind}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        logging.debug(format, *args)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _from_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not valid JSON") from error
