"""Plan of a run, made before it starts: what it will take, in tokens, operations, memory, disk and time."""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from minillm.config import Config, Model, Pretrain, System2
from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.files import read_json
from minillm.models.facts import ModelFacts
from minillm.planning.asked import asked_by, asked_words
from minillm.planning.demand import stage_demand
from minillm.planning.estimate import Speeds, mean_speed
from minillm.planning.extrapolation import Seconds
from minillm.planning.row_words import rows_words
from minillm.planning.schedule import Step, span
from minillm.planning.speed import SAID
from minillm.planning.stage_estimate import (
    StageEstimate,
    memory_table,
    planned_name,
    read_models,
    require_fit,
    stage_table,
)
from minillm.planning.subject import Found, Subject, of_distillation, of_pretraining, of_system2
from minillm.planning.work import same_speed
from minillm.stages.base import Job, Stage
from minillm.stages.measuring import Generate, Outlook, Speed
from minillm.stages.reading import EncodedPrompts, Filter, Prepare
from minillm.stages.training import Train
from minillm.store.manifest import Artifact, Origin, text_digest
from minillm.training.checkpoint_record import newest_step
from minillm.words import counted, duration
from tasks.outlook import Start, outlook_of, outlook_words
from tasks.running.dry_run import DryRun, DryStage, Pending
from tasks.running.plan_record import plan_path
from tasks.running.session import walked
from tasks.running.supervision import WorkerError, run_worker

FLOW_SECONDS = 10.0
"""Time of a flow beside its stages: Prefect's server, and the last words to MLflow."""
PLAN_SECONDS = 45.0
"""Time of a plan beside what it computes for the run itself; Python's start comes before."""
ELSEWHERE = "Will it work? Not asked: the teacher runs elsewhere"
FEWEST_SECONDS = 25.0
"""Time of the measurement at least, from the start of its workers, however long the walk took."""


Planned = TypeVar("Planned", Config, System2, Pretrain)


def plan(config: Planned, stages: Callable[[Planned], Any], log: Callable[[str], None] = print) -> str:
    """Walk the flow's body, time pieces of what repeats, and estimate the run.

    Stages that only read data are computed, which takes as long as it takes; the run finds them done.

    Args:
        config: Configuration of the run.
        stages: Body of the flow.
        log: Gets lines that tell of progress.

    Returns:
        Tables in Markdown. The estimate is kept in the store, and the run's report compares with it.

    Raises:
        StageError: The run cannot fit this machine, or died in the measurement; the message names what to change.
    """
    began = time.monotonic()
    dry_run = DryRun(config, log)
    with walked(dry_run):
        stages(config)
    missing = [stage for stage in dry_run.stages if stage.found is None]
    known = len(dry_run.stages) - len(missing)
    head = f"{config.name}: {known} of {len(dry_run.stages)} stages are in the store, {len(missing)} are to be computed"
    if not missing:
        return head
    with tempfile.TemporaryDirectory() as folder:
        return f"{head}\n\n{_estimated(config, dry_run, missing, Path(folder), began, log)}"


def _estimated(
    config: Planned, dry_run: DryRun, missing: list[DryStage], folder: Path, began: float, log: Callable[[str], None]
) -> str:
    """Estimate the stages that are missing; `folder` is for rows to time."""
    runtime, cores = config.runtime, dry_run.cores
    found = [(stage.stage, stage.found) for stage in dry_run.stages if stage.found is not None]
    read = {type(stage): artifact for stage, artifact in found}
    models = read_models(Path(read[Prepare].path))
    subject = _subject(config, dry_run, found, folder)
    estimates, amounts = [], {stage.label: subject.amounts(stage.stage) for stage in missing}
    for stage in missing:
        model, done, of = _model(stage, models), _done(stage), amounts[stage.label]
        demand = stage_demand(stage.stage, model, models, of, runtime, config.data.max_tokens, done)
        estimates.append(StageEstimate(stage.label, stage.stage, model, stage.after, demand, done))
    room = require_fit(estimates, runtime, cores.stages, dry_run.store.root)
    spent = time.monotonic() - began - dry_run.reading_seconds
    limit = max(FEWEST_SECONDS, PLAN_SECONDS - spent)
    log(f"timing pieces of the work for about {limit:.0f} seconds ({cores.stages} at once)")
    starts, outlook = outlook_of(config, dry_run.stages) if isinstance(config, Config) else ({}, None)
    speed, looked = _measure(config, dry_run, missing, read, subject, limit, starts, outlook, log)
    common = (runtime, subject.generate.precision, subject.responses, subject.endpoint)
    speeds = {label: Speeds(speed, models, of, *common) for label, of in amounts.items()}
    seconds = {e.label: speeds[e.label].stage(e.stage, e.demand.work) for e in estimates}
    total = _total(estimates, seconds, cores.stages)
    asked = {e.label: asked_by(e.stage, e.demand.work, amounts[e.label], subject.endpoint) for e in estimates}
    told: list[str] = []
    if isinstance(config, Config):
        record = {"stages": {label: taken.value for label, taken in seconds.items()}, "total": total.value}
        write_atomically(plan_path(dry_run.store.root, config), json.dumps(record, indent=2))
        filtered, encoded = (read[stage].manifest().summary for stage in (Filter, EncodedPrompts))
        told.append(rows_words(Path(read[Filter].path), filtered, encoded, looked[0]["shown"]))
        told.append(ELSEWHERE if config.served else outlook_words(starts, looked))
    parts = [
        *told,
        stage_table(estimates, seconds),
        *filter(None, [asked_words({label: of for label, of in asked.items() if of is not None})]),
        "Memory of each process in training:",
        memory_table(estimates),
        f"{room}; the measurement's processes held {speed['peak_memory'] / 2**30:.1f} GiB at most",
    ]
    if subject.lengths:
        parts.append(f"Responses are taken to be {subject.lengths}")
    if untimed := [e.label for e in estimates if not speeds[e.label].was_timed(e.stage, e.demand.work)]:
        names = ", ".join(untimed)
        parts.append(f"Not timed, as even a small piece takes too long here, but estimated from operations: {names}")
    parts.append(
        f"Estimated time: {duration(total.value)}, probably between {duration(total.low)} and {duration(total.high)}, "
        f"at most {counted(cores.stages, 'stage')} at once; {cores.words}"
    )
    return "\n\n".join(parts)


