"""`make soak`: many simulated nights with real servers and a worker, changing data, and a fault in most of them.

`python -m tests.soak --help` says how to run it.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from humanize import naturalsize
from mlflow import MlflowClient
from tabulate import tabulate

from tests.chaos import Outcome, inspect_tracking, write_disturbable
from tests.conftest import ROOT
from tests.serving import ENDS, Served, ended, retry, serve, start, state
from tests.waiting import wait_for

FAULTS: Mapping[str, tuple[str, ...]] = {
    "nothing": (),
    "a worker killed": ("minillm.worker.template",),
    "the flow killed": ("prefect.engine",),
    "Prefect's server killed": ("prefect_app",),
    "MLflow killed": ("mlflow_app",),
    "everything killed": ("",),
}
"""Faults of a night, each with words by which the commands of its victims are recognised."""
SERVERS_FALL = ("Prefect's server killed", "MLflow killed", "everything killed")
NIGHT_SECONDS = 900.0
SERVERS = {"Prefect": "prefect_app", "MLflow": "mlflow_app", "worker": "prefect worker start"}
KEPT_NIGHTS = 3
RETRIES = 5


@dataclass
class Night:
    """One simulated night."""

    fault: str
    seconds: float
    stages: int
    """Number of stages computed, not found in the store."""
    retries: int
    held: dict[str, int]
    """Memory of each server after the night, in bytes."""
    store: int
    """Size of the store after the night, in bytes."""


@dataclass
class Soak:
    """All nights so far, and the problems found."""

    folder: Path
    draw: random.Random
    nights: list[Night] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    """Faults of the coming nights."""
    points: int = 0

    def run(self, hours: float) -> None:
        """Run nights until the hours are over."""
        write_disturbable(self.folder, ("sft", "minillm"), steps=20)
        served = serve(self.folder)
        until = time.monotonic() + 3600 * hours
        try:
            while time.monotonic() < until:
                served = self.night(served)
                last = self.nights[-1]
                print(f"night {len(self.nights)}: {last.fault}, {last.seconds:.0f} s, {last.stages} stages", flush=True)
        finally:
            served.process.send_signal(signal.SIGTERM)
            served.process.wait(90)
        if left := [command for command in served.family() if "multiprocessing" not in command]:
            self.problems.append(f"left behind: {left}")

    def night(self, served: Served) -> Served:
        """Run one night: maybe change the data, run, disturb, and check that nothing is missing."""
        if self.draw.random() < 0.5:
            self._add_row()
        if not self.planned:  # every fault comes equally often
            self.planned = self.draw.sample(list(FAULTS), len(FAULTS))
        fault, began, retries = self.planned.pop(), time.monotonic(), 0
        before = {path.name for path in self.folder.glob("store/artifacts/*")}
        with served.client() as client:
            run = start(client, served, f"seed={self.draw.choice([1, 2])}").id
            wait_for(lambda: served.working() or state(client, run) in ENDS)
        time.sleep(self.draw.uniform(0, 10))
        served = self._disturb(served, fault)
        with served.client() as client:
            while ended(client, run, NIGHT_SECONDS) != "Completed" and retries < RETRIES:
                retries += 1
                retry(served, run)
            if state(client, run) != "Completed":
                self.problems.append(f"night {len(self.nights) + 1} ended {state(client, run)}")
        self._look(len(self.nights) + 1)
        stages = len({path.name for path in self.folder.glob("store/artifacts/*")} - before)
        seconds = time.monotonic() - began
        if len(self.nights) % KEPT_NIGHTS == KEPT_NIGHTS - 1:
            self._clean()
        self.nights.append(Night(fault, seconds, stages, retries, self._held(served), self._bytes()))
        return served

    def _disturb(self, served: Served, fault: str) -> Served:
        for process in served.processes():
            with contextlib.suppress(psutil.Error):
                if any(words in " ".join(process.cmdline()) for words in FAULTS[fault]):
                    process.kill()
        if fault not in SERVERS_FALL:
            return served
        served.process.wait(120)  # it ends itself when one of its processes is gone
        return serve(self.folder)

    def _add_row(self) -> None:
        number = self.draw.randrange(10**6)
        row = {
            "instruction": f"Say {number}: what now?",
            "context": "",
            "response": f"It is {number}.",
            "category": "open_qa",
        }
        with (self.folder / "rows.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _look(self, number: int) -> None:
        """Check that MLflow has every point of every stage's curves once, and that every run has ended."""
        found = Outcome()
        inspect_tracking(self.folder / "store", found)
        self.points = max(self.points, found.points)
        for what, count in (("lost", found.lost), ("repeated", found.repeated), ("without an end", len(found.running))):
            if count:
                self.problems.append(f"night {number}: {count} {what}")

    def _clean(self) -> None:
        """Delete all but the newest flow runs in MLflow, and what only the deleted ones needed."""
        client = MlflowClient(f"sqlite:///{self.folder / 'store' / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=5000)
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        for run in parents[KEPT_NIGHTS:]:
            client.delete_run(run.info.run_id)
        for action in ("gc", "verify"):
            command = [sys.executable, "-m", "flows.store", "--store", str(self.folder / "store"), action]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                self.problems.append(f"flows.store {action}: {done.stdout}{done.stderr}")

    def _held(self, served: Served) -> dict[str, int]:
        held = dict.fromkeys(SERVERS, 0)
        for process in served.processes():
            with contextlib.suppress(psutil.Error):
                for name, words in SERVERS.items():
                    if words in " ".join(process.cmdline()):
                        held[name] += process.memory_info().rss
        return held

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / "store").rglob("*") if path.is_file())


def main() -> int:
    """Print the table of docs/reliability.md; return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Nights on end, most with a fault.")
    parser.add_argument("--hours", type=float, default=8.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of faults, moments and data (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    soak = Soak(arguments.folder or Path(tempfile.mkdtemp(prefix="soak-")), random.Random(arguments.seed))
    began = time.monotonic()
    soak.run(arguments.hours)
    faults = Counter(night.fault for night in soak.nights)
    first, last = soak.nights[0], soak.nights[-1]
    facts = {
        "hours": f"{(time.monotonic() - began) / 3600:.1f}",
        "nights": len(soak.nights),
        **{f"with {fault}": faults[fault] for fault in FAULTS},
        "retries by hand": sum(night.retries for night in soak.nights),
        "stages computed": sum(night.stages for night in soak.nights),
        "points of curves, at most at once": soak.points,
        **{
            f"memory of {name}": f"{naturalsize(first.held[name])} → {naturalsize(last.held[name])}" for name in SERVERS
        },
        "store": f"{naturalsize(first.store)} → {naturalsize(last.store)}",
        "points lost or repeated, runs without an end, nights that failed, what was left behind": "; ".join(
            soak.problems
        )
        or "none",
    }
    print(tabulate(facts.items(), tablefmt="github"))
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
