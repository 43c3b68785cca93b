"""The page and its JSON over HTTP, by the standard library alone: GET / and its files, GET
/api/model, POST /api/draw, as /api/openapi.json describes them.

What is served is in memory: no path of a request ever names a file. A browser that shows another
site is not answered, nor, where only this machine is served, one that was told another site's name
for it: so no site can draw through the browser of someone who runs this.
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
from vqd_jax.web.demo.queue import JobQueue

LARGEST = 8 * 2**20  # bytes of a request
CONNECTIONS = 256  # at once; more are closed
SILENCE = (
    30  # seconds that a client may take to send, or to take what is sent, the next piece of it
)
PATIENCE = 120  # seconds that it may take to send all of a request
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
    """Serves until `shutdown`. `about` is what GET /api/model says, `read` makes what `line` works
    on of a request's JSON.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        about: dict[str, Any],
        read: Callable[[Any], Any],
        line: JobQueue,
    ):
        self.about, self.read, self.line = about, read, line
        page = resources.files("vqd_jax.web.demo") / "static"
        self.files = {
            f"/{file.name}": (file.read_bytes(), TYPES[file.name.rpartition(".")[2]])
            for file in page.iterdir()
            if file.name.rpartition(".")[2] in TYPES
        }
        self.files |= {
            "/": self.files["/index.html"],
            "/api/openapi.json": self.files.pop("/openapi.json"),
        }
        self.local = loopback(host)
        self.places, self.reading = threading.BoundedSemaphore(CONNECTIONS), threading.Lock()
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
        if self.places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def read_one(self, content: bytes) -> Any:
        """What a request's JSON asks for, one request at a time: the picture in it may take much
        memory.
        """
        with self.reading:
            return self.read(_parsed(content))

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # who goes away is nobody's failure
            logging.exception("a request failed")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vqd_jax", ""
    timeout = SILENCE
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._from_here():
            return
        if path == "/api/model":
            self._send(HTTPStatus.OK, _json(self.server.about), "application/json")
        elif path in self.server.files:
            self._send(HTTPStatus.OK, *self.server.files[path])
        else:
            self._refuse(
                HTTPStatus.NOT_FOUND,
                "there is nothing here: the page is at /, its JSON at /api/model and /api/draw",
            )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = self._content()
        if not self._from_here():
            return
        if self.path.partition("?")[0] != "/api/draw":
            self._refuse(HTTPStatus.NOT_FOUND, "only /api/draw takes requests")
        elif content is None:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a request says its length, which is at most {LARGEST // 2**20} MiB",
            )
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request is application/json")
        else:
            try:
                job = self.server.line.join(self.server.read_one(content))
            except UserError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            except Exception:  # a bug, or no memory
                logging.exception("a request could not be read")
                self._refuse(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    "this request could not be read; the log of the server says why",
                )
            else:
                del content
                self._follow(job)

    def _follow(self, job: Any) -> None:
        """A line of JSON for each event of the job; if nobody takes them, the job is left."""
        try:
            self._head(HTTPStatus.OK, "application/x-ndjson", {"Transfer-Encoding": "chunked"})
            for event in job.follow():
                line = _json(event)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # gone, or too slow
            self.close_connection = True
        finally:
            self.server.line.leave(job)

    def _content(self) -> bytes | None:
        """The body of the request, None if it is too long or does not say how long it is."""
        text = self.headers.get("Content-Length", "")
        length = int(text) if re.fullmatch(r"[0-9]{1,11}", text) else None
        refused = length is None or length > LARGEST
        content, left, end = (
            io.BytesIO(),
            min(length or 0, 8 * LARGEST),
            time.monotonic() + PATIENCE,
        )
        while left and time.monotonic() < end and (part := self.rfile.read1(min(left, 2**16))):
            left -= len(part)
            # else it is only heard out: most clients hear an answer when they have sent everything
            if not refused:
                content.write(part)
        if not refused and not left:
            return content.getvalue()
        self.close_connection = True
        return None

    def _from_here(self) -> bool:
        """Whether the browser shows this server's own page, under its own name."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        named = re.sub(r":[0-9]*$", "", host).removeprefix("[").removesuffix("]")
        if (
            self.server.local
            and not loopback(named)
            or origin
            and origin not in (f"http://{host}", f"https://{host}")
        ):
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own page only")
            return False
        return True

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._send(status, _json({"error": sentence}), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        with contextlib.suppress(OSError):
            self._head(status, kind, {"Content-Length": str(len(content))})
            if self.command != "HEAD":
                self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | more | {"Content-Type": kind}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        logging.debug(format, *args)


def loopback(host: str) -> bool:
    """Whether only this machine is reached under that name or number."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError("the request is not JSON") from error
