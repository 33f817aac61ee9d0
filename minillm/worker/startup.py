"""Faster start and end of processes."""

import gc
import importlib
from types import ModuleType


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
