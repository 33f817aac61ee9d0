"""Servers that this user's commands have started: where each one is, and the login that it asks for.

A login is made at each start. It stands in a file that the user alone can read, below Prefect's home, where all of the
user's commands find it; servers and workers get it in their environment. No command line, log, page or artifact has it.
"""

import contextlib
import hmac
import http.client
import json
import os
import secrets
import socket
import stat
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from minillm.durable import make_folder
from minillm.errors import StageError
from minillm.redaction import hide

NAME = "minillm"
PROOF_PATH = "/minillm/proof"
ANSWER_SECONDS = 5.0
START_SECONDS = 120.0
"""Within them a server that is being started listens."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks this machine's servers without any proxy."""


@dataclass(frozen=True)
class Server:
    """A server that `make ui`, `make serve` or a run has started."""

    kind: Literal["prefect", "mlflow"]
    wanted: str
    """Address that its user would have it at; it is elsewhere where that is taken."""
    address: str
    """`http://HOST:PORT`."""
    store: str
    """Whose runs it shows."""
    login: str = field(repr=False)
    """`NAME:PASSWORD`."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Proves who the server is; not the login, which would be open to guessing where its user has chosen it."""

    def __post_init__(self) -> None:
        for secret in (self.login, self.login.partition(":")[2], self.key):
            hide(secret)

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment variables with which Prefect's or MLflow's client log in."""
        if self.kind == "prefect":
            return {"PREFECT_API_URL": f"{self.address}/api", "PREFECT_API_AUTH_STRING": self.login}
        name, _, password = self.login.partition(":")
        return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def make_login(before: "Server | None" = None) -> str:
    """The lasting login that the user has set for Prefect's server, that of a server that died, or a new one.

    Raises:
        StageError: The login in PREFECT_SERVER_API_AUTH_STRING is malformed.
    """
    lasting = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")
    if not lasting:
        return f"{NAME}:{secrets.token_urlsafe(24)}" if before is None else before.login
    name, _, password = lasting.partition(":")
    if not name or not password or not lasting.isascii():
        raise StageError("PREFECT_SERVER_API_AUTH_STRING: a login has the form NAME:PASSWORD, in ASCII; set it to one")
    return lasting


def records_folder() -> Path:
    """Where records are kept: below Prefect's home, whose database the servers serve."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "minillm"


@contextlib.contextmanager
def recorded(server: Server) -> Iterator[Path]:
    """Let this user's commands find a server meanwhile; the path of its record.

    Raises:
        StageError: The record would not be private.
    """
    folder = records_folder()
    make_folder(folder)
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(0o700)
    _require_private(folder)
    for path, other in _records():
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, by the process that wrote it
            if time.time() - path.stat().st_mtime > START_SECONDS and not listens(other.address):
                path.unlink()  # killed before it could remove its record
    path = record(server)
    text = path.read_text(encoding="utf-8")
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == text:
                path.unlink()


def record(server: Server) -> Path:
    """Write the record of a server into the folder of records; its path."""
    path = records_folder() / f"{server.kind}-{urllib.parse.urlsplit(server.address).port}.json"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(server), indent=2) + "\n", encoding="utf-8")
    return path


def running(kind: str, wanted: str, store: str | None = None) -> Server | None:
    """The server of a kind that this user has running for an address, if there is one; of one store, where given."""
    return next((server for server in _recorded_for(kind, wanted, store) if proves(server)), None)


def died(kind: str, wanted: str, store: str | None = None) -> Server | None:
    """The last server of a kind that this user had for an address and that ended without being asked to.

    Clients that outlived it hold its login and call at its address, so the next one takes both. One whose address
    something else listens at is none: the login may have been told there.
    """
    return next((server for server in _recorded_for(kind, wanted, store) if not listens(server.address)), None)


def _recorded_for(kind: str, wanted: str, store: str | None) -> list[Server]:
    """Servers with a record, the newest first."""
    found = [server for _, server in _records() if (server.kind, server.wanted) == (kind, wanted)]
    return [server for server in found if store in (None, server.store)]


def running_at(kind: str, address: str) -> Server | None:
    """The server of a kind that this user has running at an address, if there is one."""
    address = address.replace("//localhost:", "//127.0.0.1:")
    found = [server for _, server in _records() if (server.kind, server.address) == (kind, address)]
    return next((server for server in found if proves(server)), None)


def proves(server: Server) -> bool:
    """Whether what listens at a server's address knows its key; neither that nor the login is sent to find out."""
    challenge = secrets.token_urlsafe(24)
    try:
        with _DIRECT.open(f"{server.address}{PROOF_PATH}?challenge={challenge}", timeout=ANSWER_SECONDS) as reply:
            given = reply.read(1000)
    except (OSError, ValueError, http.client.HTTPException):  # the last where something other than HTTP is spoken
        return False
    return hmac.compare_digest(given, proof(server.key, server.address, challenge).encode())


def proof(key: str, address: str, challenge: str) -> str:
    """What only a server with the key can answer; the address keeps others from passing its answer on."""
    return hmac.digest(key.encode(), f"{address} {challenge}".encode(), "sha256").hex()


def listens(address: str) -> bool:
    """Whether anything accepts connections at an address."""
    place = urllib.parse.urlsplit(address)
    try:
        with socket.create_connection((place.hostname, place.port), timeout=ANSWER_SECONDS):
            return True
    except (OSError, ValueError):  # the latter where a record is damaged
        return False


def _records() -> list[tuple[Path, Server]]:
    """All records, the newest first; damaged ones are none."""
    folder = records_folder()
    if not folder.is_dir():
        return []
    _require_private(folder)
    found = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            server = Server(**json.loads(path.read_text(encoding="utf-8")))
            found.append((path.stat().st_mtime, path, server))
    return [(path, server) for _, path, server in sorted(found, key=lambda item: item[0], reverse=True)]


def _require_private(folder: Path) -> None:
    """Look whether nobody else can write or read records, which decide where runs and logins go."""
    facts = folder.stat()
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise StageError(
            f"{folder}: other users of this machine may read or write it, and it holds the logins of your servers; "
            "remove it, or set PREFECT_HOME to a folder of your own"
        )
