"""Supervision of a stage's worker: it is started and heard to its end, and its failure is explained.

Threads of Prefect tasks cannot be interrupted, but process groups can. A timeout, a cancelled flow and the death of the
flow's own process all end the group: first by SIGTERM (checkpoint, then leave), after a grace period by SIGKILL.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import minillm
from minillm.config import Runtime
from minillm.durable import write_atomically
from minillm.errors import BAD_INPUT, FAILED, StageError, error_words
from minillm.stages.base import Job
from minillm.store.artifacts import METRICS, SYSTEM_METRICS
from minillm.worker.startup import has_gpu
from tasks.running.forking import ForkedWorker, fork_worker
from tasks.running.process_group import Group, piped, watched
from tasks.running.system_metrics import SystemMetrics

TICK_SECONDS = 0.25
LAST_LINES = 30
LOST_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
"""Signs in a process's error that another one of its group has failed."""


class WorkerError(Exception):
    """The worker died or failed; another attempt continues from its last checkpoint."""

    def __init__(self, cause: str, last_lines: Sequence[str] = ()) -> None:
        """Keep the cause and make the message.

        Args:
            cause: Cause in one line.
            last_lines: Last lines of the worker's log.
        """
        self.cause = cause
        super().__init__("\n".join([f"{cause}; its last lines:", *last_lines] if last_lines else [cause]))

    def __repr__(self) -> str:
        """Return the cause alone."""
        return f"{type(self).__name__}: {self.cause}"


class WorkerStoppedError(Exception):
    """The worker was stopped on purpose, by a cancelled flow or a timeout; it is not started again."""


def run_worker(job: Job, log: Callable[[str], None], stop: threading.Event, sampled: bool = False) -> None:
    """Run one stage to its end.

    Args:
        job: The stage, its folders, and its number of processes, threads and timeout.
        log: Function that gets each line while the worker runs.
        stop: Event that ends the group.
        sampled: Whether system metrics are appended to the output while the worker runs.

    Raises:
        StageError: The worker refused its input.
        WorkerStoppedError: The worker was ended by `stop` or the timeout.
        WorkerError: The worker failed, died or fell silent. The message has its last lines.
    """
    runtime, spec = job.runtime, job.work / "job.json"
    write_atomically(spec, job.model_dump_json(indent=2))
    refusal, metrics = job.work / "error.txt", job.output / METRICS
    refusal.unlink(missing_ok=True)
    last: deque[str] = deque(maxlen=LAST_LINES)
    words = ""
    with Group(_start(spec, runtime)) as group, contextlib.ExitStack() as sampling:
        if sampled:
            sampling.enter_context(SystemMetrics(group.process.pid, job.output / SYSTEM_METRICS))
        deadline = time.monotonic() + runtime.timeout_hours * 3600
        reason = None
        silent, said, written = False, time.monotonic(), 0
        while (line := group.next_line(TICK_SECONDS)) is not None:
            if line:
                last.append(line)
                words = _last_words(line, words)
                log(line)
            if reason is None and (stop.is_set() or time.monotonic() > deadline):
                reason = "the flow was cancelled" if stop.is_set() else f"runtime.timeout_hours {runtime.timeout_hours}"
                log(f"stopping: {reason}")
                group.terminate()
            size = metrics.stat().st_size if metrics.exists() else 0
            if line or size != written:
                said, written = time.monotonic(), size
            if time.monotonic() - said > 60 * runtime.silent_minutes and not silent:
                silent = True
                group.kill()
    if reason is not None:
        raise WorkerStoppedError(f"stopped: {reason}; it continues from its last checkpoint when started again")
    if silent:
        raise WorkerError(
            f"the worker said and wrote nothing for {runtime.silent_minutes:g} minutes (runtime.silent_minutes) and "
            "was killed; another attempt continues from its last checkpoint"
        )
    if refusal.exists():
        raise StageError(refusal.read_text(encoding="utf-8"))
    if group.status == BAD_INPUT and last:  # and no room on the disk for its message
        raise StageError(last[-1].removeprefix("ERROR "))
    if group.status != 0:
        raise WorkerError(f"the worker {_cause(group.status, last, words)}", last)


def _start(spec: Path, runtime: Runtime) -> subprocess.Popen[str] | ForkedWorker:
    environment = os.environ | worker_environment(runtime)
    if runtime.hostfile is not None:
        return piped(watched([sys.executable, "-m", "tasks.running.hosts", str(spec)]), environment)
    if runtime.processes == 1 and not has_gpu():  # CUDA does not outlive a fork
        try:
            return fork_worker(spec, environment)
        except (ChildProcessError, ConnectionError) as error:
            raise WorkerError(f"the process that forks workers was killed ({error_words(error)})") from error
    launcher = []
    if runtime.processes > 1:
        rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
        launcher = ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={runtime.processes}"]
    return piped(watched([sys.executable, *launcher, "-m", "minillm.worker", str(spec)]), environment)


def worker_environment(runtime: Runtime) -> dict[str, str]:
    """Return the environment variables of a worker, besides those of this process."""
    root = str(Path(minillm.__file__).parent.parent)
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # whatever the locale, for other libraries too
        "DS_BUILD_OPS": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DELAY": "30",  # other libraries' bars become a line of the log every half minute
        "TQDM_MININTERVAL": "30",
        "TQDM_MAXINTERVAL": "30",
    }
    if runtime.threads is not None:
        environment["OMP_NUM_THREADS"] = str(runtime.threads)
    if runtime.processes == 1:
        environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return environment


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _last_words(line: str, known: str) -> str:
    """Return the worker's own words about what ended it, given those known before this line."""
    tells = line.startswith(FAILED) and (not known or LOST_PEER.search(known) is not None)
    return line.removeprefix(FAILED) if tells else known


def _cause(status: int, last: deque[str], words: str) -> str:
    """Return what ended the worker. A launcher of several processes reports their exit codes in its last lines.

    Args:
        status: Exit status of the worker or its launcher.
        last: Last lines of the log.
        words: The worker's own words about it, if it had any.
    """
    reported = [int(found) for found in re.findall(r"exitcode\s*:\s*-(\d+)", "\n".join(last))]
    # When one process has failed, the launcher ends the others by SIGTERM.
    first = next((number for number in reported if number != signal.SIGTERM), None if words else signal.SIGTERM)
    number = -status if status < 0 else first if reported else None
    if number is None:
        return f"failed with exit status {status}" + f": {words}" * bool(words)
    name = signal.Signals(number).name
    hint = ""
    if name == "SIGKILL":
        hint = (
            " (often the system is out of memory: lower runtime.micro_batch_size or micro_batch_tokens, "
            "runtime.generation_batch_size or runtime.parallel_stages)"
        )
    return f"was killed by {name}{hint}"
