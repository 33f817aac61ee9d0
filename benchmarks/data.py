"""Memory and time of the stages that read data, as rows, a text or one line of it grow."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.protocol import ROOT

MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"status": status, "seconds": time.perf_counter() - start, "peak_gib": usage.ru_maxrss / 2**20}))
"""
"""Run a command from a small process: the peak of a process counts what it was forked from."""


def run_stage(stage: Any, inputs: Mapping[str, Path], folder: Path) -> dict[str, float]:
    """Run a stage in a worker process, as the pipeline does: its seconds and peak memory.

    Raises:
        RuntimeError: It failed; with the end of its log.
    """
    (folder / "output").mkdir(parents=True)
    job = {
        "kind": stage.kind,
        "settings": stage.model_dump(mode="json"),
        "inputs": {name: str(path) for name, path in inputs.items()},
        "output": str(folder / "output"),
        "work": str(folder),
        "runtime": {"threads": 1},
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "minillm.worker", str(folder / "job.json")]
    environment = {**os.environ, "DS_BUILD_OPS": "0", "PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found.pop("status"):
        raise RuntimeError(f"{stage.kind} failed:\n{done.stderr[-3000:]}")
    return found
