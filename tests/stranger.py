"""Another user's server on this machine, which says yes to everything and records what it hears."""

import contextlib
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Stranger:
    """Address of the server, the requests it heard, and the server it relays to, if any."""

    address: str = ""
    heard: list[str] = field(default_factory=list)
    """Request line and headers of each request."""
    asks: str | None = None
    """Server whose answers it passes off as its own."""


@contextlib.contextmanager
def stranger(asks: str | None = None) -> Iterator[Stranger]:
    """Serve until the block ends."""
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
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        there.address = f"http://127.0.0.1:{server.server_port}"
        yield there
        server.shutdown()
