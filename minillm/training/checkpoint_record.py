"""Records of checkpoints: where each comes from, and whether all of its files are there."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from minillm.store.file_versions import file_sha256
from minillm.store.manifest import unseal

RECORD = "checkpoint.json"
"""Written last, so a folder without it was not finished."""


class CheckpointRecord(BaseModel):
    """Record of a checkpoint's origin and files."""

    # Pydantic would write null for a loss that is not a number, and no later attempt could read the history.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    step: int
    processes: int
    zero_stage: int
    selection: dict[str, Any]
    """History of the validations, and what the watch for a collapse has seen."""
    files: dict[str, str]
    """sha256 of every file, by its path below the checkpoint's folder."""


def newest_whole(directory: Path) -> str | None:
    """Return the name of the newest undamaged checkpoint, or None; remove unfinished ones."""
    for folder in sorted(directory.glob("step-*"), reverse=True):
        if not (folder / RECORD).exists():
            shutil.rmtree(folder)
        elif altered := _altered(folder):
            print(f"checkpoint {folder}: {', '.join(altered)} missing or altered; taking the one before", flush=True)
        else:
            return folder.name
    return None


def newest_step(directory: Path) -> int:
    """Return the step of the newest checkpoint under a folder, 0 without one."""
    for record in sorted(directory.glob(f"step-*/{RECORD}"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            return read_record(record.parent).step
    return 0


def read_record(folder: Path) -> CheckpointRecord:
    """Read the record of a checkpoint.

    Raises:
        OSError: There is none.
        ValueError: It is damaged.
    """
    return CheckpointRecord.model_validate(unseal((folder / RECORD).read_bytes()))


def _altered(folder: Path) -> list[str]:
    """Return the names of files that are missing or altered."""
    try:
        files = read_record(folder).files
    except (OSError, ValueError):
        return [RECORD]
    return [name for name, sha256 in files.items() if not _is(folder / name, sha256)]


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
