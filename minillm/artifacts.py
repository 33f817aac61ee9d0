"""The store: results as directories that are complete, checked against their manifest, and never half visible.

An artifact's key is the digest of its stage's settings, of its inputs and of the library source that computes it,
so the same key is never computed twice and changing one field recomputes only what depends on it.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from minillm.config import Strict
from minillm.errors import StageError

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
FULL = 1 << 16
"""Bytes left on a disk that counts as full."""
SYSTEM_METRICS = "system_metrics.jsonl"
CLOCKED = (METRICS, SYSTEM_METRICS)
"""Files of an artifact that tell how its computation went: they carry clock times and are no part of its content."""
LOGGER = logging.getLogger(__name__)


class Artifact(Strict):
    """What travels between tasks: a completed directory in the store, by its content."""

    kind: str
    key: str
    """Digest of what it was computed from."""
    path: str
    digest: str
    """Digest of what it holds; what carries clock times is left out."""

    def manifest(self) -> dict[str, Any]:
        """The manifest: files, settings, inputs, versions, timings and a `summary` of results."""
        return json.loads((Path(self.path) / MANIFEST).read_text())


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(value: object) -> str:
    """Hex sha256 of a JSON-serialisable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Store:
    """A folder of artifacts and of unfinished work, on one file system."""

    def __init__(self, root: str | Path) -> None:
        """Make the folders that are not there yet.

        Raises:
            StageError: It cannot be written to.
        """
        self.root = Path(root).resolve()
        try:
            for name in ("artifacts", "work", "locks", "plans"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "work"):
                pass
        except OSError as error:
            raise StageError(
                f"runtime.store {self.root} cannot be written to ({error.strerror}): name a folder that can be, or "
                "give this user the right to"
            ) from error

    def work_directory(self, kind: str, key: str) -> Path:
        """Folder that survives a failure, for checkpoints and the output under construction."""
        path = self.root / "work" / f"{kind}-{key[:16]}"
        (path / "output").mkdir(parents=True, exist_ok=True)
        return path

    def lock(self, key: str) -> FileLock:
        """Exclusive right to compute `key`; the kernel releases it when its holder dies."""
        return FileLock(self.root / "locks" / f"{key[:16]}.lock")

    def find(self, kind: str, key: str) -> Artifact | None:
        """The artifact of `key`, or None if it is absent or any file differs from its manifest."""
        path = self._path(kind, key)
        if not path.exists():
            return None
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            altered = [name for name, facts in files.items() if not _intact(path / name, facts)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            LOGGER.warning("%s has an unreadable manifest (%s); computing it again", path, error)
            return None
        if altered:
            LOGGER.warning("%s: %s missing or altered; computing it again", path, ", ".join(altered))
            return None
        return Artifact(kind=kind, key=key, path=str(path), digest=_content_digest(files))

    def complete(self, kind: str, key: str, facts: Mapping[str, Any]) -> Artifact:
        """Give the finished output its manifest and its place, and remove the work behind it.

        Args:
            kind: Name of the stage.
            key: Digest of what the artifact was computed from.
            facts: Further entries of the manifest (settings, inputs, versions, timings, summary).
        """
        work = self.work_directory(kind, key)
        output = work / "output"
        names = sorted(str(f.relative_to(output)) for f in output.rglob("*") if f.is_file() and f.name != MANIFEST)
        files = {
            name: {"bytes": (output / name).stat().st_size, "sha256": file_sha256(output / name)} for name in names
        }
        manifest = {"kind": kind, "key": key, "created": time.time(), **facts, "files": files}
        write_atomically(output / MANIFEST, json.dumps(manifest, indent=2))
        target = self._path(kind, key)
        if target.exists():  # an altered result, which find() refused
            shutil.rmtree(target)
        output.replace(target)
        shutil.rmtree(work)
        return Artifact(kind=kind, key=key, path=str(target), digest=_content_digest(files))

    def _path(self, kind: str, key: str) -> Path:
        return self.root / "artifacts" / f"{kind}-{key[:16]}"


def disk_full(error: BaseException, folder: Path) -> StageError | None:
    """What to say of an error that a full disk explains; None for any other.

    Args:
        error: Libraries word it in many ways.
        folder: Where it was written to.
    """
    free = shutil.disk_usage(folder).free
    if free >= FULL and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return StageError(
        f"{folder}: no space left on its disk ({free} bytes free): make room (`python -m flows.store gc`) or set "
        "runtime.store to a folder on a larger one. The same command continues from the last checkpoint"
    )


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part, even after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _intact(path: Path, facts: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == facts["bytes"] and file_sha256(path) == facts["sha256"]


def _content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    return text_digest({name: facts["sha256"] for name, facts in files.items() if name not in CLOCKED})
