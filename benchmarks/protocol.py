"""Protocol between the benchmark and a contender: a process that does one step per line and reports its time.

Contenders may run in another environment (TRL's), so this file imports only the standard library.
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]


def serve(make_step: Callable[[dict[str, Any]], Callable[[], dict[str, float]]]) -> None:
    """Run a contender: read settings as JSON from the first argument, then do a step per line of standard input.

    Args:
        make_step: Maps settings to the step; what a step returns is reported with its time.
    """
    answers = os.fdopen(int(sys.argv[2]), "w")  # a separate pipe, since libraries print to standard output
    idle = _peak_gib()
    step = make_step(json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        before = time.perf_counter()
        facts = step()
        seconds = time.perf_counter() - before
        print(
            json.dumps({"seconds": seconds, "peak_gib": _peak_gib(), "idle_gib": idle, **facts}),
            file=answers,
            flush=True,
        )


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Contender:
    """Process of a contender."""

    def __init__(
        self,
        module: str,
        settings: dict[str, Any],
        python: Path | str = sys.executable,
        seconds: float = threading.TIMEOUT_MAX,
    ) -> None:
        """Start the process and wait until it is ready.

        Args:
            module: Module in the package benchmarks.contenders.
            settings: Settings of the work to do.
            python: Interpreter of the contender's environment.
            seconds: Time after which the process is killed.

        Raises:
            RuntimeError: If the process ended instead of getting ready.
        """
        self.name = module
        threads = {name: str(settings["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        answers, theirs = os.pipe()
        output = None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.contenders.{module}", json.dumps(settings), str(theirs)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[theirs],
            text=True,
            cwd=ROOT,
            env=os.environ
            | threads
            | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        os.close(theirs)
        self._limit = threading.Timer(seconds, self._process.kill)
        self._limit.daemon = True
        self._limit.start()
        self._answers = os.fdopen(answers)
        self._read()

    def step(self) -> dict[str, float]:
        """Do one step; return its seconds, the process's peak memory so far and whatever else the contender reports."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        self._answers.close()

    def _read(self) -> dict[str, float]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(
                f"contender {self.name} ended with status {self._process.wait()}; run again with BENCH_VERBOSE=1"
            )
        return json.loads(line)


def alternate(contenders: Sequence[Contender], steps: int, warm_up: int = 1) -> list[list[dict[str, float]]]:
    """Run the contenders' steps in turn, so that a disturbance of the machine affects all of them."""
    for contender in contenders:
        for _ in range(warm_up):
            contender.step()
    rounds = [[contender.step() for contender in contenders] for _ in range(steps)]
    return [list(column) for column in zip(*rounds, strict=True)]
