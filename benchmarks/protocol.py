"""How the benchmark talks to a contender: a process that does one step of work per line and says how long it took.

Contenders may run in another environment (TRL's), so this imports nothing but the standard library.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]


def serve(make_step: Callable[[dict[str, Any]], Callable[[], dict[str, float]]]) -> None:
    """Run a contender: settings as JSON in the first argument, then one step per line of standard input.

    Args:
        make_step: From settings to the step; what a step returns is reported beside its time.
    """
    answers = os.fdopen(int(sys.argv[2]), "w")  # a pipe of its own: libraries print to standard output
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
    """A contender's process."""

    def __init__(self, module: str, settings: dict[str, Any], python: Path | str = sys.executable) -> None:
        """Start it and wait until it is ready.

        Args:
            module: Of the package benchmarks.contenders.
            settings: What it is asked to do.
            python: Interpreter of its environment.

        Raises:
            RuntimeError: It ended instead of getting ready.
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
        self._answers = os.fdopen(answers)
        self._read()

    def step(self) -> dict[str, float]:
        """One step: its seconds, the process's peak memory so far and what else the contender reports."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    """Steps of each contender in turn, so that a disturbance of the machine meets all of them."""
    for contender in contenders:
        for _ in range(warm_up):
            contender.step()
    rounds = [[contender.step() for contender in contenders] for _ in range(steps)]
    return [list(column) for column in zip(*rounds, strict=True)]
