"""Judging with a real Prefect server, real workers, a real endpoint and a real MLflow database."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minillm.config import Config, Model
from minillm.errors import StageError
from minillm.store.artifacts import Store
from minillm.store.manifest import Artifact
from tasks.data import prepare
from tasks.evaluation import evaluate, judge_responses
from tasks.evaluation_sets import read_benchmarks, read_evaluation_sets
from tests import judge_server
from tests.judge_server import KEY, ratings, serving
from tests.minillm.models_in_small import small_model
from tests.small import COLOURS, small_config, write_rows
from tests.tasks.stages import run, tracked_runs

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[judge_server.Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(judge_server.Endpoint()) as running:
        running.rate = lambda first, second: ratings(
            *(8 if "is on the hill" in text else 6 for text in (first, second))
        )
        yield running


def judging(server: judge_server.Endpoint, folder: Path, *overrides: str) -> Config:
    where = [f"evaluation.judge.base_url={server.base_url}", "evaluation.judge.model=gpt"]
    what = ["evaluation.judge.benchmarks=[dolly]", "evaluation.judge.max_questions=100"]
    return small_config(folder, *where, *what, *overrides)


def assert_key_nowhere(folder: Path, log: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"answers.sqlite", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in log


def test_every_method_is_judged_and_the_key_reaches_nothing(tmp_path, server, caplog):
    caplog.set_level(logging.DEBUG)
    small_model("gpt2", vocabulary=300).save_pretrained(tmp_path / "model")

    def stages(config: Config) -> dict[str, Any]:
        models = {"sft": Model(path=str(tmp_path / "model"))}
        return evaluate(
            config, models, read_evaluation_sets(config, {"sft": prepare.submit(config, config.student.model)})
        )

    config = judging(server, tmp_path)
    first = run(config, stages)
    assert first.names()["judge/sft"] == "Completed"
    assert len(server.requests) == 3 * 2
    parent = next(r for r in tracked_runs(config) if "mlflow.parentRunId" not in r.data.tags)
    assert parent.data.metrics["judge/sft/dolly"] == parent.data.metrics["judge/sft/mean"] == 75.0
    (nested,) = [r for r in tracked_runs(config) if r.info.run_name == "judge sft"]
    assert nested.data.metrics["questions"] == 6
    assert nested.data.params["judge.api_key_variable"] == "OPENAI_API_KEY"
    assert "asked 6 questions" in caplog.text
    assert_key_nowhere(tmp_path, caplog.text)

    again = run(judging(server, tmp_path, "evaluation.judge.parallel=2"), stages)
    assert {name for name, state in again.names().items() if state != "Cached"} == {"judge/sft"}
    assert len(server.requests) == 6, "how it is asked is another setting, but no other question"
    assert again.artifact("judge/sft").digest == first.artifact("judge/sft").digest


def responses(config: Config) -> Artifact:
    """Store responses of an imagined model that always talks of cats."""
    store = Store(config.runtime.store)
    rows = [{"index": i, "seed": s, "response": f"A {c} cat."} for s in (10, 20) for i, c in enumerate(COLOURS[:3])]
    write_rows(store.work_directory("generate", "g" * 64) / "output" / "dolly.jsonl", rows)
    return store.complete("generate", "g" * 64, {"summary": {}})


def test_a_wrong_key_is_told_and_not_tried_again(tmp_path, server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", f"not-{KEY}")
    config = judging(server, tmp_path)
    outcome = run(
        config,
        lambda config: {
            "judge": judge_responses.submit(config, "sft", responses(config), read_benchmarks.submit(config))
        },
    )
    with pytest.raises(StageError, match=r"does not know the key in OPENAI_API_KEY \(401\)"):
        outcome.states["judge"].result()
    assert outcome.task_runs["judge sft"].run_count == 1
    assert "(401)" in caplog.text
    assert_key_nowhere(tmp_path, caplog.text)