def _subject(config: Planned, dry_run: DryRun, found: Found, folder: Path) -> Subject:
    """Return what is known of the run, by its kind."""
    if isinstance(config, System2):
        return of_system2(config, found, folder)
    if isinstance(config, Pretrain):
        return of_pretraining(config, found, folder)
    return of_distillation(config, found, next(s.stage for s in dry_run.stages if isinstance(s.stage, Generate)))


def _total(estimates: Sequence[StageEstimate], seconds: Mapping[str, Seconds], at_once: int) -> Seconds:
    """Time of the whole run; its range is that of all stages as fast, or as slow, as each may be."""

    def run(bound: Callable[[Seconds], float]) -> float:
        return FLOW_SECONDS + span([Step(e.label, bound(seconds[e.label]), e.after) for e in estimates], at_once)

    return Seconds(run(lambda s: s.value), run(lambda s: s.low), run(lambda s: s.high))


def _model(stage: DryStage, models: Mapping[str, ModelFacts]) -> str:
    """`teacher` or `student`, whichever a stage trains or measures; where there is one alone, it is the student."""
    role, model = getattr(stage.stage, "role", None), stage.inputs.get("model")
    if role is None and isinstance(model, Pending):
        role = model.role
    elif role is None and isinstance(model, Artifact):
        role = model.manifest().settings.get("role")
    elif role is None and isinstance(model, Model):  # taken as it is
        role = "teacher"
    return "teacher" if role == "teacher" and "teacher" in models else "student"


def _done(stage: DryStage) -> int:
    """Count the optimizer steps behind the newest checkpoint."""
    return 0 if stage.computation is None else newest_step(stage.computation.work / "checkpoints")


def _measure(
    config: Planned,
    dry_run: DryRun,
    missing: list[DryStage],
    read: Mapping[type[Stage], Artifact],
    subject: Subject,
    seconds: float,
    starts: Mapping[str, Start],
    outlook: Outlook | None,
    log: Callable[[str], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Time what repeats, in as many workers as stages may run at once; the first one's progress is logged.

    Returns:
        Mean of the times, and what each worker saw when it compared the models.
    """
    trainings = [stage.stage for stage in missing if isinstance(stage.stage, Train)]
    prepared, paths = next(
        (s.stage, s.computation.paths) for s in dry_run.stages if isinstance(s.stage, Prepare) and s.computation
    )
    inputs = {"prepared": Path(read[Prepare].path), "examples": subject.examples}
    models = {planned_name(name): architecture for name, architecture in prepared.models.items()}
    given = {planned_name(name): paths[name] for name, architecture in prepared.models.items() if architecture is None}
    given |= {name: Path(of.weights.path) for name, of in starts.items() if isinstance(of.weights, Artifact)}
    settings = Speed(
        architectures={n: of for n, of in models.items() if of is not None and n not in given},
        trainings={same_speed(training): training for training in trainings},
        generate=subject.generate,
        responses=subject.responses,
        seconds=seconds,
        outlook=outlook,
    )
    job_inputs = inputs | given

    def tell(line: str) -> None:
        if line.startswith(SAID):
            log(line)

    count = dry_run.cores.stages

    def one(work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        output = work / "output"
        output.mkdir(parents=True)
        part = outlook and outlook.model_copy(update={"part": int(work.name), "parts": count})
        job = Job(
            kind=settings.kind,
            settings=settings.model_copy(update={"outlook": part}),
            inputs=job_inputs,
            output=output,
            work=work,
            runtime=config.runtime.model_copy(update={"threads": dry_run.cores.threads}),
        )
        run_worker(job, tell if work.name == "0" else lambda line: None, threading.Event())
        return read_json(output / "speed.json"), read_json(output / "outlook.json")

    key = text_digest([settings.model_dump(mode="json"), *(str(path) for path in job_inputs.values())])
    with dry_run.store.lock(key), ThreadPoolExecutor(count) as pool:
        dry_run.store.abandon(settings.kind, key)  # what a measurement that was killed has left
        folder = dry_run.store.begin(Origin(kind=settings.kind, key=key, config=config.model_dump(mode="json")))
        try:
            speeds, looked = zip(*pool.map(one, [folder / str(number) for number in range(count)]), strict=True)
            return mean_speed(speeds), list(looked)
        except WorkerError as error:
            raise StageError(f"the measurement ended early: {error}") from error
        finally:
            dry_run.store.abandon(settings.kind, key)
