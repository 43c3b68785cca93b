"""A stand-in for the Hugging Face hub on this machine: what its client asks for to make a
repository of a model, upload files in one commit, and download them; and what `datasets` asks for to
stream a data set.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

API = r"/api/(?:models|datasets)/([^/]+/[^/]+)"


class Hub(ThreadingHTTPServer):
    """Attributes:
    repositories: content of the files of each, by path.
    refused: whether uploads are answered as to a token that may not write.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refused = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        """The name of the state of a repository."""
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refused:
            return self.send_json({"error": "Forbidden: this token may not write"}, 403)
        if self.path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return self.send_json({"url": f"{self.server.url}/{name}"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.send_json({"files": [regular | {"path": f["path"]} for f in files]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            name = found[1]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[name][entry["value"]["path"]] = content
            commit = self.server.commit(name)
            url = f"{self.server.url}/{name}/commit/{commit}"
            return self.send_json({"commitUrl": url, "commitOid": commit, "hookOutput": ""})
        self.send_json({"error": f"POST {self.path}"}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(rf"{API}(/revision/[^/]+)?", path):
            if (name := found[1]) in self.server.repositories:
                files = [{"rfilename": file} for file in self.server.repositories[name]]
                about = {"_id": "1", "id": name, "modelId": name, "siblings": files}
                return self.send_json(about | {"sha": self.server.commit(name)})
        if found := re.fullmatch(rf"{API}/tree/[^/]+(/.+)?", path):
            if (name := found[1]) in self.server.repositories:
                if found[2]:  # there are no folders
                    return self.send(404, X_Error_Code="EntryNotFound")
                return self.send_json(
                    [
                        {"type": "file", "path": file, "size": len(content), "oid": "0"}
                        for file, content in self.server.repositories[name].items()
                    ]
                )
        if found := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            name, file = found.groups()
            content = self.server.repositories.get(name, {}).get(file)
            if content is not None:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                headers = {"ETag": etag, "X_Repo_Commit": self.server.commit(name)}
                if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    start, end = int(part[1]), int(part[2] or len(content))
                    return self.send(206, content[start : end + 1], **headers)
                return self.send(200, content, **headers)
            missing = "EntryNotFound" if name in self.server.repositories else "RepoNotFound"
            return self.send(404, X_Error_Code=missing)
        self.send(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
