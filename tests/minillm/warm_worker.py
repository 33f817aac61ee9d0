"""A process that has imported what workers import, and forks a worker for each job.

Importing takes a worker some four seconds, which is more than most tests' jobs take. What is forked is a process of its
own, with the exit status, the output and the memory of one.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

HEAVY = (
    "minillm.evaluation.downstream.answering",
    "minillm.evaluation.exposure",
    "minillm.evaluation.held_out",
    "minillm.generation.answering",
    "minillm.generation.responding",
    "minillm.training.trainer",
)


class WarmWorker:
    """The process that waits for jobs, one at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        command = [sys.executable, "-m", __name__]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, encoding="utf-8"
        )
        atexit.register(self.process.kill)

    def run(self, spec: Path) -> subprocess.CompletedProcess[str]:
        """Run a spec to its end in the folder that it stands in."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(str(spec))}\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        output, errors = (spec.with_suffix(end).read_text(encoding="utf-8") for end in (".out", ".err"))
        return subprocess.CompletedProcess([str(spec)], status, output, errors)


@functools.cache
def warm_worker() -> WarmWorker:
    """Return the one of this test process, started when first needed."""
    from tests.minillm.jobs import worker_environment

    return WarmWorker(worker_environment())


def serve() -> None:
    """Fork a worker for each spec that is named on standard input, and write its exit status."""
    gc.disable()
    os.environ["DS_ACCELERATOR"] = "cpu"
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # as workers have it
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _work(Path(json.loads(line)))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(f"{status}\n")
        answers.flush()


def _work(spec: Path) -> None:
    status = 1
    try:
        gc.enable()
        os.setsid()
        os.chdir(spec.parent)
        for number, end in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(spec.with_suffix(end), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from minillm.worker.__main__ import main

        status = main(str(spec))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
