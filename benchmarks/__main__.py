"""Run the benchmarks and write a table: `make bench`, or `python -m benchmarks --help`."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import data, growth, rouge
from benchmarks.comparisons import STEP, TINY, comparisons, measure, write_lengths
from benchmarks.page import LIBRARIES, line, table, update_line
from benchmarks.protocol import ROOT, Contender, alternate


def main() -> None:
    """Measure, print each result as it arrives, and write results.json and results.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="run the comparisons whose name contains this")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each side (default: 3)")
    parser.add_argument("--prompts", type=int, default=64, help="responses of the generation benchmark (default: 64)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results, left_out = [], []
    with tempfile.TemporaryDirectory() as folder:
        lengths = write_lengths(Path(folder) / "lengths.json", 4 if options.tiny else options.prompts)
        rows = write_lengths(Path(folder) / "rows.json", 4 if options.tiny else 500)
        for comparison in comparisons(lengths, rows, tuple(options.dtypes)):
            if options.only not in comparison.name:
                continue
            result = measure(comparison, options.steps, options.tiny)
            if result is None:
                left_out.append(comparison.name)
                print(f"{comparison.name}: left out, make bench makes the environment of TRL", flush=True)
                continue
            results.append(result)
            print(line(result), flush=True)
    if options.only in rouge.NAME:
        results.append(rouge.measure(pairs=50 if options.tiny else 10_000))
        print(line(results[-1]), flush=True)
    record = {
        "machine": machine(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "results": results,
        "update": [update_rate(dtype, options) for dtype in options.dtypes] if options.only in "update" else [],
        "profile": {dtype: profile(dtype, options) for dtype in options.dtypes} if options.only in "profile" else {},
        "growth": growth.measure(options.tiny) if options.only in "growth" else {},
        "data": data.measure(options.tiny) if options.only in "data" else [],
        "memory": growth.memory(options.tiny) if options.only in "memory" else {},
    }
    if record["growth"]:
        growth.plot(record["growth"], options.output / "growth.svg")
    (options.output / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.output / "results.md").write_text(table(record, left_out), encoding="utf-8")
    print(f"written to {options.output}/results.md")


def update_rate(dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return medians of the update phase's useful operations per second, of the machine's rate, and of their ratio."""
    with Contender("update", {**STEP, **(TINY if options.tiny else {}), "dtype": dtype}) as contender:
        (steps,) = alternate([contender], options.steps)
    medians = {
        name: statistics.median(step[name] for step in steps) for name in ("update_rate", "machine_rate", "share")
    }
    print(update_line(dtype, medians), flush=True)
    return {"dtype": dtype, **medians}


def profile(dtype: str, options: argparse.Namespace) -> dict[str, float]:
    """Return median seconds of one step's parts and operations (see benchmarks/contenders/profile.py)."""
    with Contender("profile", {**STEP, **(TINY if options.tiny else {}), "dtype": dtype}) as contender:
        (steps,) = alternate([contender], options.steps)
    return {name: statistics.median(step.get(name, 0.0) for step in steps) for name in steps[0]}


def machine() -> dict[str, Any]:
    """Describe the machine and the libraries."""
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((x.split(":")[1].strip() for x in described if x.startswith("model name")), platform.processor())
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
