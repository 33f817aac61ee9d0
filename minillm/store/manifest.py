"""Manifests: what each artifact was made from and the checksums of its files, sealed by a checksum of their own."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from minillm.config import Strict
from minillm.errors import StageError

MANIFEST = "manifest.json"
ORIGIN = "origin.json"
"""File in a stage's work folder that says what the work is to become."""
Facts = TypeVar("Facts", bound="Origin")
SEAL = "sha256"
"""Entry of a sealed file with the digest of all other entries."""


class Artifact(Strict):
    """A completed directory in the store, as tasks pass it to each other."""

    kind: str
    key: str
    """Digest of what it was computed from."""
    path: str
    digest: str
    """Digest of its files, except those with clock times."""

    def manifest(self) -> "Manifest":
        """Read the artifact's manifest.

        Raises:
            StageError: The manifest was damaged since the artifact was found.
        """
        return read_manifest(Path(self.path))

    def part(self, folder: str) -> "Artifact":
        """Return a folder of the artifact as an input: what reads it alone does not depend on the other files."""
        files = {name: facts.sha256 for name, facts in self.manifest().files.items() if name.startswith(f"{folder}/")}
        return self.model_copy(update={"path": f"{self.path}/{folder}", "digest": text_digest(files)})


class Origin(BaseModel):
    """Everything that a stage's key is computed from, and the configuration that asked for it."""

    # Pydantic would write NaN and infinity as null, which cannot be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    kind: str
    key: str
    label: str = ""
    """Name of the stage in logs and pages, e.g. "train minillm"."""
    settings: dict[str, Any] = {}
    inputs: dict[str, Artifact] = {}
    sources: dict[str, str] = {}
    """Fingerprints of the files, data sets and models from outside."""
    source_digest: str = ""
    """Digest of the library's code that computes it."""
    config: dict[str, Any] = {}
    """The whole configuration."""


class FileFacts(Strict):
    """Size and checksum of a completed file."""

    bytes: int
    sha256: str


class Timings(Strict):
    """Start and duration of the attempt that completed an artifact."""

    started: float
    """Unix time, seconds."""
    seconds: float
    attempt: int


class Manifest(Origin):
    """Origin, files and results of a completed artifact."""

    created: float
    """Unix time, seconds."""
    versions: dict[str, str] = {}
    """Versions of Python and of the libraries that results depend on."""
    timings: Timings | None = None
    summary: dict[str, float | str] = {}
    """Results at a glance, as the stage returned them."""
    files: dict[str, FileFacts]
    """Files by their paths below the artifact's folder."""


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact.

    Raises:
        StageError: The manifest is missing, damaged or of another version.
    """
    return _read_sealed(folder / MANIFEST, Manifest)


def read_origin(work: Path) -> Origin:
    """Read what unfinished work is to become.

    Raises:
        StageError: The file that says so is missing, damaged or of another version.
    """
    return _read_sealed(work / ORIGIN, Origin)


def _read_sealed(path: Path, model: type[Facts]) -> Facts:
    try:
        return model.model_validate(unseal(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{error.error_count()} wrong entries" if isinstance(error, ValidationError) else str(error)
        raise StageError(
            f"{path} cannot be used ({reason}); the next run that needs its stage computes it again"
        ) from error


def text_digest(value: object) -> str:
    """Hex sha256 of a JSON-serialisable value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON text with their checksum, for `unseal` to read."""
    return json.dumps({**facts, SEAL: text_digest(facts)}, indent=2)


def unseal(data: bytes) -> dict[str, Any]:
    """Return the facts in a sealed text.

    Raises:
        ValueError: The text differs from what `seal` wrote, if only by one bit.
    """
    facts = json.loads(data)
    if not isinstance(facts, dict):
        raise ValueError("not an object")
    facts.pop(SEAL, None)
    if seal(facts).encode() != data:
        raise ValueError("it does not fit its checksum")
    return facts
