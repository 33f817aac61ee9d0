"""A real MLflow server, and a proxy that makes it slow."""

import contextlib
import http.server
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.running.process_group import Group, piped, watched
from tasks.running.supervision import free_port
from tasks.tracking.database import database_uri
from tests.waiting import wait_for

HOP_HEADERS = ("host", "content-length", "connection", "accept-encoding")


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run a server with its database and files in a folder; yield its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    database = ["--backend-store-uri", database_uri(folder / "server.db")]
    files = ["--artifacts-destination", (folder / "files").as_uri()]
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *database, *files]
    with Group(piped(watched([sys.executable, "-m", *command]))) as group:
        threading.Thread(target=lambda: list(iter(lambda: group.next_line(1), None)), daemon=True).start()
        wait_for(lambda: answers(address))
        yield address


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=1):
        return True
    return False


@contextlib.contextmanager
def slowed(server: str, seconds: float) -> Iterator[str]:
    """Run a proxy that delays each answer of a server; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            time.sleep(seconds)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
            request = urllib.request.Request(server + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as reply:
                    status, content, kind = reply.status, reply.read(), reply.headers["Content-Type"]
            except urllib.error.HTTPError as error:
                status, content, kind = error.code, error.read(), error.headers["Content-Type"]
            self.send_response(status)
            self.send_header("Content-Type", kind or "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
