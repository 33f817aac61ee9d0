"""Processes that start and end sooner."""

import gc
import importlib
from types import ModuleType


def load(module: str) -> ModuleType:
    """Import a module with all that it needs, out of the garbage collector's sight.

    There is much of it, and none is garbage before the process ends; looking through it again and again, and once more
    at the end, is a good part of what PyTorch and its neighbours take to start.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.enable()
        gc.freeze()
