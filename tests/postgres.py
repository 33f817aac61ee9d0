"""A real PostgreSQL server on loopback, from Debian's package."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.running.supervision import free_port


class Postgres:
    """A server and its data folder."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder, self.port = programs, folder, free_port()

    def run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root.
        command = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command += [str(self.programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def control(self, action: str) -> None:
        """Start, stop or restart the server."""
        settings = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        log = str(self.folder / "log.txt")
        self.run("pg_ctl", action, "-D", str(self.folder / "data"), "-m", "fast", "-w", "-l", log, "-o", settings)

    def database(self, name: str) -> str:
        """Make a database; return its address without the scheme."""
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgres:unused@127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start a server; stop and remove it at the end."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    found = str(installed[-1]) if installed else shutil.which("pg_ctl")
    if found is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    server = Postgres(Path(found).parent, folder)
    try:
        server.run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust")
        server.control("start")
        yield server
        server.control("stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
