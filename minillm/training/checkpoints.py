"""Checkpoints of a training run: everything that the next step depends on, whole or not used at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minillm.artifacts import file_sha256, write_atomically
from minillm.processes import rank

KEPT = 2
RECORD = "checkpoint.json"
"""Written last, so a folder without it is one whose writing was cut off; it has the checksum of every file."""


class Checkpoints:
    """Checkpoints under one folder, `step-…` each.

    Weights, optimizer and schedule are DeepSpeed's own files; random states are kept per process, and what the feed and
    the selection need beside them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)

    def save(self, engine: Any, step: int, feed_state: dict[str, Any], selection: dict[str, Any]) -> None:
        """Write the checkpoint of a step, on every process; older ones but the last go afterwards."""
        folder = self.directory / f"step-{step:08d}"
        engine.save_checkpoint(str(self.directory), tag=folder.name, save_latest=False)
        torch.save(_random_state(), folder / f"random-{rank()}.pt")
        if rank() == 0:
            torch.save(feed_state, folder / "feed.pt")
        dist.barrier()
        if rank() == 0:
            names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD]
            files = {str(path.relative_to(folder)): file_sha256(path) for path in names}
            write_atomically(folder / RECORD, json.dumps({"step": step, "selection": selection, "files": files}))
            for old in sorted(self.directory.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old)

    def load(self, engine: Any) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Bring the engine and the random states back from the newest checkpoint that is whole.

        Returns:
            (step, feed state, selection), or None if there is none.
        """
        chosen = [self._newest_whole() if rank() == 0 else None]
        dist.broadcast_object_list(chosen)
        if chosen[0] is None:
            return None
        folder = self.directory / chosen[0]
        record = json.loads((folder / RECORD).read_text())
        engine.load_checkpoint(str(self.directory), tag=folder.name)
        _restore_random_state(torch.load(folder / f"random-{rank()}.pt", weights_only=True))
        feed_state = torch.load(folder / "feed.pt", weights_only=True)
        return record["step"], feed_state, record["selection"]

    def _newest_whole(self) -> str | None:
        for folder in sorted(self.directory.glob("step-*"), reverse=True):
            if not (folder / RECORD).exists():
                shutil.rmtree(folder)
            elif altered := _altered(folder):
                print(
                    f"checkpoint {folder}: {', '.join(altered)} missing or altered; taking the one before", flush=True
                )
            else:
                return folder.name
        return None


def newest_step(directory: Path) -> int:
    """Step of the newest checkpoint under a folder, 0 without one."""
    records = sorted(directory.glob(f"step-*/{RECORD}"))
    return json.loads(records[-1].read_text())["step"] if records else 0


def _altered(folder: Path) -> list[str]:
    """Names of files that are not as they were written."""
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return [RECORD]
    return [name for name, sha256 in files.items() if not _is(folder / name, sha256)]


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
