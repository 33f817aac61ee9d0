"""Entry point of a worker process: `python -m minillm.worker SPEC` runs one stage and exits with its status.

A stage's module has `run(job: Job[…]) -> Summary`, which writes the stage's files under `job.output` and returns flat
names and values for the manifest and the tracked run.
"""

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from minillm.durable import write_atomically
from minillm.errors import BAD_INPUT, FAILED, StageError, error_words
from minillm.redaction import install
from minillm.stages import load_job
from minillm.store.artifacts import disk_full
from minillm.worker.startup import load, shield_imports

NAME = "minillm-worker"


def main(spec: str) -> int:
    """Run the stage. A StageError is reported by its message alone, any other error with a traceback."""
    _name_process()
    install()
    shield_imports()
    job = load_job(Path(spec))
    try:
        stage = load(job.settings.module)
        with _alone(job.work):
            summary = stage.run(job)
    except Exception as error:
        refusal = error if isinstance(error, StageError) else _beyond_the_machine(error, job.work)
        if error is not refusal:
            traceback.print_exception(error)
        if refusal is None:
            sys.stderr.write(f"{FAILED}{error_words(error)}\n")  # at once: other processes write there, too
            return 1
        print(f"ERROR {refusal}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # the disk may be full; the log's last line has the message too
            write_atomically(job.work / "error.txt", str(refusal))
        return BAD_INPUT
    if _rank() == 0:
        write_atomically(job.work / "summary.json", json.dumps(summary))
    return 0


def _name_process() -> None:
    """Show this process as a worker in `top` and its like, on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(NAME, encoding="utf-8")


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keep other workers out of the folder: one whose flow died may still be writing its checkpoint."""
    if _rank() > 0:  # rank 0 holds the lock for its group
        yield
        return
    lock = FileLock(work / "worker.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("the worker of an earlier attempt is still leaving; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _beyond_the_machine(error: Exception, work: Path) -> StageError | None:
    """Return the error to report if memory or disk ran out, which a retry would only repeat; else None."""
    words = f"{type(error).__name__}: {error}"
    if re.search(r"out of memory|can't allocate memory|MemoryError", words, re.IGNORECASE):
        return StageError(
            f"out of memory ({error_words(error)}): lower runtime.micro_batch_size or micro_batch_tokens, "
            "runtime.generation_batch_size or runtime.parallel_stages, or set "
            "training.gradient_checkpointing; `--plan` tells what takes how much. The "
            "same command continues from the last checkpoint"
        )
    return disk_full(error, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
