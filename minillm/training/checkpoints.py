"""Checkpoints of a training run: everything that the next step depends on, complete or not there at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minillm.artifacts import write_atomically
from minillm.processes import rank

KEPT = 2


class Checkpoints:
    """Checkpoints under one folder; `latest.json` names the newest complete one.

    Weights, optimizer and schedule are DeepSpeed's own files; random states are kept per process, and what the feed and
    the selection need beside them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)

    def save(self, engine: Any, step: int, feed_state: dict[str, Any], selection: dict[str, Any]) -> None:
        """Write the checkpoint of a step, on every process; older ones but the last go afterwards."""
        tag = f"step-{step:08d}"
        engine.save_checkpoint(str(self.directory), tag=tag, save_latest=False)
        torch.save(_random_state(), self.directory / tag / f"random-{rank()}.pt")
        if rank() == 0:
            torch.save(feed_state, self.directory / tag / "feed.pt")
        dist.barrier()
        if rank() == 0:
            write_atomically(
                self.directory / "latest.json", json.dumps({"tag": tag, "step": step, "selection": selection})
            )
            for old in sorted(self.directory.glob("step-*"))[:-KEPT]:
                shutil.rmtree(old)

    def load(self, engine: Any) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Bring the engine and the random states back; (step, feed state, selection), or None if there is nothing."""
        latest = self.directory / "latest.json"
        if not latest.exists():
            return None
        record = json.loads(latest.read_text())
        folder = self.directory / record["tag"]
        engine.load_checkpoint(str(self.directory), tag=record["tag"])
        _restore_random_state(torch.load(folder / f"random-{rank()}.pt", weights_only=True))
        feed_state = torch.load(folder / "feed.pt", weights_only=True)
        return record["step"], feed_state, record["selection"]


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _restore_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
