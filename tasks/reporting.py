"""Tasks at the end of a run: the report, the models as ordinary directories, and the summary on the console."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefect import State, get_run_logger
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from tabulate import tabulate

from minillm.config import BaseConfig, Config, Model
from minillm.errors import StageError, first_line
from minillm.files import read_json
from minillm.redaction import redacted
from minillm.stages.pages import Card, Report, Upload
from minillm.store.manifest import Artifact
from minillm.words import percent_more
from tasks.running.computation import Input
from tasks.running.pages import show_page
from tasks.running.plan_record import read_plan
from tasks.running.session import Session
from tasks.running.stage import Work, stage_task


@stage_task("report")
def report(
    config: BaseConfig,
    benchmarks: Artifact,
    prompts: Mapping[str, Artifact],
    models: Mapping[str, Input],
    measured: Mapping[str, Artifact],
    examples: Artifact | None = None,
) -> Work:
    """Write tables, plots and the page.

    Args:
        config: Configuration of the run.
        benchmarks: Benchmarks in their common format.
        prompts: Encoded prompts of the benchmarks, by row of the table.
        models: Models by role, the initial student included; those not trained here, as they were given.
        measured: Artifacts of the measurements that `evaluate` started.
        examples: Training examples, if anything was trained.
    """
    models = {**models, **config.served}
    inputs: dict[str, Input] = {"benchmarks": benchmarks, **measured}
    inputs |= {f"prompts/{role}": encoded for role, encoded in prompts.items()}
    inputs |= {} if examples is None else {"examples": examples}
    inputs |= {f"train/{role}": model for role, model in models.items() if isinstance(model, Artifact)}
    plan = read_plan(Path(config.runtime.store), config)
    stage = Report(
        name=config.name,
        roles=tuple(name.removeprefix("score/") for name in measured if name.startswith("score/")),
        benchmarks=tuple(config.evaluation.benchmarks),
        models={role: model for role, model in models.items() if isinstance(model, Model)},
        planned=plan.stages if plan is not None else {},
    )
    return stage, inputs


@stage_task("export {role}")
def export_model(config: Config, role: str, model: Artifact, examples: Artifact, results: Artifact) -> Work:
    """Export a trained student as an ordinary Hugging Face directory with its card."""
    hub = config.export.hub if config.export is not None and role == config.uploaded else None
    described = config.model_dump(mode="json", exclude={"runtime", "promotion", "export"})
    stage = Card(role=role, config=described, hub=hub)
    inputs: dict[str, Input] = {"model": model, "examples": examples, "report": results}
    return stage, inputs


def open_repository(config: Config) -> None:
    """Make the repository of an upload before anything is computed; a hub that is out of order is told and left.

    Raises:
        StageError: The hub refuses the token, or the repository is not as public as `export` says.
    """
    if config.uploaded is None:
        return
    from minillm.reporting import uploading

    try:
        uploading.open_repository(_upload(config, config.uploaded))
    except StageError:
        raise
    except Exception as error:  # the libraries behind the hub's client fail in many ways
        get_run_logger().warning("%s; the upload at the end of the run may fail", redacted(first_line(error)))


@stage_task("upload {role}")
def upload_model(config: Config, role: str, model: Artifact) -> Work:
    """Upload an exported student to its repository on the Hugging Face hub."""
    return _upload(config, role), {"model": model}


def _upload(config: Config, role: str) -> Upload:
    from huggingface_hub import constants

    assert config.export is not None
    endpoint = redacted(constants.ENDPOINT)
    return Upload(role=role, hub=config.export.hub, public=config.export.public, endpoint=endpoint)


def conclude(
    session: Session,
    config: BaseConfig,
    results: PrefectFuture[Any],
    models: Mapping[str, PrefectFuture[Any]],
    uploads: Mapping[str, PrefectFuture[Any]],
) -> State:
    """Wait for everything, show the table on the console and in Prefect, and say where things are.

    Args:
        session: Session of this flow run.
        config: Configuration of the run.
        results: Future of the report.
        models: Futures of the exported models, by row; if there are any, the best row is among them.
        uploads: Futures of those that are uploaded to the hub, by row.

    Returns:
        The flow's final state: Failed, naming the stages, if any did not end well (if only an upload did not, the
        table is shown all the same); Cancelled if they were stopped.
    """
    missing = wait_for_all(session)
    if missing and session.stop.is_set():
        return Cancelled(message="stopped with the study that it belongs to; the study's command continues from here")
    if all(future in uploads.values() for future in missing):
        _show(session, config, results.result(), models, uploads)
    if missing:
        return failed(session)
    page: Artifact = results.result()
    return Completed(message=f"report: {_page_path(page)}", data=page)


def wait_for_all(session: Session) -> list[PrefectFuture[Any]]:
    """Wait for every stage, and return those that did not end well."""
    for future in session.futures:
        future.wait()
    return [future for future in session.futures if not future.state.is_completed()]


def failed(session: Session) -> State:
    """Return the state of a flow whose stages did not all end well, with their reasons."""
    reasons = [f"{label}: {message}" for label, message in session.failures.items()]
    session.failures.setdefault("flow", "not all stages were computed")
    return Failed(message="\n".join(["not all stages were computed", *reasons]))


def _show(
    session: Session,
    config: BaseConfig,
    page: Artifact,
    models: Mapping[str, PrefectFuture[Any]],
    uploads: Mapping[str, PrefectFuture[Any]],
) -> None:
    """Show the table, and where the report, the models and the uploads that ended well are."""
    exported = {role: future.result().path for role, future in models.items()}
    uploaded = {role: upload.result() for role, upload in uploads.items() if upload.state.is_completed()}
    facts = read_json(Path(page.path) / "results.json")
    table = "\n\n".join([_table(facts), *facts["collapsed"]])
    places = {
        "report": _page_path(page),
        **{f"model {role}": path for role, path in exported.items()},
        **{f"hub {role}": str(upload.manifest().summary["url"]) for role, upload in uploaded.items()},
    }
    show_page(
        "\n".join([table, "", *(f"- {name}: `{path}`" for name, path in places.items()), "", links(session)]),
        f"results {config.name}",
        f"{facts['measure']} of {config.name}, mean ± spread over seeds",
    )
    if session.parent is None:  # a study shows one table for all of its runs instead
        print(f"\n{facts['measure']}, mean ± spread over {len(config.evaluation.seeds)} seeds\n\n{table}\n")
        for name, path in places.items():
            print(f"{name:<16} {path}")
        plan = read_plan(session.store.root, config)
        if plan is not None and session.computed >= plan.stages.keys():
            taken, planned = time.monotonic() - session.started, plan.total
            print(f"{'time':<16} {taken:.0f} s; the plan said {planned:.0f} s ({percent_more(planned / taken)})")
        load = f", or load {exported[facts['best']]} with AutoModelForCausalLM.from_pretrained" if exported else ""
        session.next_step = f"Next: `make ui`, or open the report{load}."


def conclude_page(
    session: Session,
    results: PrefectFuture[Any],
    title: str,
    tables: Callable[[Mapping[str, Any]], list[str]],
    models: Mapping[str, PrefectFuture[Any]] = MappingProxyType({}),
) -> State:
    """Wait for everything, show tables and verdict on the console and in Prefect, and say where things are.

    Args:
        session: Session of this flow run.
        results: Future of the page, which is named after its kind of stage.
        title: Title of the page in Prefect.
        tables: Makes Markdown tables of the page's results.json.
        models: Futures of the exported models, by what they are called on the console.

    Returns:
        The flow's final state: Failed, naming the stages, if any did not end well.
    """
    if wait_for_all(session):
        return failed(session)
    page: Artifact = results.result()
    facts = read_json(Path(page.path) / "results.json")
    name, told = facts["name"], "\n\n".join([*tables(facts), *facts["verdict"]])
    places = {"report": str(Path(page.path) / f"{page.kind}.html")}
    places |= {model: exported.result().path for model, exported in models.items()}
    shown = [told, "", *(f"- {what}: `{path}`" for what, path in places.items()), "", links(session)]
    show_page("\n".join(shown), f"results {name}", f"{title}: {name}")
    print(f"\n{told}\n")
    for what, path in places.items():
        print(f"{what:<16} {path}")
    return Completed(message=f"report: {places['report']}", data=page)


def _page_path(page: Artifact) -> str:
    return str(Path(page.path) / "report.html")


def _table(facts: Mapping[str, Any]) -> str:
    """Return a Markdown table of methods × benchmarks, with their mean, from the report's results.json."""
    rows = []
    for role, table in facts["tables"].items():
        cells = [table["benchmarks"][name]["score"] for name in facts["benchmarks"]] + [table["mean"]["score"]]
        rows.append([role, *(f"{cell['mean']:.1f} ± {cell['spread']:.1f}" for cell in cells)])
    return tabulate(rows, [facts["rows"], *facts["benchmarks"], "mean"], "github", disable_numparse=True)


def links(session: Session) -> str:
    """Return links to the tracked runs that the server knows by now."""
    records = {"this flow run": session.flow_run_id, **session.stages}
    urls = {label: session.outbox.delivered(record).url for label, record in records.items()}
    return "MLflow: " + ", ".join(f"[{label}]({url})" for label, url in urls.items() if url)
