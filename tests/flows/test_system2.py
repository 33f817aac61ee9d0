"""System 2 distillation from the command line: stopped in the middle, continued, and shown with what it did not do.

And again with the exported model, whose System 2 is a reasoner behind an endpoint.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.system2 import stages
from minillm.config.loading import load_system2
from tasks import planning
from tests.flows.stopping import Resumed, stop_once
from tests.flows.test_distill import run_flow
from tests.judge_server import KEY, serving
from tests.minillm.direct import read_lines, write_lines
from tests.minillm.test_served import paid
from tests.teacher_server import TeacherServer

STAGES = {
    "read test questions",
    "read unlabelled questions",
    "check reasoner",
    "prepare tokenizer",
    "filter instructions",
    "fine-tune model",
    "ask System 1 before",
    "ask System 2",
    "ask System 2, unlabelled",
    "keep consistent answers",
    "distil answers",
    "ask System 1 after",
    "report",
    "export model",
}
MARK = 12345


def configuration(folder: Path) -> Path:
    """Write the embedded default with short trainings and single letters as answers, none of which can be right."""
    training = {"steps": 60, "warmup_steps": 5, "evaluate_every": 60}
    letter = {"steps": {"response": "{question}"}, "answer": "([A-Za-z])"}
    test = {name: {"rows": [0, 20]} for name in ("last_letters", "coin_flip")}
    settings = {
        "base": "configs/system2.yaml",
        "name": "small",
        "data": {
            "unlabelled": {"last_letters": {"rows": [0, 1500]}, "coin_flip": None},
            "test": test,
            "validation_size": 10,
        },
        "training": training,
        "distillation": {**training, "steps": 2, "evaluate_every": 2},
        "system1": letter,
        "system2": {**letter, "steps": {"response": "{question}\nThink."}},
        "asking": {"max_response_tokens": 40, "test_samples": 2},
        "self_consistency": {"samples": 2},
        "runtime": {"store": str(folder / "store"), "parallel_stages": 1, "retries": 0},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def resumed(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """Stop a run while it asks the unlabelled questions, mark what is stored of them, and run it again."""
    folder = tmp_path_factory.mktemp("system2")
    config, store, environment = (
        configuration(folder),
        folder / "store",
        {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
    )
    parts = stop_once("system2", config, lambda: parts_of_unlabelled(store), **environment)
    (first,) = [path for path in parts if path.name == "answers-0000000.jsonl"]
    write_lines(first, [{**line, "tokens": MARK} for line in read_lines(first)])
    return Resumed(run_flow("system2", config, str(config), **environment), store)


def parts_of_unlabelled(store: Path) -> list[Path]:
    """Return the finished parts of the answers to the unlabelled questions that an attempt left."""
    parts = store.rglob("answers-*.jsonl") if store.exists() else ()
    return [path for path in parts if '"unlabelled"' in (path.parent / "job.json").read_text(encoding="utf-8")]


def test_a_stopped_run_is_continued_from_its_last_part(resumed: Resumed):
    assert resumed.finished.status == 0, resumed.finished.log
    states = resumed.finished.states()
    assert states.keys() - {"system2"} == STAGES
    cached = {stage for stage, state in states.items() if state == "Cached"}
    assert cached >= {"read unlabelled questions", "prepare tokenizer", "filter instructions", "fine-tune model"}
    assert states["ask System 2, unlabelled"] == "Completed"
    folders = resumed.store.glob("artifacts/ask-*")
    (answers,) = [of for folder in folders if len(of := read_lines(folder / "answers.jsonl")) == 3000]
    marked = [line["index"] for line in answers if line["tokens"] == MARK]
    assert sorted({*marked}) == list(range(512)), "one part was taken as it was, and the others asked"
    assert [line["index"] for line in answers] == [index for index in range(1500) for _ in range(2)]


def test_the_report_says_that_distillation_did_not_work(resumed: Resumed):
    results = json.loads((resumed.report / "results.json").read_text(encoding="utf-8"))
    page = (resumed.report / "system2.html").read_text(encoding="utf-8")
    assert results["verdict"][0].startswith("Distillation did not work: System 1 after is not better than before")
    for words in (results["verdict"][0], "System 1 before", "tokens per answer", "two answers as common", "Think."):
        assert words in page.replace("\n", " "), words
    assert results["accuracy"].keys() == {"System 1 before", "System 2", "System 1 after"}
    assert results["accuracy"]["System 2"].keys() == {"last_letters", "coin_flip", "mean"}
    rows = re.findall(r"^\| (System .+?) +\|(.*)\|$", resumed.finished.output, re.MULTILINE)
    assert [name for name, _ in rows] == ["System 1 before", "System 2", "System 1 after"]


def test_its_figures_and_its_model_are_tracked(resumed: Resumed):
    client = MlflowClient(f"sqlite:///{resumed.store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    results = json.loads((resumed.report / "results.json").read_text(encoding="utf-8"))
    for key, system in (("system1_after", "System 1 after"), ("system2", "System 2")):
        assert parent.data.metrics[f"accuracy/{key}/mean"] == results["accuracy"][system]["mean"]["mean"]
        assert parent.data.metrics[f"tokens/{key}"] == results["tokens"][system]
    assert parent.data.metrics["kept"] > 0
    assert [model.name for model in client.search_registered_models()] == ["small-system1"]


def test_the_exported_model_loads_and_its_card_has_the_verdict(resumed: Resumed):
    (model,) = re.findall(r"^model +(\S+)$", resumed.finished.output, re.MULTILINE)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    assert loaded(**tokenizer("Join", return_tensors="pt")).logits.shape[-1] == loaded.config.vocab_size
    card = (Path(model) / "README.md").read_text(encoding="utf-8")
    assert "Distillation did not work" in card
    assert "Is a coin that is flipped twice as it was before?" in card


def test_questions_without_answers_stop_it_before_anything_is_trained(resumed: Resumed, tmp_path: Path):
    write_lines(tmp_path / "test.jsonl", [{"question": "Why?", "answer": "x"}, {"question": "Who?"}])
    changes = {
        "data.test.coin_flip.source.path": tmp_path / "test.jsonl",
        "data.test.coin_flip.rows": "null",
        "runtime.store": tmp_path / "store",
    }
    arguments = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    config, server = resumed.finished.config, str(PREFECT_API_URL.value())
    refused = run_flow("system2", config, str(config), *arguments, PREFECT_API_URL=server)
    assert refused.status == 1
    assert re.search(r"data\.test\.coin_flip, .*test\.jsonl:2: no field `answer`", refused.log)
    assert "fine-tune model: started" not in refused.log


@pytest.fixture(scope="module")
def reasoner(resumed: Resumed) -> Iterator[TeacherServer]:
    """Serve a reasoner that knows every answer, and takes its time."""
    (model,) = re.findall(r"^model +(\S+)$", resumed.finished.output, re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch, serving(TeacherServer(Path(model), Path(model))) as running:
        patch.setenv("OPENAI_API_KEY", KEY)
        running.chat = says_the_right_answer
        yield running


def says_the_right_answer(messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
    question = messages[-1]["content"].partition("\n")[0]
    names = question.removeprefix("Join the last letters of ").removesuffix(".").split()
    answer = "no" if question.count("flips it") % 2 else "yes" if "coin" in question else "".join(n[-1] for n in names)
    time.sleep(0.05)
    return {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": f"The answer is {answer}."},
    }


@pytest.fixture(scope="module")
def taught(resumed: Resumed, reasoner: TeacherServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Resumed]:
    """Plan a run with a reasoner, stop it while that is asked, and run it again; return the plan and the last run."""
    folder = tmp_path_factory.mktemp("reasoner")
    store, config = folder / "store", folder / "taught.yaml"
    prices = {"prompt": 0.0, "completion": 1.0}
    settings = {
        "base": str(resumed.finished.config),
        "name": "taught",
        "data": {"instructions": None, "unlabelled": {"last_letters": {"rows": [0, 60]}}},
        "model": {"architecture": None, "path": reasoner.model.name_or_path},
        "reasoner": {
            "base_url": reasoner.base_url,
            "model": "large",
            "parallel": 2,
            "max_requests": 201,
            "prices": prices,
        },
        "tokenizer": None,
        "training": None,
        "system2": "chain_of_thought",
        "runtime": {"store": str(store)},
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "PLAN_SECONDS", 5.0)
        patch.setattr(planning, "FEWEST_SECONDS", 5.0)
        plan = planning.plan(load_system2(str(config), ()), stages)
    environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    stop_once("system2", config, lambda: [store] if paid(store) > 20 else [], **environment)
    return plan, Resumed(run_flow("system2", config, str(config), **environment), store)


def test_a_plan_tells_what_a_reasoner_will_be_asked(taught: tuple[str, Resumed]):
    lines = [re.split(r"\s*\|\s*", line)[1:-1] for line in taught[0].splitlines() if line.startswith("| ")]
    (header,) = [number for number, cells in enumerate(lines) if cells[0] == "to ask"]
    asked = {cells[0]: (cells[1], cells[3], cells[4]) for cells in lines[header + 1 : header + 3]}
    assert asked == {
        "ask System 2": ("80", "81,920", "0.0819"),  # two answers to 20 questions of each of two sets
        "ask System 2, unlabelled": ("120", "122,880", "0.1229"),
    }
    assert "answers are taken to be as long as reasoner.max_tokens" in taught[0]
    stages = {cells[0]: cells[1:] for cells in lines[:header]}
    assert stages["ask System 1 before"][0] == "3.2 thousand", "80 answers of 40 tokens"
    assert 200 <= int(stages["ask System 2"][3].split()[0]) < 210, "80 requests of 5 seconds, two at once"
    assert "distil answers" in stages


def test_the_model_learns_what_its_reasoner_says(taught: tuple[str, Resumed], reasoner: TeacherServer):
    resumed = taught[1]
    assert resumed.finished.status == 0, resumed.finished.log
    assert resumed.finished.states()["check reasoner"] == "Cached", "the plan has asked"
    assert reasoner.answered.total() == 1 + 80 + 120
    assert set(reasoner.answered.values()) == {1}, "nothing is asked twice"
    results = json.loads((resumed.report / "results.json").read_text(encoding="utf-8"))
    assert results["accuracy"]["System 2"]["mean"]["mean"] == 100
    assert results["tokens"]["System 2"] == 5, "as the server counts them"
    (kept,) = resumed.store.glob("artifacts/consistent-*")
    learnt = pd.concat([pd.read_parquet(kept / f"{part}.parquet") for part in ("train", "validation")])
    assert len(learnt) == 60
    for row in learnt.to_dict("records"):
        said = says_the_right_answer([{"content": row["prompt"]}], 0)["message"]["content"]
        assert said == f"The answer is {row['turns'][0]['text']}."
    page = (resumed.report / "system2.html").read_text(encoding="utf-8")
    assert "answered by <code>large</code> behind an endpoint" in page.replace("\n", " ")
    (model,) = re.findall(r"^model +(\S+)$", resumed.finished.output, re.MULTILINE)
    card = (Path(model) / "README.md").read_text(encoding="utf-8")
    assert "trained on the answers of `large` behind an endpoint" in card.replace("\n", " ")
