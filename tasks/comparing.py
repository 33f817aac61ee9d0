"""Tasks that compare tracked runs: find them, read them, write the page, and show it in MLflow and Prefect.

The tasks import everything heavy themselves, so that a flow's process starts without it.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from tabulate import tabulate

from minillm.durable import make_folder, move, sync_tree
from minillm.errors import StageError
from minillm.store.artifacts import Store
from tasks.running.pages import page_key, show_page
from tasks.tracking.connection import tracked_runs
from tasks.tracking.contents import prefect_page
from tasks.tracking.entries import DesiredRun
from tasks.tracking.outbox import Outbox
from tasks.tracking.tags import COMPARED_TAG

if TYPE_CHECKING:
    from minillm.reporting.comparing.runs import Run

LISTED = 10
FOLDER = "comparisons"
"""Folder in the store that has a subfolder for each comparison, by the names of its runs."""


def latest_runs(experiment: str | None, store: str) -> str:
    """Return a table of the latest finished runs, and how to name them."""
    tracked = tracked_runs(store)
    runs = [run for run in tracked.of_flows(experiment) if run.info.status == "FINISHED"]
    if not runs:
        return "no run has finished yet; start one with minillm distill"
    rows = [
        [
            tracked.short_name(run),
            run.info.run_id[:8],
            tracked.experiment(run),
            datetime.fromtimestamp(run.info.start_time / 1000).strftime("%Y-%m-%d %H:%M"),
            ", ".join(f"{method} {value:.1f}" for method, value in _means(run.data.metrics)),
        ]
        for run in runs[:LISTED]
    ]
    table = tabulate(rows, ["run", "id", "experiment", "started", "mean Rouge-L"], "github", disable_numparse=True)
    shown = f"the latest {len(rows)} of {len(runs)} finished runs" if len(runs) > len(rows) else "all finished runs"
    return f"{table}\n\n{shown}; to compare two or more, give their names or ids: minillm compare RUN RUN"


def chosen_runs(words: Sequence[str], experiment: str | None, store: str) -> list[str]:
    """Return the ids of the runs that a person names (see `TrackedRuns.find`).

    Raises:
        StageError: If a name fits no run or several, two names fit the same run, or there are fewer than two.
    """
    tracked = tracked_runs(store)
    candidates = tracked.of_flows(experiment)
    found = [tracked.find(name, candidates).info.run_id for name in words]
    for place, identity in enumerate(found):
        if identity in found[:place]:
            raise StageError(f"{words[found.index(identity)]!r} and {words[place]!r} are the same run, {identity}")
    if len(found) < 2:
        raise StageError("a comparison needs two runs or more; `minillm compare` lists the latest")
    return found


@task(task_run_name="find runs", persist_result=False, cache_policy=NO_CACHE)
def find_runs(words: Sequence[str], experiment: str | None, store: str) -> list[str]:
    """Find the ids of the runs that are named."""
    return chosen_runs(words, experiment, store)


@task(task_run_name="read runs", persist_result=False, cache_policy=NO_CACHE)
def read_runs(identities: Sequence[str], store: str) -> "list[Run]":
    """Read what MLflow has of the runs."""
    tracked = tracked_runs(store)
    candidates = tracked.of_flows()
    runs = [tracked.find(identity, candidates) for identity in identities]
    return [tracked.read(run, label) for run, label in zip(runs, tracked.labels(runs), strict=True)]


@task(task_run_name="compare", persist_result=False, cache_policy=NO_CACHE)
def write_comparison(runs: "Sequence[Run]", every_method: bool, store: str) -> tuple[Path, str]:
    """Write compare.html, compare.md and the plots; return their folder and a summary in words."""
    from minillm.reporting.comparing.page import write
    from minillm.reporting.comparing.runs import RunComparison
    from tasks.tracking.client import comparison_page

    root = Store(store).root
    folder = root / FOLDER / page_key(" ".join(["compare", *(run.label for run in runs)]))
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    page = comparison_page(root, sorted({run.experiment_id for run in runs}), [run.identity for run in runs])
    words = write(RunComparison(runs, every_method), page, unfinished)
    sync_tree(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    move(unfinished, folder)
    return folder, words


def publish(runs: "Sequence[Run]", folder: Path, words: str, store: str) -> State:
    """Show a comparison on the console, on Prefect's page and as a run of its own in MLflow, and say where it is."""
    labels = " ".join(run.label for run in runs)
    url = _track(runs, folder, f"compare {labels}", store)
    places = {"comparison": str(folder / "compare.html")} | ({"MLflow": url} if url else {})
    links = [f"{run.label}: [MLflow]({run.page}), [Prefect]({run.flow_page})" for run in runs]
    links += [f"{name}: [{place}]({place})" if place == url else f"{name}: `{place}`" for name, place in places.items()]
    shown = "\n".join([words, "", *(f"- {link}" for link in links)])
    show_page(shown, f"compare {labels}", f"Comparison of {labels}")
    print(f"\n{words}")
    for name, place in places.items():
        print(f"{name:<16} {place}")
    return Completed(message=f"comparison: {places['comparison']}")


def _track(runs: "Sequence[Run]", folder: Path, name: str, store: str) -> str | None:
    """Log a comparison to the first run's experiment; return its address, or None if the server does not answer."""
    root = Store(store).root
    page = prefect_page("flow-run", identity := str(flow_run.id))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    outbox = Outbox(root)
    desired = DesiredRun(
        name=name,
        experiment=runs[0].experiment,
        started=time.time(),
        ended=time.time(),
        status="FINISHED",
        tags={
            COMPARED_TAG: ",".join(run.identity for run in runs),
            "prefect.flow_run_id": identity,
            "prefect.url": page,
            "mlflow.note.content": f"compare.html is among the artifacts. Prefect: [{flow_run.name}]({page})",
        },
        files={str(path): str(path.parent.relative_to(folder)).removeprefix(".") for path in files},
    )
    outbox.open(identity, desired)
    outbox.close()
    for run, why in outbox.troubles().items():
        print(f"{'not in MLflow':<16} {run}: {why}")
    return outbox.delivered(identity).url


def _means(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the mean Rouge-L of each method, the highest first."""
    means = [(n.split("/")[1], v) for n, v in metrics.items() if n.startswith("rouge_l/") and n.endswith("/mean")]
    return sorted(means, key=lambda mean: -mean[1])
