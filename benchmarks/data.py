"""Memory and time of the stages that read data, as the number of rows, a text or one of its lines grows."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.protocol import ROOT
from minillm.config import Runtime
from minillm.stages.base import Job, Stage

MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"status": status, "seconds": time.perf_counter() - start, "peak_gib": usage.ru_maxrss / 2**20}))
"""
"""Program that runs a command from a small process: a process's peak includes that of the one it was forked from."""


def run_stage(stage: Stage, inputs: Mapping[str, Path], folder: Path) -> dict[str, float]:
    """Run a stage in a worker process, as the pipeline does; return its seconds and peak memory.

    Raises:
        RuntimeError: If the stage failed; the message has the end of its log.
    """
    (folder / "output").mkdir(parents=True)
    runtime = Runtime(threads=1)
    job = Job(
        kind=stage.kind, settings=stage, inputs=dict(inputs), output=folder / "output", work=folder, runtime=runtime
    )
    (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "minillm.worker", str(folder / "job.json")]
    environment = {**os.environ, "DS_BUILD_OPS": "0", "PYTHONPATH": str(ROOT), "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found.pop("status"):
        raise RuntimeError(f"{stage.kind} failed:\n{done.stderr[-3000:]}")
    return found


SENTENCE = "The quick brown fox number {} jumps over the lazy dog, and {} others look on. "
SIZES = {"filter": [20_000, 200_000], "pack": [32, 1024], "line": [5, 50]}
"""Sizes: rows of 300 tokens to filter; megabytes of a text of many lines; megabytes of a text on one line."""
TINY = {"filter": [100], "pack": [1], "line": [1]}


def measure(tiny: bool) -> list[dict[str, Any]]:
    """Measure seconds and peak memory of the stages `filter` and `pack` at each size."""
    from minillm.models.tokenizers_bpe import train_bpe

    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_bpe(_sentences(2000), 400).save_pretrained(folder / "tokenizer")
        (folder / "benchmarks").mkdir()
        for kind, sizes in (TINY if tiny else SIZES).items():
            for size in sizes:
                facts = run_stage(*_case(kind, size, folder), folder / f"{kind}-{size}")
                found.append({"kind": kind, "size": size, **facts})
                print(f"data, {kind} {size}: {facts['peak_gib']:.2f} GiB, {facts['seconds']:.0f} s", flush=True)
    return found


def _case(kind: str, size: int, folder: Path) -> tuple[Any, dict[str, Path]]:
    from minillm.config import Template
    from minillm.stages.reading import Filter, Pack

    inputs = {"tokenizer": folder / "tokenizer"}
    if kind == "filter":
        lengths = {"max_prompt_tokens": 256, "max_tokens": 512, "max_malformed_share": 0.0}
        stage = Filter(template=Template(), **lengths, validation_size=size // 10, test_size=size // 10, seed=1)
        rows = folder / f"{size}.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for number, text in enumerate(_sentences(size)):
                row = {"instruction": text, "response": text * 5, "category": f"c{number % 8}"}
                file.write(json.dumps(row) + "\n")
        return stage, {**inputs, "instructions": rows, "benchmarks": folder / "benchmarks"}
    text = folder / f"{kind}-{size}.txt"
    with text.open("w", encoding="utf-8") as file:
        for number, sentence in enumerate(_sentences(size * 2**20 // 80)):
            file.write(sentence)
            file.write("\n" if kind == "pack" and number % 10 == 9 else "")
    return Pack(block_tokens=512), {**inputs, "plain_text": text}


def _sentences(count: int) -> Iterator[str]:
    return (SENTENCE.format(number, number * number % 9973) for number in range(count))
