"""Tasks of a study: one distillation per run, each a flow run of its own, and the comparison of their results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import Flow, State, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from minillm.config import Study, StudyRun
from minillm.files import read_json
from minillm.stages.pages import StudyReport
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.pages import show_page
from tasks.running.session import Session, current
from tasks.running.stage import Work, nothing, stage_task
from tasks.tracking.tags import COMPARED_TAG


def start_runs(flow: Flow[..., State], study: Study) -> dict[StudyRun, PrefectFuture[Any]]:
    """Start every run in turn, as many at once as allowed; return when the last one has begun.

    Args:
        flow: The main flow.
        study: Study that lists the runs.
    """
    session = current()
    assert isinstance(session, Session)
    slots = session.slots
    runs: dict[StudyRun, PrefectFuture[Any]] = {}
    for run in study.runs:
        slots.acquire()
        runs[run] = distillation.submit(flow, study, run)
        runs[run].add_done_callback(lambda _: slots.release())
    return runs


@task(task_run_name="{run.name}", persist_result=False, cache_policy=NO_CACHE)
def distillation(flow: Flow[..., State], study: Study, run: StudyRun) -> Artifact | State:
    """Run one distillation of a study and return its report. The first run that needs a shared stage computes it.

    Args:
        flow: The main flow.
        study: Study with the base configuration.
        run: Name and overrides of the run.
    """
    session = current()
    assert isinstance(session, Session)
    with session.counted():
        state = flow.with_options(flow_run_name=run.name)(study.base, run.overrides, return_state=True)
    if not state.is_completed():
        session.failures[run.name] = state.message or f"ended as {state.name}"
        return State(type=state.type, message=state.message)
    return state.result()


def finished(runs: Mapping[StudyRun, PrefectFuture[Any]]) -> dict[StudyRun, Artifact]:
    """Wait for all runs, and return the reports of those that ended well."""
    for future in runs.values():
        future.wait()
    return {run: future.result() for run, future in runs.items() if future.state.is_completed()}


@stage_task("compare variants")
def compare_variants(study: Study, reports: Mapping[StudyRun, Artifact]) -> Work:
    """Compare the variants all of whose runs ended well: table, differences and plots."""
    missing = [run for run in study.runs if run not in reports]
    broken = {variant for run in missing for variant in run.variants}
    if study.baseline in broken:
        return nothing(f"{study.baseline} has runs that failed")
    changes = {name: change for name, change in study.changes.items() if name not in broken}
    stage = StudyReport(
        name=study.name,
        base=study.base,
        method=None if study.methods else study.method,
        changes=changes,
        baseline=study.baseline,
        seeds=study.seeds,
        parameter=study.parameter,
        points=_points(study, changes),
        missing=tuple(run.name for run in missing),
    )
    inputs: dict[str, Input] = {}
    for run, page in reports.items():
        measured = page.manifest().inputs
        for variant in changes.keys() & set(run.variants):
            for kind in StudyReport.kinds:
                if (name := f"{kind}/{study.row(variant)}") in measured:
                    inputs[f"{kind}/{variant}/{run.seed}"] = _behind(page, name)
    return stage, inputs


def conclude_study(session: Session, study: Study, results: PrefectFuture[Any]) -> State:
    """Show the table on the console and in Prefect, link the runs, and name those that failed.

    Args:
        session: Session of this flow run.
        study: Study that ran.
        results: Future of `compare_variants`.

    Returns:
        The flow's final state: Failed, naming the runs, if any did not end well.
    """
    results.wait()
    page: Artifact | None = results.result(raise_on_failure=False) if results.state.is_completed() else None
    links = [
        f"- {name}: [MLflow]({delivered.url})" for name, delivered in sorted(session.runs.items()) if delivered.url
    ]
    with session.outbox.change(session.flow_run_id) as desired:
        desired.tags[COMPARED_TAG] = ",".join(
            delivered.run_id for delivered in session.runs.values() if delivered.run_id
        )
        desired.tags["mlflow.note.content"] += "\n\n" + "\n".join(links)
    if page is not None:
        place = Path(page.path) / "study.html"
        glance = read_json(Path(page.path) / "results.json")["glance"]
        shown = "\n".join([glance, "", f"- page: `{place}`", *links])
        show_page(shown, f"study {study.name}", f"Study {study.name}")
        print(f"\n{glance}\n\n{'study':<16} {place}")
    if session.failures:
        reasons = [f"{name}: {message}" for name, message in session.failures.items()]
        return Failed(
            message="\n".join(["not all runs ended well; the same command computes what is missing", *reasons])
        )
    if page is None:
        return Failed(message=f"no comparison: {results.state.message}")
    return Completed(message=f"study: {page.path}", data=page)


def _behind(page: Artifact, name: str) -> Artifact:
    """Return an input of a page as an artifact; also in a store that was moved, where the two are still neighbours."""
    found = page.manifest().inputs[name]
    return found.model_copy(update={"path": str(Path(page.path).with_name(Path(found.path).name))})


def _points(study: Study, names: Mapping[str, Any]) -> dict[str, float] | None:
    if study.parameter is None:
        return None
    (values,) = (study.grid or {}).values()
    return {name: float(value) for name, value in zip(study.changes, values, strict=True) if name in names}  # type: ignore[arg-type]
