"""Workers forked from a template process, which has imported what they need; see `minillm/worker/template.py`."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

_LOCK = threading.Lock()
_TEMPLATES: list["Template"] = []
"""At most one: stages share it."""


class ForkedWorker:
    """A forked worker, with the part of `subprocess.Popen` that its supervisor uses."""

    def __init__(self, stdin: TextIO, stdout: TextIO, answers: TextIO) -> None:
        """Wait for its process id.

        Args:
            stdin: Its end ends the worker's group.
            stdout: What the worker and its children write.
            answers: Gets the process id, then the exit status.

        Raises:
            ChildProcessError: The template is gone.
        """
        self.stdin, self.stdout, self._answers = stdin, stdout, answers
        self.returncode: int | None = None
        said = answers.readline()
        if not said:
            raise ChildProcessError("it said nothing")
        self.pid = int(said)
        self._answered = select.poll()
        self._answered.register(answers, select.POLLIN | select.POLLHUP)

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self.wait() if self.returncode is None and self._answered.poll(0) else self.returncode

    def wait(self) -> int:
        """Wait for its end and return the exit status, minus the number of the signal that killed it."""
        if self.returncode is None:
            said = self._answers.readline()
            self.returncode = int(said) if said else -signal.SIGKILL  # the template was killed
            self._answers.close()
        return self.returncode


class Template:
    """A template process; it leaves when this process has ended, or another one has taken its place."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._requests, its_end = socket.socketpair()
        with its_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minillm.worker.template"],
                stdin=its_end.fileno(),
                stdout=subprocess.DEVNULL,  # what importing says
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the flow
            )

    def fork(self, spec: Path, **variables: str) -> ForkedWorker:
        """Fork a worker that runs a job; the first one waits until the template has imported all.

        Args:
            spec: File of the job.
            variables: Environment variables that the worker has beside or instead of the template's.
        """
        with contextlib.ExitStack() as theirs:
            ends = [os.pipe() for _ in range(3)]
            (its_stdin, stdin), (stdout, its_stdout), (answers, its_answers) = ends
            for descriptor in (its_stdin, its_stdout, its_answers):
                theirs.callback(os.close, descriptor)
            ours = (
                os.fdopen(stdin, "w", encoding="utf-8"),
                os.fdopen(stdout, encoding="utf-8", errors="replace"),
                os.fdopen(answers, encoding="utf-8"),
            )
            socket.send_fds(
                self._requests, [json.dumps([str(spec), variables]).encode()], [its_stdin, its_stdout, its_answers]
            )
        return ForkedWorker(*ours)

    def end(self) -> None:
        """Let it leave with its last worker."""
        self._requests.close()


def fork_worker(spec: Path, environment: Mapping[str, str], **variables: str) -> ForkedWorker:
    """Fork a worker that runs a job.

    Args:
        spec: File of the job.
        environment: All of its environment variables; libraries read some when they are imported, so each environment
            has a template of its own.
        variables: Those that this worker has beside or instead of them.

    Raises:
        ChildProcessError: The template was killed.
    """
    with _LOCK:
        while _TEMPLATES and (_TEMPLATES[0].process.poll() is not None or _TEMPLATES[0].environment != environment):
            _TEMPLATES.pop().end()
        if not _TEMPLATES:
            _TEMPLATES.append(Template(environment))
        template = _TEMPLATES[0]
    return template.fork(spec, **variables)
