"""`make chaos`: kill an experiment's processes again and again; it must end with the weights of an undisturbed one.

`python -m tests.chaos --help` says how to run it.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType
from tabulate import tabulate

from minillm.store.artifacts import Store
from minillm.store.file_versions import file_sha256
from tasks.tracking.tags import CACHED_TAG, KEY_TAG
from tests.small import write_short_experiment
from tests.workers import is_worker

ROOT = Path(__file__).parents[1]
WAIT_SECONDS = 30.0
"""Longest wait for the moment that was drawn; after it, the kill comes anyway."""
LOG = "log.txt"


def training(store: Path) -> bool:
    return any(path.stat().st_size for path in store.glob("work/train-*/output/metrics.jsonl"))


def checkpointing(store: Path) -> bool:
    folders = store.glob("work/train-*/checkpoints/step-*")
    return any(not (folder / "checkpoint.json").exists() for folder in folders)


def generating(store: Path) -> bool:
    return any(store.glob("work/generate-*/output/metrics.jsonl"))


def completing(store: Path) -> bool:
    return any(store.glob("work/*/output/manifest.json*"))


MOMENTS: dict[str, Callable[[Path], bool] | None] = {
    "at any time": None,
    "training": training,
    "checkpointing": checkpointing,
    "generating": generating,
    "completing an artifact": completing,
}
VICTIMS = ("a worker", "the flow", "everything at once")


@dataclass
class Outcome:
    """Result of a disturbed run, compared with an undisturbed one."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of kills by moment and victim."""
    starts: int = 0
    """Number of times the flow was started."""
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    different: list[str] = field(default_factory=list)
    """Models and tables that differ from those of the undisturbed run."""
    running: list[str] = field(default_factory=list)
    """Tracked runs that never ended."""
    points: int = 0
    """Number of points in MLflow, over all curves."""
    lost: int = 0
    repeated: int = 0


