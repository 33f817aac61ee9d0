"""Records of the servers that this user's commands have started: where each one is, and the login that it asks for.

A login is made at each start. It is kept in a file below Prefect's home that the user alone can read, where all of the
user's commands find it. Servers and workers get it in their environment. No command line, log, page or artifact has it.
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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from minillm.durable import make_folder
from minillm.errors import StageError
from minillm.files import read_json
from minillm.redaction import hide

NAME = "minillm"
PROOF_PATH = "/minillm/proof"
ANSWER_SECONDS = 5.0
START_SECONDS = 120.0
"""Time within which a server that is being started listens."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opener for requests to this machine's servers, without any proxy."""


@dataclass(frozen=True)
class Server:
    """A server that `make ui`, `make serve` or a run has started."""

    kind: Literal["prefect", "mlflow"]
    wanted: str
    """Address at which its user wants it. If that is taken, the server is at another."""
    address: str
    """`http://HOST:PORT`."""
    store: str
    """Store of the runs that it shows."""
    login: str = field(repr=False)
    """`NAME:PASSWORD`."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Secret that proves who the server is. The login would not do: one that its user chose could be guessed."""

    def __post_init__(self) -> None:
        for secret in (self.login, self.login.partition(":")[2], self.key):
            hide(secret)

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment variables with which Prefect's or MLflow's client logs in."""
        if self.kind == "prefect":
            return {"PREFECT_API_URL": f"{self.address}/api", "PREFECT_API_AUTH_STRING": self.login}
        name, _, password = self.login.partition(":")
        return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}


def make_login(before: "Server | None" = None) -> str:
    """Return the user's lasting login for Prefect's server, else the login of a server that died, else a new one.

    Raises:
        StageError: If the login in PREFECT_SERVER_API_AUTH_STRING is malformed.
    """
    lasting = os.environ.get("PREFECT_SERVER_API_AUTH_STRING", "")
    if not lasting:
        return f"{NAME}:{secrets.token_urlsafe(24)}" if before is None else before.login
    name, _, password = lasting.partition(":")
    if not name or not password or not lasting.isascii():
        raise StageError("PREFECT_SERVER_API_AUTH_STRING: a login must have the form NAME:PASSWORD, in ASCII")
    return lasting


def records_folder() -> Path:
    """Return the folder of records: it is below Prefect's home, whose database the servers serve."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "minillm"


@contextlib.contextmanager
def recorded(server: Server) -> Iterator[Path]:
    """Let this user's commands find a server while the block runs; yield the path of its record.

    Raises:
        StageError: If the record would not be private.
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
    """Write the record of a server into the folder of records, and return its path."""
    path = records_folder() / f"{server.kind}-{urllib.parse.urlsplit(server.address).port}.json"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(server), indent=2) + "\n", encoding="utf-8")
    return path


def running(**facts: str) -> Server | None:
    """Return the newest server with these values of its fields that this user has running, or None."""
    return next((server for server in _recorded_with(facts) if proves(server)), None)


def died(**facts: str) -> Server | None:
    """Return the newest server with these values of its fields that this user had and that ended unasked, or None.

    Clients that outlived it hold its login and call its address, so the next server takes over both. A server does not
    count if something else now listens at its address: clients may have sent the login there.
    """
    return next((server for server in _recorded_with(facts) if not listens(server.address)), None)


def _recorded_with(facts: Mapping[str, str]) -> list[Server]:
    """Return the recorded servers with these values of their fields, the newest first."""
    return [server for _, server in _records() if facts.items() <= asdict(server).items()]


def running_at(kind: str, address: str) -> Server | None:
    """Return the server of a kind that this user has running at an address, or None."""
    return running(kind=kind, address=address.replace("//localhost:", "//127.0.0.1:"))


def proves(server: Server) -> bool:
    """Check whether what listens at a server's address knows its key, without sending the key or the login."""
    challenge = secrets.token_urlsafe(24)
    try:
        with _DIRECT.open(f"{server.address}{PROOF_PATH}?challenge={challenge}", timeout=ANSWER_SECONDS) as reply:
            given = reply.read(1000)
    except (OSError, ValueError, http.client.HTTPException):  # the last if it speaks something other than HTTP
        return False
    return hmac.compare_digest(given, proof(server.key, server.address, challenge).encode())


def proof(key: str, address: str, challenge: str) -> str:
    """Return the answer that only a server with the key can give; the address in it keeps others from relaying it."""
    return hmac.digest(key.encode(), f"{address} {challenge}".encode(), "sha256").hex()


def listens(address: str) -> bool:
    """Return whether anything accepts connections at an address."""
    place = urllib.parse.urlsplit(address)
    try:
        with socket.create_connection((place.hostname, place.port), timeout=ANSWER_SECONDS):
            return True
    except (OSError, ValueError):  # the latter if a record is damaged
        return False


def _records() -> list[tuple[Path, Server]]:
    """Return all records, the newest first, without damaged ones."""
    folder = records_folder()
    if not folder.is_dir():
        return []
    _require_private(folder)
    found = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            server = Server(**read_json(path))
            found.append((path.stat().st_mtime, path, server))
    return [(path, server) for _, path, server in sorted(found, key=lambda item: item[0], reverse=True)]


def _require_private(folder: Path) -> None:
    """Check that nobody else can read or write records, which decide where runs and logins go."""
    facts = folder.stat()
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise StageError(
            f"{folder}: other users of this machine may read or write it, and it holds the logins of your servers; "
            "remove it, or set PREFECT_HOME to a folder of your own"
        )
