"""Stages at once and threads of each, from the cores that this process may use and nothing else holds.

Threads without a core of their own take turns with others: nothing is gained, though little is lost either, since
those that wait sleep (`minillm.worker.startup.let_threads_sleep`).
"""

import contextlib
import functools
from dataclasses import dataclass

import psutil
from joblib import cpu_count

from minillm.config import Runtime
from minillm.config.hosts import read_hosts
from minillm.words import counted
from minillm.worker.startup import has_gpu

STAGES_AT_ONCE = 2
"""Stages at once where the cores allow it: more need memory that only `--plan` can tell."""
SECONDS_WATCHED = 0.5


@dataclass(frozen=True)
class CpuShare:
    """What a flow run takes of this machine's cores."""

    stages: int
    """Most stages at once."""
    threads: int
    """Threads of each process of a stage."""
    words: str
    """The choice, and what it comes from."""


def cpu_share(runtime: Runtime, flow_runs: int = 1) -> CpuShare:
    """Choose stages at once and threads where `runtime` leaves them open.

    Args:
        runtime: Settings of the flow run.
        flow_runs: Flow runs under way at once that share the cores.
    """
    usable = cpu_count()
    if runtime.parallel_stages is not None and runtime.threads is not None:  # nothing to watch the machine for
        free, source = usable, "as configured"
    else:
        free = free_cores()
        source = f"{free} of {usable} cores are free"
    processes = max(read_hosts(runtime).values()) if runtime.hostfile else runtime.processes
    alone = has_gpu() or processes > 1  # the first stage has all of the machine
    stages = runtime.parallel_stages or (1 if alone else max(1, min(STAGES_AT_ONCE, free // flow_runs)))
    at_once = flow_runs * stages * processes
    threads = runtime.threads or max(1, free // at_once)
    words = f"{source}: {counted(stages, 'stage')} at once, {counted(threads, 'thread')} each"
    if (wanted := at_once * threads) > usable:
        words += f"; {wanted} threads in all will take turns (see runtime.parallel_stages and runtime.threads)"
    return CpuShare(stages, threads, words)


@functools.cache
def free_cores() -> int:
    """Return how many of the cores that this process may use are not held by others, at least 1.

    The first call watches the machine for half a second. What this process and its children use does not count.
    """
    before = _seconds_used()
    busy = psutil.cpu_percent(SECONDS_WATCHED) / 100 * (psutil.cpu_count() or 1)  # cores
    by_others = max(0.0, busy - (_seconds_used() - before) / SECONDS_WATCHED)
    return max(1, min(cpu_count(), round((psutil.cpu_count() or 1) - by_others)))


def _seconds_used() -> float:
    """Return seconds of cores that this process and its children have used so far."""
    used = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    return used
