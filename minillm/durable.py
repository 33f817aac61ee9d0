"""Writes that survive a power cut: new content is on disk before the old content is gone.

A rename or a removal may reach the disk before the bytes of a file written earlier, so each step here waits for the
one before it (fsync of the file, then of its folder).
"""

import errno
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk.

    Some file systems (network shares, FUSE) cannot sync a folder. Nothing better can be done there, so that error is
    ignored: the folder's entries are as safe as the file system makes them.

    Raises:
        OSError: The data cannot be written: the disk is full or failing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder, with every file and folder under it, is on disk."""
    for directory, _, names in os.walk(folder, topdown=False):
        for path in (Path(directory, name) for name in names):
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(directory))


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, accessible to this user only, and wait until they are on disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)  # another process may have just made it
        sync(folder.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder and wait until the new name is on disk. Its content must be on disk already."""
    source.replace(target)
    for folder in {target.parent, source.parent}:
        sync(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content and never a mix, even after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    move(temporary, path)
