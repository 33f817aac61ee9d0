"""A stage has read what its key says, whatever happens to its sources; work that no run continues is removed."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from minillm.config import Config, Fields, Model, Source
from minillm.errors import StageError
from minillm.stages.base import Stage
from minillm.stages.pages import StudyReport
from minillm.stages.reading import Benchmarks, Filter
from minillm.stages.training import Train
from minillm.store.artifacts import Store
from minillm.store.inventory import look
from minillm.store.manifest import Artifact
from tasks.running.computation import Computation, Input
from tasks.running.dry_run import DryRun, Pending
from tasks.store import collect, listing
from tests.small import small_config

STAGE = Benchmarks(fields={"dolly": Fields()}, topics={})


def computation_of(config: Config, source: Input, stage: Stage = STAGE) -> Computation:
    return Computation(stage, {"benchmark/dolly": source}, config, "read", Store(config.runtime.store))


def prepared(config: Config, source: Input, stage: Stage = STAGE) -> Computation:
    """Return a stage that has been computed but not completed."""
    computation = computation_of(config, source, stage)
    work = computation.store.begin(computation._becomes())
    (work / "output" / "dolly.jsonl").write_text("{}\n", encoding="utf-8")
    (work / "summary.json").write_text("{}", encoding="utf-8")
    time.sleep(0.02)  # one tick of the slowest file system's clock
    return computation


def rewrite(path: Path, between: str) -> None:
    """Write other content, then restore the former content and modification time."""
    facts, text = path.stat(), path.read_text(encoding="utf-8")
    path.write_text(between, encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [lambda path: path.write_text("{}\n", encoding="utf-8"), lambda path: rewrite(path, "{}\n")]
)
@pytest.mark.parametrize("pinned", [False, True])
def test_nothing_is_stored_of_a_file_that_was_written_to(tmp_path: Path, change: Callable[[Path], None], pinned: bool):
    config, path = small_config(tmp_path), tmp_path / "benchmark.jsonl"
    source = Source(path=path.name)
    if pinned:
        digest = computation_of(config, source).origin["sources"]["benchmark/dolly"]
        source = Source(path=path.name, sha256=digest.removeprefix("sha256:").removesuffix(".jsonl"))
    computation = prepared(config, source)
    change(path)
    with pytest.raises(StageError, match=r"benchmark\.jsonl changed while 'read' ran, .* Run the same command again"):
        computation.complete(0.0)
    assert computation.find() is None
    assert not computation.work.exists(), "nor is it continued"


def test_so_it_is_of_folders_models_and_results_of_other_stages(tmp_path: Path):
    config = small_config(tmp_path)
    made = prepared(config, Source(path="benchmark.jsonl"))
    artifact = made.complete(0.0)
    (tmp_path / "model" / "part").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "part/x"):
        (tmp_path / "model" / name).write_text("{}", encoding="utf-8")
    inputs: list[tuple[Input, Path]] = [
        (Source(path="model"), tmp_path / "model" / "part" / "x"),
        (Model(path=str(tmp_path / "model")), tmp_path / "model" / "model.safetensors"),
        (artifact, Path(artifact.path) / "dolly.jsonl"),
    ]
    for number, (given, path) in enumerate(inputs):
        stage = Benchmarks(fields={f"{number}": Fields()}, topics={})
        computation = prepared(config, given, stage)
        rewrite(path, "other")
        with pytest.raises(StageError, match=f"{path.name} changed while"):
            computation.complete(0.0)
        assert isinstance(prepared(config, given, stage).complete(0.0), Artifact), "run again"


def test_a_file_that_was_only_looked_at_or_backed_up_is_no_reason(tmp_path: Path):
    path = tmp_path / "benchmark.jsonl"
    computation = prepared(small_config(tmp_path), Source(path=path.name))
    path.read_text(encoding="utf-8")
    (tmp_path / "backup").hardlink_to(path)
    path.chmod(0o600)
    assert computation.complete(0.0) == computation.find()


def test_a_source_edited_while_its_worker_starts_and_restored_leaves_no_trace(tmp_path: Path):
    config, path = small_config(tmp_path), tmp_path / "benchmark.jsonl"
    right, facts = path.read_text(encoding="utf-8"), path.stat()
    wrong = json.dumps({"instruction": "Who?", "input": "", "output": "Nobody."}) + "\n"

    def attempt(edited: str) -> None:
        path.write_text(edited, encoding="utf-8")
        started = computation.run(lambda line: None, threading.Event(), 1)
        path.write_text(right, encoding="utf-8")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        computation.complete(started)

    for edited, refusal in ((wrong, "changed while"), ("[]\n", r"benchmark\.jsonl:1")):
        computation = computation_of(config, Source(path=path.name))
        with pytest.raises(StageError, match=refusal):
            attempt(edited)
        path.write_text(right, encoding="utf-8")
        assert not computation.work.exists()
    again = computation_of(config, Source(path=path.name))
    artifact = again.complete(again.run(lambda line: None, threading.Event(), 1))
    assert "Nobody" not in (Path(artifact.path) / "dolly.jsonl").read_text(encoding="utf-8")


def test_work_that_no_run_can_continue_is_told_and_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    config = small_config(tmp_path)
    done = prepared(config, Source(path="benchmark.jsonl"))
    completed, store = done.complete(0.0), done.store
    prepared(config, Source(path="benchmark.jsonl"))  # killed while completing
    begun = prepared(config, Source(path="rows.jsonl"))
    stale = prepared(config, Source(path="quiz.jsonl"))
    origin = stale._becomes().model_copy(update={"source_digest": "of the code of yesterday"})
    store.begin(origin)
    (store.root / "work" / "train-0123456789abcdef").mkdir()  # left by a version that kept no record of its origin
    states = {entry.name: entry.state for path in (store.root / "work").iterdir() if (entry := look(path, store))}
    left = {done.work.name, stale.work.name, "train-0123456789abcdef"}
    assert states == {begun.work.name: "unfinished", **dict.fromkeys(left, "left over")}

    client = MlflowClient()
    experiment = client.create_experiment("small")
    parent = client.create_run(experiment).info.run_id
    for key in (done.key, begun.key, stale.key):
        client.create_run(experiment, tags={"minillm.key": key, "mlflow.parentRunId": parent})
    lines = listing(str(store.root)).splitlines()
    assert sum("left over" in line for line in lines) == 3
    assert any("unfinished" in line and " small " in line for line in lines)
    with store.lock(stale.key):
        assert {entry.name for entry in collect(str(store.root), dry_run=False)} == left - {stale.work.name}
    assert {entry.name for entry in collect(str(store.root), dry_run=False)} == {stale.work.name}
    assert [path.name for path in (store.root / "work").iterdir()] == [begun.work.name]
    assert done.find() == completed


def test_a_plan_does_not_wait_for_a_run_that_trains(tmp_path: Path):
    config = small_config(tmp_path)
    train = Train(
        role="sft", method=config.methods["sft"], architecture=None, max_tokens=9, validation_prompts=3, seed=1
    )
    inputs: dict[str, Input] = {
        name: Artifact(kind=name, key=name, path=str(tmp_path), digest=name)
        for name in ("tokenizer", "examples", "weights")
    }
    computation = Computation(train, inputs, config, "train sft", Store(config.runtime.store))
    dry_run = DryRun(config, print)
    with ThreadPoolExecutor(1) as pool, computation.store.lock(computation.key):
        pending = pool.submit(dry_run.compute, train, inputs, config, "train sft").result(timeout=60)
    assert isinstance(pending, Pending)
    assert [stage.found for stage in dry_run.stages] == [None]


@pytest.mark.parametrize(
    ("stage", "names", "fits"),
    [
        (Filter, ["instructions", "tokenizer", "benchmarks"], True),
        (Filter, ["instructions", "split", "tokenizer", "benchmarks"], True),
        (Filter, ["instructions", "tokenizer"], False),
        (Filter, ["instructions", "tokenizer", "benchmarks", "prompts"], False),
        (Benchmarks, [], True),
        (Benchmarks, ["benchmark/dolly", "benchmark/a/b"], True),
        (Benchmarks, ["benchmark"], False),
        (StudyReport, ["score/a/1", "train/a/1"], True),
    ],
)
def test_a_stage_is_given_what_it_declares(stage: type[Stage], names: list[str], fits: bool):
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match=rf"^stage '{stage.kind}' reads \("):
        stage.model_construct().require_inputs(names)


def test_a_computation_asks_for_them(tmp_path: Path):
    config = small_config(tmp_path)
    with pytest.raises(ValueError, match=r"missing are \[\], unknown are \['prompts'\]"):
        Computation(STAGE, {"prompts": Source(path="benchmark.jsonl")}, config, "read", Store(config.runtime.store))
