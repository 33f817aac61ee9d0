"""Worker processes, as tests find them."""

from pathlib import Path

import psutil

from minillm.worker.__main__ import NAME


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process runs a stage; False if it is gone."""
    try:
        return process.name() == NAME
    except psutil.Error:
        return False


def workers_in(work: Path) -> list[psutil.Process]:
    """Return the processes that hold the lock of a stage's working folder."""
    return [process for process in psutil.process_iter() if is_worker(process) and _holds(process, work)]


def _holds(process: psutil.Process, work: Path) -> bool:
    try:
        return str(work.resolve() / "worker.lock") in {file.path for file in process.open_files()}
    except psutil.Error:
        return False
