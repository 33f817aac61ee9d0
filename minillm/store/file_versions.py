"""Versions of files: digests that are computed once per version, and detection of later writes."""

import functools
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minillm.files import files_of

SETTLED_NANOSECONDS = 2 * 10**9
"""Age at which a version is settled: a younger file may be written again within one tick of the file system's clock."""


@dataclass(frozen=True)
class FileVersion:
    """State of a file as the file system reports it."""

    inode: int
    size: int
    modified: int
    """Modification time, nanoseconds. Whoever may write the file may set it to anything."""
    changed: int
    """Change time, nanoseconds. Every write moves it forward, and no user can set it back."""
    attributes: tuple[int, ...]
    """Mode, owner, group and number of links. A change of these moves `changed` too."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the present version of a file."""
        facts = path.stat()
        attributes = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink)
        return cls(facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, attributes)

    def written_since(self, before: "FileVersion") -> bool:
        """Return True if the file was certainly written to, even if it holds the same bytes again.

        A new `changed` alone proves nothing if the attributes differ too (a backup by hard links, chmod). If they do
        not, somebody wrote and set `modified` back.
        """
        rewritten = (self.size, self.modified) != (before.size, before.modified)
        return rewritten or (self.changed != before.changed and self.attributes == before.attributes)


@dataclass(frozen=True)
class Snapshot:
    """Versions of a file, or of the visible files of a folder, before they are read."""

    path: Path
    files: dict[Path, FileVersion]
    settled: bool
    """True if any later write is sure to change a version."""
    grows: bool = False
    """True if new files do not count as a change, as in a cache that other programs add to."""

    @classmethod
    def take(cls, path: Path, grows: bool = False) -> Self:
        """Take a snapshot of the present files; it is empty if there are none."""
        files = {file: FileVersion.of(file) for file in visible_files(path)}
        newest = max((version.changed for version in files.values()), default=0)
        return cls(path, files, time.time_ns() - newest > SETTLED_NANOSECONDS, grows)

    def written(self) -> list[Path]:
        """Files that were written to, added or removed since the snapshot."""
        now = Snapshot.take(self.path).files
        gone, new = self.files.keys() - now.keys(), set() if self.grows else now.keys() - self.files.keys()
        both = self.files.keys() & now.keys()
        return sorted(gone | new | {file for file in both if now[file].written_since(self.files[file])})

    @property
    def certain(self) -> bool:
        """True if nothing happened to the files since. If False and `written` is empty, only their bytes can tell."""
        return self.settled and Snapshot.take(self.path).files == self.files


def visible_files(path: Path) -> list[Path]:
    """Return a file itself, or the files of a folder (see `files_of`); nothing if the path does not exist."""
    if path.is_dir():
        return files_of(path)
    return [path] if path.exists() else []


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, which are read only once per version: weights are large."""
    version = FileVersion.of(path)
    if time.time_ns() - version.changed <= SETTLED_NANOSECONDS:
        return file_sha256(path)
    return _sha256_of_version(path.resolve(), version)


@functools.cache
def _sha256_of_version(path: Path, version: FileVersion) -> str:
    del version
    return file_sha256(path)
