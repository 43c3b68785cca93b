"""A connection of HTTP/1.1, whose bytes h11 parses, with deadlines and limits.

A request that a proxy might read in another way than this server is refused, and the connection
closed: otherwise a part of one request could pass for the next.
"""

import abc
import email.utils
import json
import socketserver
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import h11

MAX_HEADERS = 2**15  # bytes of a request
MAX_BODY = 8 * 2**20  # bytes of a request
SEND_TIMEOUT = 30  # seconds for a client to take a line of the response
HEADER_TIMEOUT = 30  # seconds until a request has begun and its headers are here
BODY_TIMEOUT = 120  # seconds for the whole body of a request
JSON = "application/json"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; "
    "form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """A status other than 200 and its message; with `close` the last response of a connection."""

    def __init__(self, status: int, message: str, *, close: bool = False):
        super().__init__(message)
        self.status, self.close = status, close


class Connection(socketserver.BaseRequestHandler, abc.ABC):
    """One request after the other; `answer` is what a server does with one."""

    @abc.abstractmethod
    def answer(self, method: str, path: str, headers: dict[str, str], content: bytes) -> None:
        """Sends a response, or raises a Refusal."""

    def send(
        self, content: bytes, kind: str, status: int = 200, more: dict[str, str] | None = None
    ) -> None:
        """Sends a whole response."""
        self._start(status, kind, {"Content-Length": str(len(content))} | (more or {}))
        if not self._is_head:
            self._write(h11.Data(data=content))
        self._write(h11.EndOfMessage())

    def stream(self, lines: Iterable[bytes], kind: str, more: dict[str, str]) -> None:
        """Sends each line as it comes."""
        self._start(200, kind, more)
        for line in lines:
            self._write(h11.Data(data=line))
        self._write(h11.EndOfMessage())

    def handle(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        while self._http.our_state is h11.IDLE:
            self._is_head = False
            try:
                self._deadline = time.monotonic() + HEADER_TIMEOUT
                request = self._next_event()
                if isinstance(request, h11.ConnectionClosed):
                    return
                self._answer(request)
            except Refusal as refusal:
                close = {"Connection": "close"} if refusal.close else {}
                self.send(to_json({"error": str(refusal)}), JSON, refusal.status, close)
            if self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                self._http.start_next_cycle()

    def _answer(self, request: h11.Request) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        method, path = request.method.decode(), request.target.decode().partition("?")[0]
        self._is_head = method == "HEAD"
        if request.http_version not in (b"1.0", b"1.1"):
            raise Refusal(505, "the server speaks HTTP/1.1", close=True)
        length, chunked = headers.get("content-length"), "transfer-encoding" in headers
        if chunked and length or method != "POST" and (chunked or length not in (None, "0")):
            raise Refusal(400, "only a POST has a body, of one length", close=True)
        self.answer(method, path, headers, self._content())

    def _content(self) -> bytes:
        """The body of the request. One that is too long is read, too, if it is not eight times as
        long: most clients read a response only after sending all.
        """
        self._deadline = time.monotonic() + BODY_TIMEOUT
        content, size = bytearray(), 0
        while size <= 8 * MAX_BODY and isinstance(event := self._next_event(), h11.Data):
            size += len(event.data)
            if size <= MAX_BODY:
                content += event.data
        if size > MAX_BODY:
            limit = f"{MAX_BODY // 2**20} MiB"
            raise Refusal(413, f"the body of a request must have at most {limit}", close=True)
        return bytes(content)

    def _next_event(self) -> Any:
        """What the client sends next. TimeoutError after the deadline."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._write(h11.InformationalResponse(status_code=100, headers=[]))
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.request.settimeout(left)
                self._http.receive_data(self.request.recv(2**16))
        except h11.RemoteProtocolError as error:
            message = f"the request is not valid HTTP: {error}"
            raise Refusal(error.error_status_hint, message, close=True) from error
        return event

    def _start(self, status: int, kind: str, more: dict[str, str]) -> None:
        given = {"Content-Type": kind, "Date": email.utils.formatdate(usegmt=True)}
        headers, reason = [*(HEADERS | given | more).items()], HTTPStatus(status).phrase
        self._write(h11.Response(status_code=status, headers=headers, reason=reason))

    def _write(self, event: Any) -> None:
        self.request.settimeout(SEND_TIMEOUT)
        self.request.sendall(self._http.send(event))


def to_json(value: Any) -> bytes:
    """A line of JSON."""
    return json.dumps(value).encode() + b"\n"
