"""Stage speed: how long everything that repeats takes on this machine, from a few repetitions of each.

Weights that are not trained yet are random, and never end a response: every response gets the mean length of the
training data.
"""

import importlib
import json
import time

import psutil

from minillm.durable import write_atomically
from minillm.stages import Job, Speed, Summary


def run(job: Job[Speed]) -> Summary:
    """Write speed.json: what `time_everything` measures, and how long a worker takes to start."""
    settings = job.settings
    # What other workers import is part of their start: PyTorch and transformers all, the engine those that train.
    importlib.import_module("minillm.models.causal_lm")
    starts = {"start_seconds": _seconds_since_start()}
    timing = importlib.import_module("minillm.planning.timing")
    starts["training_start_seconds"] = _seconds_since_start()
    facts = timing.time_everything(job, settings)
    write_atomically(job.output / "speed.json", json.dumps({**starts, **facts}, indent=2))
    return {**starts}


def _seconds_since_start() -> float:
    """Of this process."""
    return time.time() - psutil.Process().create_time()
