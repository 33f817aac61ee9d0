"""Process groups: started with a watchdog, heard, and never left behind."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from minillm.redaction import redacted
from minillm.worker.template import GRACE_SECONDS, WATCHDOG
from tasks.running.forking import ForkedWorker

# The shell becomes the command; the subshell beside it, in the same group, is the watchdog.
WATCHED = f"""
exec 3<&0
({WATCHDOG}) <&3 >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"""


def watched(command: Sequence[str]) -> list[str]:
    """A command beside a watchdog that ends its process group when standard input ends."""
    return ["/bin/sh", "-c", WATCHED, "sh", *command]


def piped(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a session of its own, with pipes to its standard input and from all that it writes."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,
    )


class Group:
    """A process in a session and process group of its own, with the watchdog beside it."""

    def __init__(self, process: subprocess.Popen[str] | ForkedWorker, grace_seconds: float = GRACE_SECONDS) -> None:
        """Take a process that leads its session and whose watchdog waits for the end of its standard input.

        Args:
            process: What `piped` started with a `watched` command, or a forked worker.
            grace_seconds: From SIGTERM to SIGKILL when asked to terminate.
        """
        self.process = process
        self.status = 0
        self._grace_seconds = grace_seconds
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._kill_at = float("inf")

    def __enter__(self) -> "Group":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()  # whoever is left, the watchdog among them
        self.status = self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def next_line(self, timeout: float) -> str | None:
        """The next line of output, "" if none came in time, None when the process has ended and all is read."""
        if time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)
        with contextlib.suppress(queue.Empty):
            return self._lines.get(timeout=timeout)
        if self.process.poll() is None:
            return ""
        self._signal(signal.SIGKILL)  # a child that outlived the worker would hold its output open
        self._reader.join()
        return None if self._lines.empty() else self._lines.get()

    def kill(self) -> None:
        """End the group at once."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the group to leave, and kill it after the grace period."""
        self._kill_at = time.monotonic() + self._grace_seconds
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self._lines.put(redacted(line.rstrip()))
