"""What an artifact says of itself: what it was made from and the checksum of each file, under one of its own."""

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
"""In the work folder of a stage: what it is to become."""
Facts = TypeVar("Facts", bound="Origin")
SEAL = "sha256"
"""Entry of a sealed file: the digest of all others."""


class Artifact(Strict):
    """What travels between tasks: a completed directory in the store, by its content."""

    kind: str
    key: str
    """Digest of what it was computed from."""
    path: str
    digest: str
    """Digest of what it holds; what carries clock times is left out."""

    def manifest(self) -> "Manifest":
        """What it says of itself.

        Raises:
            StageError: It was damaged since it was found.
        """
        return read_manifest(Path(self.path))


class Origin(BaseModel):
    """Everything that a stage's key is computed from, and the configuration that asked for it."""

    # Pydantic would write null for a number that is none, which cannot be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    kind: str
    key: str
    label: str = ""
    """What the stage is called in logs and pages, e.g. "train minillm"."""
    settings: dict[str, Any] = {}
    inputs: dict[str, Artifact] = {}
    sources: dict[str, str] = {}
    """Fingerprints of the files, data sets and models from outside."""
    source_digest: str = ""
    """Of the library's code that computes it."""
    config: dict[str, Any] = {}
    """The whole configuration."""


class FileFacts(BaseModel):
    """A file as it was completed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Timings(BaseModel):
    """When and how long the attempt ran that completed it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: float
    """Unix time, seconds."""
    seconds: float
    attempt: int


class Manifest(Origin):
    """Of a completed artifact."""

    created: float
    """Unix time, seconds."""
    versions: dict[str, str] = {}
    """Of Python and the libraries that results depend on."""
    timings: Timings | None = None
    summary: dict[str, float | str] = {}
    """Results at a glance, as the stage returned them."""
    files: dict[str, FileFacts]
    """By path below the artifact's folder."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        StageError: It is missing, damaged or of another version.
    """
    return _read_sealed(folder / MANIFEST, Manifest)


def read_origin(work: Path) -> Origin:
    """What unfinished work is to become.

    Raises:
        StageError: That is not known.
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
    """Hex sha256 of a JSON-serialisable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(facts: Mapping[str, Any]) -> str:
    """JSON text of some facts with their checksum, which `unseal` reads."""
    return json.dumps({**facts, SEAL: text_digest(facts)}, indent=2)


def unseal(data: bytes) -> dict[str, Any]:
    """The facts of a sealed text.

    Raises:
        ValueError: It differs from what `seal` wrote, be it in one bit.
    """
    facts = json.loads(data)
    if not isinstance(facts, dict):
        raise ValueError("not an object")
    facts.pop(SEAL, None)
    if seal(facts).encode() != data:
        raise ValueError("it does not fit its checksum")
    return facts
