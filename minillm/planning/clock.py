"""Seconds that all processes of a group agree on, with all that a device has been given to do."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from minillm.planning.extrapolation import Size
from minillm.worker.processes import device, world_size


def timed(action: Callable[[Size], object]) -> Callable[[Size], float]:
    """Return a function that does the action and returns its seconds on the slowest process."""

    def timed(size: Size) -> float:
        synchronize()
        began = time.perf_counter()
        action(size)
        synchronize()
        return agreed(time.perf_counter() - began)

    return timed


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def agreed(seconds: float) -> float:
    """Return the largest value of all processes, which must decide alike when to stop."""
    if world_size() == 1:
        return seconds
    value = torch.tensor(seconds, dtype=torch.float64, device=device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)
