"""Stand-in for the hub on 127.0.0.1, with the requests that huggingface_hub makes to fetch a snapshot."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/?]+)")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(ThreadingHTTPServer):
    """Server of repositories: by kind and name, each file's bytes by path; `gated` ones answer 403."""

    def __init__(self, repositories: dict[tuple[str, str], dict[str, bytes]], gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.gated = gated
        self.fetched: list[str] = []

    @property
    def endpoint(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server
        assert isinstance(hub, Hub)
        if match := API.match(self.path):
            kind, name, what, revision = match.groups()
            files = hub.repositories.get((kind, name))
            if files is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif name in hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            elif revision not in ("main", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif what == "revision":
                self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            else:
                tree = [{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in files.items()]
                self._send(200, json.dumps(tree).encode())
        elif match := FILE.match(self.path):
            kind, name = "datasets" if match[1] else "models", match[2]
            content = hub.repositories[kind, name].get(match[4])
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                if self.command == "GET":
                    hub.fetched.append(match[4])
                self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(content)}"'})
        else:
            self._send(404, b"")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing, to keep the tests' output clean."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve in a thread until the block ends."""
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
