"""Run the cases on our trainer and TRL's, each in its own environment: `python -m benchmarks.conformance --help`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.conformance.page import page
from benchmarks.conformance.suite import TRAINERS
from benchmarks.protocol import ROOT, Contender


def main() -> None:
    """Examine the trainers, one process each, and write conformance.json and conformance.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--only", default="", help="run the trainers whose name contains this")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    options = parser.parse_args()
    chosen = {name: trainer for name, trainer in TRAINERS.items() if options.only in name}
    if not chosen:
        parser.error(f"--only {options.only} is in no trainer's name: {', '.join(TRAINERS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, trainer in chosen.items():
        python = ROOT / f"benchmarks/environments/{trainer.environment}/bin/python" if trainer.environment else None
        if python is not None and not python.exists():
            print(
                f"{name}: left out; `make benchmarks/environments/{trainer.environment}/.complete` makes what it needs"
            )
            continue
        settings = {"trainer": name, "threads": 1}
        with Contender(trainer.module, settings, python or sys.executable) as contender:
            found[name] = contender.step()
        verdicts = [of["verdict"] for of in found[name]["cases"].values()]
        counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        print(f"{name}: {counted}; {found[name]['seconds']:.0f} s", flush=True)
    (options.output / "conformance.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.output / "conformance.md").write_text(page(found), encoding="utf-8")
    print(f"written to {options.output}/conformance.md")


if __name__ == "__main__":
    main()
