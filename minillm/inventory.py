"""What is in a store: every artifact with its size, its age, what it was made from, and whether it is whole."""

import datetime
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.artifacts import MANIFEST, Store

DOOMED = ".removed"
"""Ends the name of a folder that is being deleted."""


@dataclass(frozen=True)
class Entry:
    """An artifact, or the work of a stage that has not ended."""

    path: Path
    kind: str
    key: str
    """Whole; of unfinished work the beginning, which its folder is named by."""
    bytes: int
    changed: datetime.datetime
    """When it was completed, or last worked on."""
    role: str
    """Whose it is, where the stage has one: minillm, teacher …"""
    config: str
    """Name of the configuration that made it."""
    inputs: tuple[str, ...]
    """Keys of the artifacts it was made from."""
    finished: bool

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.path.name


def entries(store: Store) -> list[Entry]:
    """All of a store, oldest first; an artifact whose manifest cannot be read counts as unfinished."""
    artifacts = [_entry(path, _json(path / MANIFEST)) for path in _folders(store.root / "artifacts")]
    work = [_entry(path, _json(path / "job.json"), finished=False) for path in _folders(store.root / "work")]
    return sorted([*artifacts, *work], key=lambda entry: entry.changed)


def with_inputs(keys: Iterable[str], found: Iterable[Entry]) -> set[str]:
    """Keys and those of everything they were made from."""
    inputs = {entry.key: entry.inputs for entry in found if entry.finished}
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
    entry.path.replace(doomed)
    shutil.rmtree(doomed)


def sweep(store: Store) -> None:
    """Finish removals that were cut off."""
    for doomed in store.root.glob(f"*/*{DOOMED}"):
        shutil.rmtree(doomed)


def _entry(path: Path, facts: Mapping[str, Any], finished: bool = True) -> Entry:
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    settings = facts.get("settings", {})
    changed = facts.get("created") or max((file.st_mtime for file in files), default=path.stat().st_mtime)
    kind, _, short = path.name.rpartition("-")
    return Entry(
        path=path,
        kind=kind,
        key=facts.get("key", short),
        bytes=sum(file.st_size for file in files),
        changed=datetime.datetime.fromtimestamp(changed),
        role=settings.get("role", ""),
        config=facts.get("config", {}).get("name", ""),
        inputs=tuple(artifact["key"] for artifact in facts.get("inputs", {}).values() if isinstance(artifact, Mapping)),
        finished=finished and bool(facts),
    )


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and path.suffix != DOOMED]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
