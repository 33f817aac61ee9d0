"""Where results come from: the artifacts behind a page, by their manifests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.artifacts import MANIFEST


def provenance(inputs: Mapping[str, Path]) -> pd.DataFrame:
    """Kind and key of each artifact behind the report, and the seed of those trained."""
    rows = {}
    for name, path in inputs.items():
        manifest = read_manifest(path)
        seed = manifest.get("settings", {}).get("seed")
        rows[name] = {
            "kind": manifest.get("kind", "–"),
            "key": manifest.get("key", "–")[:16],
            "seed": "" if seed is None else str(seed),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def versions(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Versions of the libraries that made the inputs; several where they differ."""
    found: dict[str, set[str]] = {}
    for path in inputs.values():
        for library, version in read_manifest(path).get("versions", {}).items():
            found.setdefault(library, set()).add(str(version))
    return {library: ", ".join(sorted(several)) for library, several in sorted(found.items())}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact; empty for a source file or directory, which has none."""
    return json.loads((path / MANIFEST).read_text()) if (path / MANIFEST).is_file() else {}
