"""What is in a store: every artifact with its size, its age, what it was made from, and whether it is whole."""

import datetime
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minillm.durable import move
from minillm.errors import StageError
from minillm.stages import STAGES
from minillm.store.artifacts import Store
from minillm.store.manifest import Manifest, Origin, read_manifest, read_origin
from minillm.store.source_digest import source_digest

DOOMED = ".removed"
"""Ends the name of a folder that is being deleted."""


@dataclass(frozen=True)
class Entry:
    """An artifact, or the work of a stage that has not ended."""

    path: Path
    kind: str
    key: str
    """Whole; the beginning, which its folder is named by, where nothing else is known."""
    bytes: int
    changed: datetime.datetime
    """When it was completed, or last worked on."""
    role: str
    """Whose it is, where the stage has one: minillm, teacher …"""
    config: str
    """Name of the configuration that made it."""
    inputs: tuple[str, ...]
    """Keys of the artifacts it was made from."""
    state: Literal["finished", "damaged", "unfinished", "left over"]
    """Damaged: an artifact whose manifest cannot be used. Left over: work that nothing will continue."""

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.path.name


def entries(store: Store) -> list[Entry]:
    """All of a store, oldest first."""
    folders = [path for name in ("artifacts", "work") for path in (store.root / name).iterdir()]
    found = [look(path, store) for path in folders if path.suffix != DOOMED]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.changed)


def look(path: Path, store: Store) -> Entry | None:
    """An entry as it is now; None where it has gone."""
    if not path.is_dir():
        return None
    return _artifact(path) if path.parent.name == "artifacts" else _work(path, store)


def with_inputs(keys: Iterable[str], found: Iterable[Entry]) -> set[str]:
    """Keys and those of everything they were made from."""
    inputs = {entry.key: entry.inputs for entry in found}
    needed: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            waiting += inputs.get(key, ())
    return needed


def remove(entry: Entry) -> None:
    """Delete an entry; it is out of sight before its first file is gone."""
    doomed = entry.path.with_name(f"{entry.name}{DOOMED}")
    move(entry.path, doomed)
    shutil.rmtree(doomed)


def sweep(store: Store) -> None:
    """Finish removals that were cut off."""
    for doomed in store.root.glob(f"*/*{DOOMED}"):
        shutil.rmtree(doomed)


def _artifact(path: Path) -> Entry:
    try:
        manifest = read_manifest(path)
    except StageError:
        return _entry(path, None, "damaged")
    if path.name != f"{manifest.kind}-{manifest.key[:16]}":  # that of another
        return _entry(path, None, "damaged")
    return _entry(path, manifest, "finished")


def _work(path: Path, store: Store) -> Entry:
    try:
        origin = read_origin(path)
    except StageError:  # of another version, or cut off before it began
        return _entry(path, None, "left over")
    return _entry(path, origin, "unfinished" if _may_continue(origin, store) else "left over")


def _may_continue(origin: Origin, store: Store) -> bool:
    """Whether some run can still ask for the key: the code is that of today, and its result is not there yet."""
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
