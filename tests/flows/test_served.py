"""A whole run whose teacher is behind an endpoint: planned, run, run again for nothing, and without the key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from flows.distill import stages
from minillm.config.loading import load_config
from minillm.files import read_json
from tasks import planning
from tests.flows.test_distill import Finished, distill
from tests.judge_server import KEY, serving
from tests.minillm.models_in_small import LLAMA_LIKE
from tests.minillm.templates import TURNS, save_chat_tokenizer
from tests.small import write_short_experiment
from tests.teacher_server import TeacherServer

WEIGHED = ("calibration", "held_out")
"""Measurements that need weights."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherServer]:
    """Serve a model that answers every question by one of two sentences."""
    folder = save_chat_tokenizer(tmp_path_factory.mktemp("teacher") / "model", TURNS)
    words = len(AutoTokenizer.from_pretrained(folder))
    model = AutoConfig.for_model("llama", **LLAMA_LIKE, vocab_size=words)
    AutoModelForCausalLM.from_config(model).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch, serving(TeacherServer(folder, folder)) as running:
        patch.setenv("OPENAI_API_KEY", KEY)

        def chat(messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
            text = "It is sunny." if "what" in messages[-1]["content"] else "It is on the hill."
            return {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}

        running.chat = chat
        yield running


@pytest.fixture(scope="module")
def config(teacher: TeacherServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    path = write_short_experiment(folder, ("sft",))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["data"]["template"], settings["tokenizer"]
    prices = {"prompt": 1.0, "completion": 2.0}
    endpoint = {"base_url": teacher.base_url, "model": "teacher", "max_requests": 500, "prices": prices}
    settings["teacher"] = {
        "model": {"endpoint": {**endpoint, "duplicate_characters": None}},
        "training": None,
        "knowledge": {"top": {"k": 5}},
    }
    settings["student"] = {"model": {"path": teacher.model.name_or_path}, "initial": None}
    training = settings["methods"].pop("sft")["training"]
    settings["methods"] = {name: {"training": training} for name in ("seqkd", "slim")}
    settings["methods"]["on_policy"] = {"training": training, "start": "pretrained"}
    settings["evaluation"]["calibration"] = {"quiz": {"source": {"path": "quiz.jsonl"}}}
    settings["evaluation"]["held_out"] = {"running": {"path": "held_out.txt"}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(config: Path, teacher: TeacherServer) -> str:
    """Return the plan that was made before the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "PLAN_SECONDS", 5.0)
        patch.setattr(planning, "FEWEST_SECONDS", 5.0)
        return planning.plan(load_config(str(config), ()), stages)


@pytest.fixture(scope="module")
def first(plan: str, config: Path, prefect_server: None) -> Finished:
    from prefect.settings import PREFECT_API_URL

    return distill(config, PREFECT_API_URL=str(PREFECT_API_URL.value()))


def test_a_plan_tells_what_will_be_asked(plan: str):
    assert "Will it work? Not asked: the teacher runs elsewhere" in plan
    asked = plan.split("Asked of endpoints")[1].split("Memory of each")[0]
    rows = {cells[1]: cells[2:-1] for line in asked.splitlines() if len(cells := re.split(r"\s*\|\s*", line)) > 3}
    assert list(rows["to ask"]) == ["requests", "prompt tokens", "completion tokens", "in money"]
    assert rows["teacher responses"][0] == "34", "forty rows, less those of validation and test"
    assert rows["teacher knowledge top on teacher"][2] == "34", "a token that nobody needs"
    assert rows["generate teacher"][0] == "6"
    assert rows["train on_policy"][0] == "16", "two steps of eight"


def test_students_learn_from_it_and_the_table_has_its_row(first: Finished, config: Path, teacher: TeacherServer):
    assert first.status == 0, first.log
    states = first.states()
    computed = {stage for stage, state in states.items() if state == "Completed"}
    asked = {"teacher responses", "teacher knowledge top on teacher", "generate teacher"}
    assert asked | {"train seqkd", "train slim", "train on_policy", "report", "export slim"} <= computed
    assert states["check served teacher"] == "Cached", "the plan has asked"
    (report,) = config.parent.glob("store/artifacts/report-*")
    results = read_json(report / "results.json")
    assert list(results["tables"]) == ["teacher", "seqkd", "slim", "on_policy"]
    assert list(results["cost"]["models"]) == ["seqkd", "slim", "on_policy"]
    page = (report / "report.html").read_text(encoding="utf-8")
    assert f"teacher at {teacher.base_url}" in page
    measured = {name: {path.name for path in config.parent.glob(f"store/artifacts/{name}-*")} for name in WEIGHED}
    assert {name: len(of) for name, of in measured.items()} == dict.fromkeys(WEIGHED, 3), "students alone"
    cards = [path.read_text(encoding="utf-8") for path in config.parent.glob("store/artifacts/model-*/README.md")]
    assert ["`teacher` behind an endpoint" in card for card in cards] == [True] * 3
    assert set(teacher.answered.values()) == {1}, "nothing is asked twice"


def test_the_key_stands_nowhere(first: Finished, config: Path):
    files = [path for path in config.parent.rglob("*") if path.is_file()]
    assert {"answers.sqlite", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in first.output + first.log


def test_how_it_is_asked_changes_nothing_that_is_trained(first: Finished, config: Path, teacher: TeacherServer):
    from prefect.settings import PREFECT_API_URL

    before = teacher.answered.total()
    again = distill(config, "--set", "teacher.model.endpoint.parallel=2", PREFECT_API_URL=str(PREFECT_API_URL.value()))
    assert again.status == 0, again.log
    states = again.states()
    assert {states[name] for name in ("train seqkd", "train slim", "train on_policy", "score teacher")} == {"Cached"}
    assert teacher.answered.total() <= before + 3, "only the check asks again"
