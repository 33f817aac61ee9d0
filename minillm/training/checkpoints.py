"""Checkpoints of a training run: everything the next step depends on, used complete or not at all."""

import contextlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minillm.durable import make_folder, sync, sync_tree, write_atomically
from minillm.errors import StageError, first_line
from minillm.store.file_versions import file_sha256
from minillm.store.manifest import seal
from minillm.training.checkpoint_record import RECORD, CheckpointRecord, newest_whole, read_record
from minillm.training.unpickling import only_data
from minillm.worker.processes import rank, world_size

KEPT = 2
UNIVERSAL = "universal-"


class Checkpoints:
    """Checkpoints under one folder, `step-…` each.

    Weights, optimizer and schedule are DeepSpeed's own files. Beside them are the random state and the feed's state of
    each process; the record holds what the selection needs.
    """

    def __init__(self, directory: Path) -> None:
        """Choose the newest complete checkpoint, the same on every process."""
        self.directory = directory
        make_folder(self.directory)
        chosen = [newest_whole(directory) if rank() == 0 else None]
        dist.broadcast_object_list(chosen)
        self._newest: str | None = chosen[0]

    @property
    def universal(self) -> bool:
        """True if the newest checkpoint has shards of another number of processes, which must be merged first.

        Without ZeRO there are no shards.
        """
        if self._newest is None:
            return False
        written = read_record(self.directory / self._newest)
        return written.processes != world_size() and written.zero_stage > 0

    def save(self, engine: Any, step: int, feed_state: dict[str, Any], selection: dict[str, Any]) -> None:
        """Write the checkpoint of a step, on every process; once it is on disk, remove all older ones but the last."""
        folder = self.directory / f"step-{step:08d}"
        engine.save_checkpoint(str(self.directory), tag=folder.name, save_latest=False)
        torch.save(_random_state(), folder / f"random-{rank()}.pt")
        torch.save(feed_state, folder / f"feed-{rank()}.pt")
        dist.barrier()
        if rank() == 0:
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD]
            record = CheckpointRecord(
                step=step,
                processes=world_size(),
                zero_stage=engine.zero_optimization_stage(),
                selection=selection,
                files={str(path.relative_to(folder)): file_sha256(path) for path in paths},
            )
            sync_tree(folder)
            write_atomically(folder / RECORD, seal(record.model_dump(mode="json")))
            sync(self.directory)
            for old in (*sorted(self.directory.glob("step-*"))[:-KEPT], *self.directory.glob(f"{UNIVERSAL}*")):
                shutil.rmtree(old)

    def load(self, engine: Any) -> tuple[int, list[dict[str, Any]], dict[str, Any]] | None:
        """Restore the engine and the random states from the chosen checkpoint.

        Args:
            engine: Engine made with `universal` as this object's.

        Returns:
            (step, feed state of each process that saved it, selection), or None if there is none.

        Raises:
            StageError: The checkpoint was written under another ZeRO stage, or holds more than data.
            RuntimeError: DeepSpeed did not find the files that were just checked.
        """
        if self._newest is None:
            return None
        folder = self.directory / self._newest
        record = read_record(folder)
        stage = engine.zero_optimization_stage()
        if record.zero_stage != stage:
            raise StageError(
                f"this run would use ZeRO stage {stage}, but {folder} was written with {record.zero_stage}; set "
                "runtime.zero_stage back until this stage has ended, or remove that folder to begin it again"
            )
        if self.universal and rank() == 0:
            print(f"a checkpoint of {record.processes} processes is put together for {world_size()}", flush=True)
        tag = self._put_together(folder).name if self.universal else folder.name
        try:
            with contextlib.chdir(self.directory), only_data():  # DeepSpeed would take the whole path for a pattern
                found, _ = engine.load_checkpoint(".", tag=tag)
        except pickle.UnpicklingError as error:
            raise StageError(
                f"{folder} holds more than data, which is never run ({first_line(error)}): it is not ours. "
                f"Find out who may write to the store, then remove {self.directory} to begin the stage again"
            ) from error
        if found is None:
            raise RuntimeError(f"DeepSpeed found nothing to load in {self.directory / tag}")
        # With more processes than before, some share a state: it only decides what dropout drops.
        random_state = folder / f"random-{rank() % record.processes}.pt"
        _restore_random_state(torch.load(random_state, weights_only=True))
        # Mapped, so that a process reads only what it takes out of the others' parts.
        parts = [folder / f"feed-{number}.pt" for number in range(record.processes)]
        feed_states = [torch.load(part, weights_only=True, mmap=True) for part in parts]
        return record.step, feed_states, record.selection

    def _put_together(self, folder: Path) -> Path:
        """Return the checkpoint in DeepSpeed's universal form, which any number of processes can load."""
        target = self.directory / f"{UNIVERSAL}{folder.name}"
        if rank() == 0:
            shutil.rmtree(target, ignore_errors=True)
            command = [sys.executable, "-m", "minillm.training.unpickling", str(self.directory)]
            command += ["--input_folder", folder.name, "--output_folder", target.name, "--inject_missing_state"]
            workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
            done = subprocess.run([*command, *workers], capture_output=True, encoding="utf-8", check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{folder} could not be put together:\n{done.stderr[-3000:]}")
        dist.barrier()
        return target


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
