"""The store: a folder of results, each a complete directory that is checked against its manifest.

An artifact's key is the digest of its stage's settings, its inputs and the library source that computes it. So the same
key is never computed twice, and changing one field recomputes only what depends on it.
"""

import errno
import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from minillm.durable import make_folder, move, sync_tree, write_atomically
from minillm.errors import StageError
from minillm.store.file_versions import file_sha256
from minillm.store.manifest import (
    MANIFEST,
    ORIGIN,
    Artifact,
    FileFacts,
    Manifest,
    Origin,
    read_manifest,
    seal,
    text_digest,
)

METRICS = "metrics.jsonl"
SYSTEM_METRICS = "system_metrics.jsonl"
WORKER_MEMORY = "system/worker_memory_usage_megabytes"
"""Metric among them: what the worker and its processes hold, MB."""
CLOCKED = (METRICS, SYSTEM_METRICS)
"""Files of an artifact that record how its computation went. They hold clock times and are no part of its content."""
FULL = 1 << 16
"""Free bytes below which a disk counts as full."""
LOGGER = logging.getLogger(__name__)


class Store:
    """A folder of artifacts and unfinished work, on one file system.

    Its folders are accessible to their user only: whoever may write to them decides what that user's runs load.
    """

    def __init__(self, root: str | Path) -> None:
        """Make the folders that are missing.

        Raises:
            StageError: The store cannot be written to.
        """
        self.root = Path(root).resolve()
        try:
            for name in ("artifacts", "work", "locks", "plans"):
                make_folder(self.root / name)
            with tempfile.TemporaryFile(dir=self.root / "work"):
                pass
        except OSError as error:
            raise StageError(
                f"runtime.store {self.root} cannot be written to ({error.strerror}): name a folder that can be, or "
                "give this user the right to"
            ) from error
        _warn_if_shared(self.root)

    def work_path(self, kind: str, key: str) -> Path:
        """Path of a key's work folder, which need not exist."""
        return self.root / "work" / f"{kind}-{key[:16]}"

    def work_directory(self, kind: str, key: str) -> Path:
        """Make and return a key's work folder, which survives failures: checkpoints and unfinished output."""
        path = self.work_path(kind, key)
        make_folder(path / "output")
        return path

    def begin(self, origin: Origin) -> Path:
        """Make the work folder of a key, or find an earlier attempt's, and record what it is to become."""
        work = self.work_directory(origin.kind, origin.key)
        write_atomically(work / ORIGIN, seal(origin.model_dump(mode="json")))
        return work

    def abandon(self, kind: str, key: str) -> None:
        """Remove unfinished work that must not be continued."""
        shutil.rmtree(self.work_path(kind, key), ignore_errors=True)

    def lock(self, key: str) -> FileLock:
        """Lock that gives the exclusive right to compute `key`; the kernel releases it when its holder dies."""
        return FileLock(self.root / "locks" / f"{key[:16]}.lock")

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact of `key`, or None if it is absent or any file differs from its manifest."""
        path = self._path(kind, key)
        if not path.exists():
            return None
        try:
            manifest = read_manifest(path)
        except StageError as error:
            LOGGER.warning("%s", error)
            return None
        if (manifest.kind, manifest.key) != (kind, key):
            LOGGER.warning("%s is of %s, key %s; computing it again", path, manifest.kind, manifest.key)
            return None
        altered = [name for name, facts in manifest.files.items() if not _intact(path / name, facts)]
        if altered:
            LOGGER.warning("%s: %s missing or altered; computing it again", path, ", ".join(altered))
            return None
        return Artifact(kind=kind, key=key, path=str(path), digest=_content_digest(manifest.files))

    def complete(self, kind: str, key: str, facts: Mapping[str, Any]) -> Artifact:
        """Write the manifest of the finished output, move it into its place, and remove the work folder.

        Each step is on disk before the next one begins, so that a power cut leaves either the work or the whole
        artifact.

        Args:
            kind: Name of the stage.
            key: Digest of what the artifact was computed from.
            facts: Further entries of the manifest (see `Manifest`).
        """
        work = self.work_directory(kind, key)
        output = work / "output"
        names = sorted(str(f.relative_to(output)) for f in output.rglob("*") if f.is_file() and f != output / MANIFEST)
        files = {
            name: FileFacts(bytes=(output / name).stat().st_size, sha256=file_sha256(output / name)) for name in names
        }
        manifest = Manifest.model_validate({"kind": kind, "key": key, "created": time.time(), **facts, "files": files})
        sync_tree(output)
        write_atomically(output / MANIFEST, seal(manifest.model_dump(mode="json")))
        target = self._path(kind, key)
        if target.exists():  # an altered result, which find() refused
            shutil.rmtree(target)
        move(output, target)
        shutil.rmtree(work)
        return Artifact(kind=kind, key=key, path=str(target), digest=_content_digest(files))

    def _path(self, kind: str, key: str) -> Path:
        return self.root / "artifacts" / f"{kind}-{key[:16]}"


@functools.cache
def _warn_if_shared(root: Path) -> None:
    """Warn once if other users may read or write the store. That may be intended, so nothing is changed."""
    mode = root.stat().st_mode
    if mode & 0o022:
        LOGGER.warning(
            "other users may write to %s, and so run code as you: `chmod go-w` it, or see docs/production.md", root
        )
    elif mode & 0o055:
        LOGGER.warning("other users may read %s: `chmod 700` it unless that is meant", root)


def disk_full(error: BaseException, folder: Path) -> StageError | None:
    """Return the error to report if a full disk explains what a library raised, or else None.

    Args:
        error: The library's error; libraries word this one in many ways.
        folder: Folder that was written to.
    """
    free = shutil.disk_usage(folder).free
    if free >= FULL and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return StageError(
        f"{folder}: no space left on its disk ({free} bytes free): make room (`minillm store gc`) or set "
        "runtime.store to a folder on a larger one. The same command continues from the last checkpoint"
    )


def _intact(path: Path, facts: FileFacts) -> bool:
    return path.is_file() and path.stat().st_size == facts.bytes and file_sha256(path) == facts.sha256


def _content_digest(files: Mapping[str, FileFacts]) -> str:
    return text_digest({name: facts.sha256 for name, facts in files.items() if name not in CLOCKED})
