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


def shield_imports() -> None:
    """Keep DeepSpeed from looking for GPUs where there are none, and from importing MLflow for a tuner nobody uses."""
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
