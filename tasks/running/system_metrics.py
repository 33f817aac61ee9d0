"""System metrics of a running worker: its use of CPU, memory and GPU, sampled by MLflow's own monitors.

MLflow's SystemMetricsMonitor (3.17.2) would not do. Its thread ends for good at the first request that fails: 5 s after
the server went away, and all later points were lost, even those after its return. It also knows the machine but not the
worker. Here, samples are appended to a file and reach MLflow through the outbox, as the worker's own points do, so none
is lost and none comes twice.
"""

import contextlib
import itertools
import logging
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil

from minillm.store.artifacts import WORKER_MEMORY
from minillm.worker.progress import append_line, read_lines
from tasks.environment.settings import set_mlflow_defaults

FIRST_SECONDS = 1.0
EVERY_SECONDS = 10.0
"""Seconds between samples, as in MLflow, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is set."""
LOGGER = logging.getLogger("prefect.system_metrics")


class SystemMetrics:
    """Sampler of one attempt at a stage, in the background until it ends.

    Figures of the whole machine have MLflow's names (`system/cpu_utilization_percentage`, …). Those of the worker and
    its processes are named `system/worker_…`.
    """

    def __init__(self, process: int, path: Path) -> None:
        """Prepare to sample.

        Args:
            process: Id of the worker, or of the launcher of several.
            path: File to append lines to, in the form of metrics.jsonl. The step is the number of the sample, counted
                over all attempts.
        """
        self._process, self._path = process, path
        self._known: dict[psutil.Process, psutil.Process] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"system metrics of {process}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:  # no line is added once this returns, even if the thread is still busy
            self._ended.set()

    def _follow(self) -> None:
        try:
            monitors, every = _monitors()
            earlier = read_lines(self._path)[0] if self._path.exists() else []
            step = max((line.step for line in earlier), default=0)
            self._sample(monitors)  # the use of a CPU is known from the second sample on
            for pause in itertools.chain([min(FIRST_SECONDS, every)], itertools.repeat(every)):
                if self._ended.wait(pause):
                    return
                step += 1
                line = {"time": time.time(), "step": step, "metrics": self._sample(monitors)}
                with self._lock:
                    if not self._ended.is_set():
                        append_line(self._path, line)
        except Exception as error:  # a stage never fails for lack of samples
            LOGGER.warning("no more system metrics of this stage: %s", error)

    def _sample(self, monitors: list[Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values | self._worker_use()

    def _worker_use(self) -> dict[str, float]:
        cpu, memory = 0.0, 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = psutil.Process(self._process)
            for process in (worker, *worker.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    known = self._known.setdefault(process, process)  # psutil counts from the last call
                    cpu += known.cpu_percent()
                    memory += known.memory_info().rss / 1e6
        share = cpu / (psutil.cpu_count() or 1)  # of all CPUs, as MLflow's figure for the machine
        return {"system/worker_cpu_utilization_percentage": share, WORKER_MEMORY: memory}


def _monitors() -> tuple[list[Any], float]:
    """Return MLflow's monitors, with one for GPUs if nvidia-ml-py finds any, and the seconds between samples."""
    set_mlflow_defaults()
    from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    monitors: list[Any] = [CPUMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):
        monitors.append(GPUMonitor())
    return monitors, MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or EVERY_SECONDS
