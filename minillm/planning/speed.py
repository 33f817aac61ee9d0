"""Stage `speed`: how long everything that repeats takes on this machine, within the seconds that it is given."""

import importlib
import json
import time

import psutil

from minillm.durable import write_atomically
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Speed

SAID = "measuring: "
"""Begins the lines that a plan shows while it measures."""


def run(job: Job[Speed]) -> Summary:
    """Write speed.json: what `time_everything` measures, and how long a worker takes to start."""
    settings = job.settings
    # Imports are part of a worker's start: all of them import PyTorch and transformers, those that train the engine.
    importlib.import_module("minillm.models.causal_lm")
    starts = {"start_seconds": _seconds_since_start()}
    timing = importlib.import_module("minillm.planning.timing")
    starts["training_start_seconds"] = _seconds_since_start()
    facts = timing.time_everything(job, settings, settings.seconds - _seconds_since_start())
    write_atomically(job.output / "speed.json", json.dumps({**starts, **facts}, indent=2))
    return {**starts}


def _seconds_since_start() -> float:
    """Age of this process."""
    return time.time() - psutil.Process().create_time()
