"""Describe where results come from: the artifacts behind a page, by their manifests."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from minillm.errors import StageError
from minillm.store.manifest import Manifest, read_manifest
from minillm.words import ABSENT


def provenance(inputs: Mapping[str, Path]) -> pd.DataFrame:
    """Tabulate kind and key of each artifact behind the report, and the seed of trained ones."""
    rows = {}
    for name, path in inputs.items():
        manifest = manifest_of(path)
        seed = None if manifest is None else manifest.settings.get("seed")
        rows[name] = {
            "kind": ABSENT if manifest is None else manifest.kind,
            "key": ABSENT if manifest is None else manifest.key[:16],
            "seed": "" if seed is None else str(seed),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def versions(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return the versions of the libraries that made the inputs; several if they differ."""
    found: dict[str, set[str]] = {}
    for path in inputs.values():
        manifest = manifest_of(path)
        for library, version in manifest.versions.items() if manifest is not None else ():
            found.setdefault(library, set()).add(version)
    return {library: ", ".join(sorted(several)) for library, several in sorted(found.items())}


def manifest_of(path: Path) -> Manifest | None:
    """Return the manifest of an artifact; None for a source file or directory."""
    try:
        return read_manifest(path)
    except StageError:
        return None
