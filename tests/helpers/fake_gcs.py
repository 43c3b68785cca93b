"""A Google Cloud Storage in memory, over HTTP: the part of its JSON API that gcsfs and TensorStore
use, with generations and their preconditions.

  python -m helpers.fake_gcs PORT        serves until it is killed

Any bucket exists; to the one named forbidden there is no access.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import re
import secrets
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c

from helpers.ports import free_port

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o/?")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o/?")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")


class Storage:
    """(bucket, name) → (content, generation, time), and uploads that have begun."""

    def __init__(self):
        self.lock, self.objects, self.uploads, self.generation = threading.Lock(), {}, {}, 0

    def put(self, key, content):
        self.generation += 1
        now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        self.objects[key] = bytes(content), self.generation, now
        return self.about(key)

    def about(self, key):
        content, generation, time = self.objects[key]
        return {
            "kind": "storage#object",
            "id": f"{key[0]}/{key[1]}/{generation}",
            "bucket": key[0],
            "name": key[1],
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "timeCreated": time,
            "updated": time,
            "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
            "etag": str(generation),
        }

    def generation_of(self, key):
        return self.objects[key][1] if key in self.objects else 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path, query = self._parse()
        with self.server.storage.lock:
            if found := OBJECT.fullmatch(path):
                key = found[1], urllib.parse.unquote(found[2])
                if not self._allowed(key, query):
                    return
                if key not in self.server.storage.objects:
                    return self._json({"error": {"code": 404, "message": "no such object"}}, 404)
                if query.get("alt") != "media":
                    return self._json(self.server.storage.about(key))
                return self._media(key)
            if found := LIST.fullmatch(path):
                return self._json(self._listing(found[1], query))
            if found := BUCKET.fullmatch(path):
                return self._json({"kind": "storage#bucket", "name": found[1]})
        self._json({"error": {"code": 404, "message": path}}, 404)

    def do_POST(self):
        path, query = self._parse()
        body = self._body()
        with self.server.storage.lock:
            if "upload_id" in query:
                return self._chunk(query, body)
            if found := UPLOAD.fullmatch(path):
                return self._upload(found[1], query, body)
        self._json({"error": {"code": 404, "message": path}}, 404)

    do_PUT = do_POST

    def _chunk(self, query, body):
        key, sent = self.server.storage.uploads[query["upload_id"]]
        sent += body
        total = re.search(r"/(\d+)$", self.headers.get("Content-Range", ""))
        if total and len(sent) == int(total[1]):
            del self.server.storage.uploads[query["upload_id"]]
            return self._json(self.server.storage.put(key, sent))
        self._send(308, b"", {"Range": f"bytes=0-{len(sent) - 1}"})

    def do_DELETE(self):
        path, query = self._parse()
        found = OBJECT.fullmatch(path)
        key = found[1], urllib.parse.unquote(found[2])
        with self.server.storage.lock:
            if self._allowed(key, query):
                gone = self.server.storage.objects.pop(key, None)
                self._send(204 if gone else 404, b"")

    def parse_request(self):
        if not super().parse_request():
            return False
        if "/b/forbidden" in self.path:
            self._json({"error": {"code": 403, "message": "no access"}}, 403)
            return False
        return True

    def _parse(self):
        parts = urllib.parse.urlsplit(self.path)
        return parts.path, dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))

    def _body(self):
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _allowed(self, key, query):
        """Whether the preconditions hold; otherwise the answer says so."""
        now = self.server.storage.generation_of(key)
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != now:
            self._json({"error": {"code": 412, "message": "another generation"}}, 412)
            return False
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == now:
            self._send(304, b"")
            return False
        return True

    def _listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for key in sorted(self.server.storage.objects):
            if key[0] != bucket or not key[1].startswith(prefix):
                continue
            rest = key[1].removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                items.append(self.server.storage.about(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _media(self, key):
        content, generation, _ = self.server.storage.objects[key]
        headers = {
            "x-goog-generation": str(generation),
            "x-goog-stored-content-encoding": "identity",
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._send(200, content, headers)
        size = len(content)
        first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first >= size:
            return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(206, content[first : last + 1], headers)

    def _upload(self, bucket, query, body):
        storage, kind = self.server.storage, query["uploadType"]
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            storage.uploads[number := secrets.token_hex(8)] = (bucket, name), bytearray()
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o"
            return self._send(200, b"{}", {"Location": f"{where}?upload_id={number}"})
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
            about, body = _parts(body, boundary.encode())
            query["name"] = json.loads(about)["name"]
        key = bucket, query["name"]
        if self._allowed(key, query):
            self._json(storage.put(key, body))

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)


def _parts(body, boundary):
    """The contents of a multipart body."""
    for part in body.split(b"--" + boundary)[1:-1]:
        _, content = re.split(rb"\r?\n\r?\n", part, maxsplit=1)
        yield re.sub(rb"\r?\n\Z", b"", content)


def serve(port):
    """The server, which already listens."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.storage = Storage()
    server.handle_error = lambda request, address: None  # a client that has left
    return server


@contextlib.contextmanager
def running():
    """A server in a thread of this process."""
    server = serve(free_port())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def environment(server):
    """The variables by which another process takes the server for Google's."""
    address = f"http://127.0.0.1:{server.server_port}"
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


if __name__ == "__main__":
    serve(int(sys.argv[1])).serve_forever()
