"""What a run takes of the machine's cores, and what becomes of threads that have to share one."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from joblib import cpu_count

from minillm.config import Runtime
from tasks.running import cores
from tasks.running.cores import cpu_share, free_cores

SPIN = "while True: pass"
TIMED = """
import os, time
from minillm.worker.startup import let_threads_sleep
let_threads_sleep()
import torch
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # after libgomp has counted the cores
left, right = torch.randn(64, 256), torch.randn(256, 256)
def seconds(threads):
    torch.set_num_threads(threads)
    for _ in range(10):
        torch.softmax(left @ right, -1)
    began = time.perf_counter()
    for _ in range(300):
        torch.softmax(left @ right, -1)
    return time.perf_counter() - began
print(min(seconds(2) / seconds(1) for _ in range(3)))
"""


@pytest.mark.skipif(cpu_count() < 2, reason="libgomp knows by itself that one core is too few for two threads")
def test_threads_that_share_a_core_slow_down_in_proportion():
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }
    ran = subprocess.run([sys.executable, "-c", TIMED], env=environment, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 8, "40 and more with spinning threads"


@pytest.mark.parametrize(
    ("free", "given", "flow_runs", "stages", "threads"),
    [
        (1, {}, 1, 1, 1),
        (2, {}, 1, 2, 1),
        (16, {}, 1, 2, 8),
        (16, {}, 4, 2, 2),  # of a study that has four runs under way
        (16, {"parallel_stages": 4}, 1, 4, 4),
        (16, {"processes": 8}, 1, 1, 2),
        (16, {"threads": 3}, 1, 2, 3),
    ],
)
def test_free_cores_are_divided(
    monkeypatch: pytest.MonkeyPatch, free: int, given: dict[str, int], flow_runs: int, stages: int, threads: int
):
    monkeypatch.setattr(cores, "free_cores", lambda: free)
    monkeypatch.setattr(cores, "cpu_count", lambda: 16)
    monkeypatch.setattr(cores, "has_gpu", lambda: False)
    share = cpu_share(Runtime.model_validate(given), flow_runs)
    assert (share.stages, share.threads) == (stages, threads)
    assert share.words.startswith(f"{free} of 16 cores are free: {stages} stage")


def test_more_threads_than_cores_are_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "free_cores", lambda: 2)
    monkeypatch.setattr(cores, "cpu_count", lambda: 2)
    said = cpu_share(Runtime(parallel_stages=2, threads=2)).words
    assert said.endswith("4 threads in all will take turns (see runtime.parallel_stages and runtime.threads)")


def test_a_run_that_leaves_nothing_open_does_not_watch_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(cores, "free_cores")
    assert cpu_share(Runtime(parallel_stages=1, threads=1)).words == "as configured: 1 stage at once, 1 thread each"


def test_cores_that_others_hold_are_not_free():
    free_cores.cache_clear()
    # The shell leaves at once, so what it has started are not children of this process.
    shell = "; ".join(f"{sys.executable} -c '{SPIN}' > /dev/null & echo $!" for _ in range(psutil.cpu_count() or 1))
    neighbours = subprocess.check_output(["/bin/sh", "-c", shell], text=True).split()
    try:
        assert free_cores() == 1
    finally:
        for number in neighbours:
            psutil.Process(int(number)).kill()
        free_cores.cache_clear()


def test_what_children_use_counts_as_ours():
    before = cores._seconds_used()
    with subprocess.Popen([sys.executable, "-c", SPIN]) as child:
        try:
            while sum(psutil.Process(child.pid).cpu_times()[:2]) < 0.2:
                time.sleep(0.01)
            assert round(cores._seconds_used() - before, 2) >= 0.2  # both are counted in hundredths
        finally:
            child.kill()