def write_disturbable(folder: Path, methods: tuple[str, ...], steps: int) -> Path:
    """Write the short experiment with checkpoints and retries."""
    path = write_short_experiment(folder, methods, steps)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["runtime"] |= {"checkpoint_every": 5, "retries": 3}
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def start(config: Path, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the main flow with its own folder for Prefect and its log, by which its processes are recognised."""
    home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("PREFECT_API_URL", None)
    log = (home / LOG).open("ab")
    command = [sys.executable, "-m", "flows.distill", str(config), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def family(home: Path) -> list[psutil.Process]:
    """Return every process of a run: flow, workers, watchdogs and the temporary server."""
    found = []
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("PREFECT_HOME") == str(home):
            found.append(process)
    return found


def kill(victim: str, home: Path, flow: subprocess.Popen[bytes], draw: random.Random) -> bool:
    """Send SIGKILL to the victim; return False if there is none at the moment."""
    living = family(home)
    chosen = {
        "a worker": lambda: draw.sample([p for p in living if is_worker(p)], k=min(1, sum(map(is_worker, living)))),
        "the flow": lambda: [p for p in living if p.pid == flow.pid],
        "everything at once": lambda: living,
    }[victim]()
    for process in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return bool(chosen)


def run_undisturbed(config: Path) -> float:
    started, home = time.monotonic(), config.parent / "prefect"
    if start(config, home).wait() != 0:
        raise SystemExit((home / LOG).read_text(encoding="utf-8")[-5000:])
    return time.monotonic() - started


def run_disturbed(config: Path, kills: int, draw: random.Random, outcome: Outcome) -> None:
    """Kill, start again if that ended the flow, and let it finish at last."""
    store, home = config.parent / "store", config.parent / "prefect"
    started = time.monotonic()
    flow, outcome.starts = start(config, home), 1
    plan = [(moment, victim) for moment in MOMENTS for victim in VICTIMS]
    order = [pair for _ in range(1 + kills // len(plan)) for pair in draw.sample(plan, len(plan))]
    while sum(outcome.kills.values()) < kills and flow.poll() != 0:
        if flow.poll() is not None:  # a stage ran out of retries
            flow, outcome.starts = start(config, home), outcome.starts + 1
        moment, victim = order[sum(outcome.kills.values())]
        condition, until = MOMENTS[moment], time.monotonic() + WAIT_SECONDS
        time.sleep(draw.uniform(0, 6))
        while condition is not None and not condition(store) and time.monotonic() < until and flow.poll() is None:
            time.sleep(0.001)
        if kill(victim, home, flow, draw):
            outcome.kills[moment, victim] += 1
        if victim != "a worker":
            flow.wait()
            psutil.wait_procs(family(home), timeout=60)  # watchdogs end the workers of a dead flow
            flow, outcome.starts = start(config, home), outcome.starts + 1
    while flow.wait() != 0:
        flow, outcome.starts = start(config, home), outcome.starts + 1
        if outcome.starts > 4 * kills + 4:
            raise SystemExit((home / LOG).read_text(encoding="utf-8")[-5000:])
    outcome.seconds = time.monotonic() - started


def results(store: Path) -> dict[str, str]:
    """Return the digests of the trained weights, by role, and the scores."""
    found = {}
    for path in store.glob("artifacts/*"):
        if path.name.startswith("train-"):
            role = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["settings"]["role"]
            found[f"weights of {role}"] = file_sha256(path / "model" / "model.safetensors")
        if path.name.startswith("score-"):
            table = json.loads((path / "table.json").read_text(encoding="utf-8"))
            found[f"scores of {table['role']}"] = json.dumps(table, sort_keys=True)
    return found


def inspect_tracking(store: Path, outcome: Outcome) -> None:
    """Compare what MLflow has of every stage with what the stage wrote."""
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=5000)
    outcome.running = [str(run.info.run_name) for run in runs if run.info.status == "RUNNING"]
    computed = {
        r.data.tags.get(KEY_TAG): r
        for r in runs
        if r.data.tags.get(CACHED_TAG) == "false" and r.info.status == "FINISHED"
    }
    for path in store.glob("artifacts/train-*"):
        record = computed[json.loads((path / "manifest.json").read_text(encoding="utf-8"))["key"]]
        written: dict[str, set[int]] = {}
        for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            point = json.loads(line)
            for name in point["metrics"]:
                written.setdefault(name, set()).add(point["step"])
        for name, steps in written.items():
            delivered = [point.step for point in client.get_metric_history(record.info.run_id, name)]
            outcome.points += len(delivered)
            outcome.lost += len(steps - set(delivered))
            outcome.repeated += len(delivered) - len(set(delivered))


def chaos(folder: Path, kills: int, seed: int, methods: tuple[str, ...], steps: int) -> Outcome:
    """Run the experiment twice, undisturbed and disturbed, and compare."""
    whole = write_disturbable(folder / "whole", methods, steps)
    killed = write_disturbable(folder / "killed", methods, steps)
    outcome = Outcome(undisturbed_seconds=run_undisturbed(whole))
    run_disturbed(killed, kills, random.Random(seed), outcome)
    expected, found = results(whole.parent / "store"), results(killed.parent / "store")
    outcome.different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    inspect_tracking(Store(killed.parent / "store").root, outcome)
    return outcome


def main() -> int:
    """Print the tables of docs/reliability.md; return 0 if nothing was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Kill an experiment again and again, and compare."
    )
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of moments and victims (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    outcome = chaos(folder, arguments.kills, arguments.seed, ("sft", "minillm"), 60)
    rows = [[moment, *(outcome.kills[moment, victim] for victim in VICTIMS)] for moment in MOMENTS]
    print(tabulate(rows, ["killed while", *VICTIMS], "github"), "\n")
    facts = {
        "kills": sum(outcome.kills.values()),
        "starts of the flow": outcome.starts,
        "models and scores that differ": ", ".join(sorted(outcome.different)) or "none",
        "tracked runs without an end": ", ".join(outcome.running) or "none",
        "points of curves": outcome.points,
        "points lost": outcome.lost,
        "points repeated": outcome.repeated,
        "undisturbed": f"{outcome.undisturbed_seconds:.0f} s",
        "disturbed": f"{outcome.seconds:.0f} s",
    }
    print(tabulate(facts.items(), tablefmt="github"))
    return 1 if outcome.different or outcome.running or outcome.lost or outcome.repeated else 0


if __name__ == "__main__":
    sys.exit(main())
