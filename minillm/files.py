"""Files and folders that users name, checked before they are opened, and JSON files that the project wrote itself."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.nearest import missing_path

OTHER_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def local_path(text: str | Path) -> Path:
    """Return a path as users write it: a `~` at its beginning is the home folder, all else is literal."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no user of this name
        return Path(text)


def problem(path: Path) -> str | None:
    """Say why a file or folder cannot be read and what to do about it; None if it can be read.

    Pipes, sockets and devices are never opened: reading one may block for ever, and its content has no checksum.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            kind = OTHER_KINDS.get(stat.S_IFMT(mode), "no file")
            return f"{path} is {kind}; write what it holds into a file, and name that"
        os.close(os.open(path, os.O_RDONLY))
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            return f"{path} is a link to {path.readlink()}, which does not exist; mend the link or name another file"
        return missing_path(path)
    except PermissionError:
        return f"{path} may not be read by this user; change its permissions or those of its folders"
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or holds a NUL, a broken disk
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        shown = repr(str(path))[1:-1]
        shown = shown if len(shown) <= 200 else f"{shown[:100]}…{shown[-60:]}"
        return f"{shown} cannot be read: {reason}; name another path"
    return None


def require_readable(path: Path) -> None:
    """Check that a file or folder can be read.

    Raises:
        StageError: It cannot be read; see `problem`.
    """
    if reason := problem(path):
        raise StageError(reason)


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
        StageError: It cannot be read, or is a folder.
    """
    require_readable(path)
    if path.is_dir():
        raise StageError(f"{path} is a folder; name the file in it")
    return path.open("rb")


def files_of(folder: Path) -> list[Path]:
    """Files of a folder and its subfolders, sorted by path. Hidden ones are left out and links are followed.

    Raises:
        StageError: One of them cannot be read, or a link leads back to a folder that holds it.
    """
    return sorted(_walk(folder, ()))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[Any]:
    """Return the values in a file that `write_json_lines` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]  # U+2028 ends no line


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, at once (see `write_atomically`)."""
    write_atomically(path, json.dumps(value, indent=2))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON value a line, at once (see `write_atomically`)."""
    write_atomically(path, "".join(json.dumps(value) + "\n" for value in values))


def _walk(folder: Path, above: tuple[Path, ...]) -> list[Path]:
    require_readable(folder)
    here = folder.resolve()
    if here in above:
        raise StageError(f"{folder} is a link to a folder that holds it; remove the link")
    found: list[Path] = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        require_readable(path)
        found += _walk(path, (*above, here)) if path.is_dir() else [path]
    return found
