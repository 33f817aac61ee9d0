"""Manifests of artifacts that tests make by hand."""

from pathlib import Path
from typing import Any

from minillm.store.manifest import MANIFEST, Manifest, seal


def write_manifest(folder: Path, kind: str, key: str = "0" * 64, **facts: Any) -> None:
    """Give a folder the manifest of an artifact, with some of its entries."""
    manifest = Manifest.model_validate({"kind": kind, "key": key, "created": 0.0, "files": {}, **facts})
    (folder / MANIFEST).write_text(seal(manifest.model_dump(mode="json")), encoding="utf-8")
