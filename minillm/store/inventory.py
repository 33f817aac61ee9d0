"""Inventory of a store: every artifact with its size, its age, its inputs, and whether it is whole."""

import datetime
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minillm.durable import move
from minillm.errors import StageError
from minillm.reachable import reachable
from minillm.stages import STAGES
from minillm.store.artifacts import Store
from minillm.store.manifest import Manifest, Origin, read_manifest, read_origin
from minillm.store.source_digest import source_digest

DOOMED = ".removed"
"""Suffix of a folder that is being deleted."""


@dataclass(frozen=True)
class Entry:
    """An artifact, or the work of a stage that has not ended."""

    path: Path
    kind: str
    key: str
    """Whole key, or only its beginning, from the folder's name, if nothing else is known."""
    bytes: int
    changed: datetime.datetime
    """Time of completion, or of the last work on it."""
    role: str
    """Model that it belongs to (minillm, teacher …); empty if the stage has no role."""
    config: str
    """Name of the configuration that made it."""
    inputs: tuple[str, ...]
    """Keys of the artifacts it was made from."""
    state: Literal["finished", "damaged", "unfinished", "left over"]
    """Damaged is an artifact whose manifest cannot be used, left over is work that nothing will continue."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name


def entries(store: Store) -> list[Entry]:
    """List all entries of a store, oldest first."""
    folders = [path for name in ("artifacts", "work") for path in (store.root / name).iterdir()]
    found = [look(path, store) for path in folders if path.suffix != DOOMED]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.changed)


def look(path: Path, store: Store) -> Entry | None:
    """Look at the present state of an entry; None if it has gone."""
    if not path.is_dir():
        return None
    return _artifact(path) if path.parent.name == "artifacts" else _work(path, store)


def with_inputs(keys: Iterable[str], found: Iterable[Entry]) -> set[str]:
    """Return keys together with the keys of everything they were made from."""
    inputs = {entry.key: entry.inputs for entry in found}
    return set(reachable(keys, lambda key: inputs.get(key, ())))


def remove(entry: Entry) -> None:
    """Delete an entry. It is renamed first, so that no reader finds half of it."""
    doomed = entry.path.with_name(f"{entry.name}{DOOMED}")
    move(entry.path, doomed)
    shutil.rmtree(doomed)


def sweep(store: Store) -> None:
    """Finish removals that were interrupted."""
    for doomed in store.root.glob(f"*/*{DOOMED}"):
        shutil.rmtree(doomed)


def _artifact(path: Path) -> Entry:
    try:
        manifest = read_manifest(path)
    except StageError:
        return _entry(path, None, "damaged")
    if path.name != f"{manifest.kind}-{manifest.key[:16]}":  # the manifest of another artifact
        return _entry(path, None, "damaged")
    return _entry(path, manifest, "finished")


def _work(path: Path, store: Store) -> Entry:
    try:
        origin = read_origin(path)
    except StageError:  # written by another version, or interrupted before it began
        return _entry(path, None, "left over")
    return _entry(path, origin, "unfinished" if _may_continue(origin, store) else "left over")


def _may_continue(origin: Origin, store: Store) -> bool:
    """Return True if a run can still ask for the key: it is of today's code, and its result does not exist yet."""
    stage = STAGES.get(origin.kind)
    current = stage is not None and origin.source_digest == source_digest(stage.module)
    return current and store.find(origin.kind, origin.key) is None


def _entry(path: Path, facts: Origin | None, state: Literal["finished", "damaged", "unfinished", "left over"]) -> Entry:
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    last_written = max((file.st_mtime for file in files), default=path.stat().st_mtime)
    kind, _, short = path.name.rpartition("-")
    return Entry(
        path=path,
        kind=kind,
        key=short if facts is None else facts.key,
        bytes=sum(file.st_size for file in files),
        changed=datetime.datetime.fromtimestamp(facts.created if isinstance(facts, Manifest) else last_written),
        role="" if facts is None else facts.settings.get("role", ""),
        config="" if facts is None else facts.config.get("name", ""),
        inputs=() if facts is None else tuple(artifact.key for artifact in facts.inputs.values()),
        state=state,
    )
