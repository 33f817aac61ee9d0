"""MLflow's database in a store: its address, and the paths in it after the store was copied or moved."""

import contextlib
import re
import sqlite3
import urllib.parse
from pathlib import Path

DATABASE = "mlflow.db"
FILES = "mlartifacts"
"""Folder of the store with the files of tracked runs."""
PLACE = re.compile(rf"(file://.+)/{FILES}(?:/\d+)?")
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("tags", "value"),
    ("model_version_tags", "value"),
)
"""Tables and columns that name places in the store: addresses of files, and paths of artifacts."""


def database_uri(database: Path) -> str:
    """Return the address of an SQLite database as SQLAlchemy takes it, whatever characters its path has.

    In its plain form, a question mark in the path begins the options. With the driver named, MLflow does not take
    `file:…` for a relative path and make that folder where the command was typed.
    """
    return f"sqlite+pysqlite:///file:{urllib.parse.quote(str(database))}?uri=true"


def relocate(store: Path) -> bool:
    """Adapt the database of a store that was copied or moved: replace the former place of the store by this one.

    Otherwise runs that go on here would write their files there. Nothing is changed if the former place is this very
    folder by another name (a mount, a container).

    Args:
        store: Store with MLflow's database, which nobody else is opening.

    Returns:
        Whether anything was changed. All changes are one transaction.
    """
    with contextlib.closing(sqlite3.connect(store / DATABASE, timeout=60)) as database:
        database.isolation_level = None
        former = {uri: path for uri, path in _roots(database).items() if not _same(path, store)}
        if not former:
            return False
        database.execute("BEGIN IMMEDIATE")
        for uri, path in former.items():
            for there, here in ((uri, store.as_uri()), (str(path), str(store))):
                for table, column in ADDRESSES:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (f"{here}/", len(there) + 2, len(there) + 1, f"{there}/"),
                    )
        database.execute("COMMIT")
    return True


def _roots(database: sqlite3.Connection) -> dict[str, Path]:
    """Return the stores that experiments have their files in, by the beginning of the files' addresses."""
    addresses = [address or "" for (address,) in database.execute("SELECT artifact_location FROM experiments")]
    found = {match[1] for address in addresses if (match := PLACE.fullmatch(address))}
    return {uri: Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path)) for uri in sorted(found)}


def _same(former: Path, store: Path) -> bool:
    try:
        return former.samefile(store)
    except OSError:  # the former place no longer exists
        return former == store
