"""Entry point of a worker process: `python -m minillm.worker SPEC` runs one stage and exits with its status.

A stage's module has `run(job: Job) -> dict[str, float | str]`: it writes its files under `job.output` and returns
its summary, flat names and values for the manifest and the tracked run.
"""

import importlib
import json
import os
import sys
from pathlib import Path

from minillm.artifacts import write_atomically
from minillm.errors import StageError
from minillm.stages import STAGES, Job

BAD_INPUT = 3
"""Exit status of a StageError: retrying does not help. Its message stands in the work folder's error.txt."""
STOPPED = 143
"""Exit status after SIGTERM: a checkpoint was written, and the next attempt continues from it."""


def load_job(spec: Path) -> Job:
    """The job that a spec file describes."""
    raw = json.loads(spec.read_text())
    stage = next(stage for stage in STAGES if stage.kind == raw["kind"])
    return Job.model_validate({**raw, "settings": stage.model_validate(raw["settings"])})


def main(spec: str) -> int:
    """Run the stage; a StageError ends in its message alone, anything else in a traceback."""
    job = load_job(Path(spec))
    try:
        summary = importlib.import_module(job.settings.module).run(job)
    except StageError as error:
        print(f"ERROR {error}", file=sys.stderr, flush=True)
        write_atomically(job.work / "error.txt", str(error))
        return BAD_INPUT
    if int(os.environ.get("RANK", "0")) == 0:
        write_atomically(job.work / "summary.json", json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
