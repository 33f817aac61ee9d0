"""Files as they are at a moment: digests that are taken once per version, and what was written since."""

import functools
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minillm.files import files_of

SETTLED_NANOSECONDS = 2 * 10**9
"""A file that changed so recently may be written again within the same tick of its file system's clock."""


@dataclass(frozen=True)
class FileVersion:
    """What the file system says of a file."""

    inode: int
    size: int
    modified: int
    """Nanoseconds; whoever may write the file may set it to anything."""
    changed: int
    """Nanoseconds; every write moves it forward, and no user can set it back."""
    attributes: tuple[int, ...]
    """Mode, owner, group, number of links: a change of these moves `changed`, too."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """As it is now."""
        facts = path.stat()
        attributes = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink)
        return cls(facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, attributes)

    def written_since(self, before: "FileVersion") -> bool:
        """Whether it was certainly written to, even if the same bytes are in it again.

        Another `changed` alone is no proof where the attributes differ as well: a backup by hard links, chmod. Where
        they do not, somebody wrote and set `modified` back.
        """
        rewritten = (self.size, self.modified) != (before.size, before.modified)
        return rewritten or (self.changed != before.changed and self.attributes == before.attributes)


@dataclass(frozen=True)
class Snapshot:
    """A file, or the visible files of a folder, as they were before they were read."""

    path: Path
    files: dict[Path, FileVersion]
    settled: bool
    """Whether any later write is sure to change a version."""
    grows: bool = False
    """Whether new files are no change: a cache that other programs add to."""

    @classmethod
    def take(cls, path: Path, grows: bool = False) -> Self:
        """As they are now; none where there is nothing."""
        files = {file: FileVersion.of(file) for file in visible_files(path)}
        newest = max((version.changed for version in files.values()), default=0)
        return cls(path, files, time.time_ns() - newest > SETTLED_NANOSECONDS, grows)

    def written(self) -> list[Path]:
        """Files that were written to, added or removed since."""
        now = Snapshot.take(self.path).files
        gone, new = self.files.keys() - now.keys(), set() if self.grows else now.keys() - self.files.keys()
        both = self.files.keys() & now.keys()
        return sorted(gone | new | {file for file in both if now[file].written_since(self.files[file])})

    @property
    def certain(self) -> bool:
        """Whether nothing happened to them since; otherwise only their bytes can tell, unless `written` does."""
        return self.settled and Snapshot.take(self.path).files == self.files


def visible_files(path: Path) -> list[Path]:
    """A file itself, or the files of a folder (see `files_of`); nothing where there is none."""
    if path.is_dir():
        return files_of(path)
    return [path] if path.exists() else []


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read once as long as nothing is written, so that large weights are."""
    version = FileVersion.of(path)
    if time.time_ns() - version.changed <= SETTLED_NANOSECONDS:
        return file_sha256(path)
    return _sha256_of_version(path.resolve(), version)


@functools.cache
def _sha256_of_version(path: Path, version: FileVersion) -> str:
    del version
    return file_sha256(path)
