"""Faster start and end of processes."""

import gc
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType


def has_gpu() -> bool:
    """Return True if this machine has an NVIDIA GPU."""
    return Path("/dev/nvidia0").exists()


def let_threads_sleep() -> None:
    """Let PyTorch's threads, of a process that has not imported it yet, sleep soon when they wait for one another.

    Where a core is shared with another process, the others spin until it comes back: libgomp gives up after 300,000
    looks, and two threads on one core were 40 times slower than one. With 1000, its own choice where it knows of too
    few cores, they were 1.3 times slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def shield_imports() -> None:
    """Set what must be set before PyTorch and DeepSpeed are imported.

    Waiting threads sleep, and DeepSpeed neither looks for GPUs where there are none nor imports MLflow for a tuner that
    nobody uses.
    """
    let_threads_sleep()
    if not has_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
    sys.modules["mlflow"] = None  # type: ignore[assignment]


def load(module: str) -> ModuleType:
    """Import a module and all it needs, hidden from the garbage collector.

    The imported objects are many, and none is garbage before the process ends. Scanning them again and again, and once
    more at the end, takes a good part of the time that PyTorch and its like need to start.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.enable()
        gc.freeze()
