"""Stand-in for the hub on 127.0.0.1, with the requests that huggingface_hub makes to fetch and to upload a model.

Large files come as hf_xet sends them: in blocks of compressed chunks (xorbs), which the commit names by their sha256.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree|preupload|commit|xet-write-token)/([^/?]+)")
INFO = re.compile(r"/api/models/([^/]+/[^/?]+)(\?|$)")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE = ".safetensors"
"""Ending of the files that are sent apart from the commit."""
CUT = 0
"""Status that stands for a connection that is cut while a request is being sent."""


class Hub(ThreadingHTTPServer):
    """Server of repositories: by kind and name, each file's bytes by path; `gated` ones answer 403."""

    daemon_threads = True

    def __init__(
        self,
        repositories: dict[tuple[str, str], dict[str, bytes]],
        gated: tuple[str, ...] = (),
        token: str | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.gated = gated
        self.token = token
        """Token that writing, and reading what is private, needs."""
        self.private: set[str] = set()
        """Names of the private models."""
        self.commits = [COMMIT]
        self.large: dict[str, bytes] = {}
        """Contents that were sent apart, by their sha256."""
        self.faults: list[tuple[str, int]] = []
        """Part of a path and status with which the next such request is answered; each happens once."""
        self.fetched: list[str] = []
        self.asked: list[str] = []
        """Method and path of each request."""

    @property
    def endpoint(self) -> str:
        """Address for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _receive(self) -> None:
        assert isinstance(self.server, Hub)
        self.hub = self.server
        self.hub.asked.append(f"{self.command} {self.path}")
        fault = next((fault for fault in self.hub.faults if fault[0] in self.path), None)
        length = int(self.headers.get("Content-Length", 0))
        if fault is not None:
            self.hub.faults.remove(fault)
            self.rfile.read(length // 2 if fault[1] == CUT else length)
            self.close_connection = True
            if fault[1] != CUT:
                self._send(fault[1], b"", {"X-Error-Message": "out of order"})
            return
        body = self.rfile.read(length)
        model = next((name for kind, name in self.hub.repositories if kind == "models" and name in self.path), "")
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}" or "/cas/" in self.path
        if not allowed and (self.command == "POST" or model in self.hub.private):
            self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
        elif self.command == "POST":
            self._take(body)
        else:
            self._answer()

    do_GET = do_HEAD = do_POST = _receive  # noqa: N815

    def _answer(self) -> None:
        hub = self.hub
        if match := API.match(self.path):
            kind, name, what, revision = match.groups()
            files = hub.repositories.get((kind, name))
            if files is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif name in hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            elif revision not in ("main", *hub.commits):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif what == "revision":
                self._send_json({"id": name, "sha": hub.commits[-1], "siblings": []})
            elif what == "xet-write-token":
                self._send_json({"casUrl": f"{hub.endpoint}/cas", "accessToken": "short-lived", "exp": 1 << 33})
            else:
                self._send_json([{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in files.items()])
        elif match := FILE.match(self.path):
            kind, name = "datasets" if match[1] else "models", match[2]
            content, commit = hub.repositories[kind, name].get(match[4]), hub.commits[-1]
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            else:
                if self.command == "GET":
                    hub.fetched.append(match[4])
                self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"'})
        elif (match := INFO.match(self.path)) and ("models", match[1]) in hub.repositories:
            self._send_json({"id": match[1], "sha": hub.commits[-1], "private": match[1] in hub.private})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _take(self, body: bytes) -> None:
        """Answer a request that writes."""
        hub = self.hub
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = ("models", name) in hub.repositories
            if not known:
                hub.repositories["models", name] = {".gitattributes": b"* -text\n"}
                hub.private |= {name} if asked["visibility"] == "private" else set()
            self._send_json({"url": f"{hub.endpoint}/{name}"}, 409 if known else 200)
        elif self.path.startswith("/cas/v1/xorbs/"):
            content = _unpacked(body)
            hub.large[hashlib.sha256(content).hexdigest()] = content
            self._send_json({"was_inserted": True})
        elif self.path.startswith("/cas/v1/shards"):
            self._send_json({"result": 1})
        elif match := API.match(self.path):
            files = hub.repositories["models", match[2]]
            if match[3] == "commit":
                _commit(files, [json.loads(line) for line in body.splitlines()], hub.large)
                hub.commits.append(hashlib.sha1(body).hexdigest())
                url = f"{hub.endpoint}/{match[2]}/commit/{hub.commits[-1]}"
                self._send_json({"commitUrl": url, "commitOid": hub.commits[-1]})
            else:
                self._send_json({"files": [_upload_mode(files, file["path"]) for file in json.loads(body)["files"]]})
        else:  # newer ways of hf_xet, and its statistics
            self._send(404 if "validate-yaml" not in self.path else 200, b"{}")

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing, to keep the tests' output clean."""


def _upload_mode(files: dict[str, bytes], path: str) -> dict[str, Any]:
    known = files.get(path)
    large = path.endswith(LARGE)
    oid = None if known is None else hashlib.sha256(known).hexdigest() if large else _oid(known)
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def _commit(files: dict[str, bytes], lines: list[dict[str, Any]], large: dict[str, bytes]) -> None:
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "deletedFile":
            del files[value["path"]]
        elif line["key"] == "lfsFile":
            files[value["path"]] = large[value["oid"]]
        else:
            files[value["path"]] = base64.b64decode(value["content"])


def _unpacked(xorb: bytes) -> bytes:
    """Return what the chunks of a xorb hold: each has a header of 8 bytes, and is stored plain, LZ4 or grouped LZ4."""
    content, at = b"", 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":  # which begins the list of chunks at the end
        packed, way, size = (int.from_bytes(xorb[at + a : at + b], "little") for a, b in ((1, 4), (4, 5), (5, 8)))
        chunk = xorb[at + 8 : at + 8 + packed]
        if way > 0:
            chunk = pyarrow.decompress(chunk, size, codec="lz4", asbytes=True)
        content += chunk if way < 2 else _ungrouped(chunk)
        at += 8 + packed
    return content


def _ungrouped(chunk: bytes) -> bytes:
    """Put bytes grouped by their place within four back into their order."""
    result, at = bytearray(len(chunk)), 0
    for place in range(4):
        count = len(range(place, len(chunk), 4))
        result[place::4] = chunk[at : at + count]
        at += count
    return bytes(result)


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
