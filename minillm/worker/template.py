"""A process that has imported what stages need and forks a worker for each job: `python -m minillm.worker.template`.

Importing PyTorch and its like takes a worker some four seconds of a core, more than most stages of a small run take. A
forked worker begins with all of it in memory, shared with the template, and is otherwise a process like any other: a
session, an environment, an exit status and a memory of its own.

Standard input is a socket. A message is JSON, the path of a job's spec and environment variables that this worker alone
gets, with three file descriptors: the worker's standard input, its output, and a pipe that gets its process id at once
and its exit status at its end. Once the socket has ended, the template leaves with its last worker.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from minillm.worker.startup import load, shield_imports

PRELOADED = (
    "minillm.worker.__main__",
    "minillm.training.trainer",
    "minillm.generation.answering",
    "minillm.evaluation.exposure",
    "minillm.preparation.prepare",
    "nltk.stem.porter",  # Rouge-L imports it when it meets the first word
)
MESSAGE_BYTES = 1 << 16
GRACE_SECONDS = 30.0
"""From SIGTERM to SIGKILL."""
WATCHDOG = f"trap '' TERM; read -r _; kill -TERM 0; sleep {GRACE_SECONDS:g}; kill -KILL 0"
"""Shell code that waits for the end of standard input, then ends its process group.

The end comes when the supervising process closes it or dies in whatever way.
"""


def fork_workers(requests: socket.socket) -> str | None:
    """Fork a worker for each message until the socket ends.

    Args:
        requests: Where the messages come from.

    Returns:
        In each worker: the path of its job's spec. In the template, at the end: None.
    """
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waiting: dict[int, int] = {}  # pipe that wants the exit status, by the worker's process id
    sources: list[socket.socket | int] = [requests, ended]
    while requests in sources or waiting:
        ready, _, _ = select.select(sources, [], [])
        if ended in ready:
            os.read(ended, MESSAGE_BYTES)
            for worker in list(waiting):
                _report_end(worker, waiting)
        if requests not in ready:
            continue
        message, received, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 3)
        if not message:  # no more will come
            sources.remove(requests)
            continue
        worker = os.fork()
        if worker == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            for descriptor in (ended, wake, *waiting.values()):
                os.close(descriptor)
            _stand_alone(*received)
            spec, variables = json.loads(message)
            os.environ.update(variables)
            return spec
        waiting[worker] = received.pop()
        for descriptor in received:
            os.close(descriptor)
    return None


def _report_end(worker: int, waiting: dict[int, int]) -> None:
    ended, status = os.waitpid(worker, os.WNOHANG)
    if ended:
        answers = waiting.pop(worker)
        with contextlib.suppress(BrokenPipeError):  # its supervisor is gone
            os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(answers)


def _stand_alone(life: int, output: int, answers: int) -> None:
    """Give a forked process a session, a watchdog and an output of its own, and say its process id."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # the template's have met a file that can seek
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    watchdog = ["/bin/sh", "-c", WATCHDOG]
    subprocess.Popen(watchdog, stdin=life, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.write(answers, b"%d\n" % os.getpid())
    for descriptor in (life, output, answers):
        os.close(descriptor)


def end(status: int) -> NoReturn:
    """End a forked worker as it is: taking its interpreter apart would copy all memory shared with the template."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    shield_imports()
    for module in PRELOADED:
        with contextlib.suppress(Exception):  # the worker meets it again, and reports it
            load(module)
    spec = fork_workers(socket.socket(fileno=os.dup(0)))
    if spec is not None:
        from minillm.worker.__main__ import main

        end(main(spec))
