"""The processes of a worker group and their messages."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes of this worker group for the duration of a stage."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()  # without this the exit status may be 1


def rank() -> int:
    """Return this process's number in the group."""
    return dist.get_rank()


def world_size() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size()


def gather_lists(mine: list[Any]) -> list[Any]:
    """Join the lists of all processes in the order they were dealt out: one entry of each process, then the next.

    Args:
        mine: Values of rows rank, rank + world_size, …, so no process has more than one entry more than another.

    Returns:
        The values of all rows, on every process alike.
    """
    if world_size() == 1:
        return mine  # nothing to pickle
    parts: list[list[Any] | None] = [None] * world_size()
    dist.all_gather_object(parts, mine)
    rows = sum(len(part or []) for part in parts)
    return [(parts[i % len(parts)] or [])[i // len(parts)] for i in range(rows)]


def device() -> torch.device:
    """Return this process's accelerator, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_bytes() -> int:
    """Return the most memory this process has held: the accelerator's or, without one, all, libraries included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # Linux reports kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
