"""Somebody else's server on this machine: it says yes to everything, and notes what it was told."""

import contextlib
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Stranger:
    """Where it is, what was asked of it, and what it passes on instead of saying yes."""

    address: str = ""
    heard: list[str] = field(default_factory=list)
    """Each request: its line and headers."""
    asks: str | None = None
    """Server whose answers it gives for its own."""


@contextlib.contextmanager
def stranger(asks: str | None = None) -> Iterator[Stranger]:
    """Serve for a while."""
    there = Stranger(asks=asks)

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            there.heard.append(f"{self.requestline}\n{self.headers}")
            body = b"true"
            if there.asks is not None:
                with urllib.request.urlopen(there.asks + self.path) as reply:
                    body = reply.read()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_CONNECT = answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        there.address = f"http://127.0.0.1:{server.server_port}"
        yield there
        server.shutdown()
