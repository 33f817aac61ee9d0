"""Results that runs on tracking servers use, noted in the store.

The store's own database can always be asked. A server cannot be once another one is in use, so its uses are noted.
"""

import json
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from minillm.durable import make_folder, write_atomically
from minillm.errors import StageError, first_line
from tasks.tracking.entries import server_in_use

USES = "servers/uses.json"
"""File of the uses, in the outbox's folder: {server: {key: name of a run}}."""
NOTED = TypeAdapter(dict[str, dict[str, str]])


def uses_elsewhere(folder: Path) -> dict[str, dict[str, str]]:
    """Return the results that runs on other servers than the one in use need: {server: {key: name of a run}}.

    Raises:
        StageError: The file of the uses cannot be read.
    """
    return {server: keys for server, keys in _noted(folder / USES).items() if server != server_in_use()}


def note_use(folder: Path, server: str, key: str, name: str) -> None:
    """Note that a run on a server uses a result.

    Args:
        folder: Folder of the outbox.
        server: Server, as `server_in_use` names it.
        key: Key of the result.
        name: Name of the run.

    Raises:
        StageError: The file of the uses cannot be read.
    """
    path = folder / USES
    make_folder(path.parent)
    with FileLock(path.with_suffix(".lock")):
        uses = _noted(path)
        if key not in uses.setdefault(server, {}):
            uses[server][key] = name
            write_atomically(path, json.dumps(uses, indent=1))


def _noted(path: Path) -> dict[str, dict[str, str]]:
    try:
        return NOTED.validate_json(path.read_bytes()) if path.exists() else {}
    except ValidationError as error:
        raise StageError(
            f"{path} cannot be read ({first_line(error)}), so what runs on other servers use is not known: restore "
            "the file or, if nothing of theirs is wanted, delete it"
        ) from error
