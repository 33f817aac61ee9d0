"""Resolution of sources: data and models of the configuration become local paths with content fingerprints."""

import contextlib
import glob
from dataclasses import dataclass
from pathlib import Path

from minillm.config import Model, Source
from minillm.errors import StageError, first_line
from minillm.files import files_of, require_readable
from minillm.models.model_files import WEIGHTS, require_weights
from minillm.store.artifacts import CLOCKED
from minillm.store.file_versions import Snapshot, known_sha256
from minillm.store.manifest import MANIFEST, read_manifest, text_digest

MODEL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.codes", "*.tiktoken", "tokenizer*", WEIGHTS[0]]
"""Files that transformers reads of a causal language model and its tokenizer; chat templates are .jinja files."""


@dataclass(frozen=True)
class Resolved:
    """A source that is available locally."""

    path: Path
    fingerprint: str
    """Fingerprint of the content: sha256 of local files, or name and commit of a hub repository."""
    snapshot: Snapshot
    """Snapshot from before the fingerprint, so that any later write differs from it."""


def resolve(source: Source | Model, directory: Path) -> Resolved:
    """Find a local source, or fetch a hub repository pinned to a commit. Code in a repository is never fetched.

    Args:
        source: Data, or a model that is not just an `architecture`.
        directory: Folder that a relative path starts from: `data.directory` for data, the working directory for models.

    Raises:
        StageError: The source is missing, unreadable, unreachable or gated, its content does not match `sha256`, or it
            is a model without weights.
    """
    if source.path is not None:
        file = source.file if isinstance(source, Source) else None
        path = directory / source.path / (file or "")
        require_readable(path)
        snapshot = Snapshot.take(path.absolute())
        if isinstance(source, Source):
            _require_content(path, source.sha256)
        resolved = Resolved(path.absolute(), fingerprint(path), snapshot)
    elif source.hub is not None:
        resolved = _from_hub(source, source.hub)
    else:
        raise ValueError("a model given by its architecture has no files to resolve")
    if isinstance(source, Model):
        require_weights(resolved.path)
    return resolved


def _require_content(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    if not path.is_file():
        raise StageError(f"{path} is a directory, and `sha256` is of one file; name it in `file`")
    found = known_sha256(path)
    if found != sha256:
        raise StageError(
            f"{path} has SHA-256 {found}, but the configuration says {sha256}; "
            "fetch the right version, or change `sha256` if this one is meant"
        )


def fingerprint(path: Path) -> str:
    """Digest of a local file, or of the names and contents of a directory's visible files.

    For an artifact of a store, files with clock times are left out: its manifest and its metrics.
    """
    if path.is_file():  # the suffix decides how the content is read
        return f"sha256:{known_sha256(path)}{path.suffix}"
    files = {str(file.relative_to(path)): file for file in files_of(path)}
    with contextlib.suppress(StageError):  # it is no artifact
        read_manifest(path)
        files = {name: file for name, file in files.items() if name not in (MANIFEST, *CLOCKED)}
    return f"sha256:{text_digest({name: known_sha256(file) for name, file in files.items()})}"


def _from_hub(source: Source | Model, name: str) -> Resolved:
    if isinstance(source, Source):
        wanted = glob.escape(source.file) if source.file else None
        folder = _snapshot(name, "dataset", source.revision, [wanted, f"{wanted}/*"] if wanted else None)
        identity = f"hub:datasets/{name}@{folder.name}" + (f"/{source.file}" if source.file else "")
        path = folder / source.file if source.file else folder
        if not path.exists():
            raise StageError(f"dataset {name} on the hub, revision {source.revision}, has no file {source.file}")
        return Resolved(path, identity, Snapshot.take(path, grows=True))
    folder = _snapshot(name, "model", source.revision, MODEL_FILES)
    if not any(folder.glob(WEIGHTS[0])):
        folder = _snapshot(name, "model", source.revision, [*MODEL_FILES, WEIGHTS[1]])
    return Resolved(folder, f"hub:{name}@{folder.name}", Snapshot.take(folder, grows=True))


def _snapshot(name: str, kind: str, revision: str, patterns: list[str] | None) -> Path:
    """Fetch a repository and return its local folder, which is named after the commit."""
    from huggingface_hub import constants, errors, snapshot_download

    thing = f"{kind} {name!r} (revision {revision})"
    try:
        folder = snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=["*.py"]
        )
    except errors.GatedRepoError as error:
        raise StageError(
            f"{thing} is gated: accept its terms on its page at {constants.ENDPOINT}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise StageError(
            f"there is no {thing} at {constants.ENDPOINT}, or it is private: check the name; "
            "for a private one log in with `hf auth login`; for a local copy use `path` instead of `hub`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StageError(f"{thing}: no such branch, tag or commit at {constants.ENDPOINT}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = first_line(error.__cause__ or error)
        raise StageError(
            f"{thing} cannot be fetched from {constants.ENDPOINT} and is not whole in the local cache ({reason}); "
            "remedies: connect; set HF_ENDPOINT to a mirror; copy the cache of a connected machine and set "
            "HF_HUB_OFFLINE=1; or download it there and give its directory as `path`"
        ) from error
    return Path(folder)
