"""Pre-training from the command line: stopped while the teacher writes, continued, and its figures recomputed."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL

from tests.flows.stopping import Resumed, stop_once
from tests.flows.test_distill import run_flow

STUDENTS = [f"{method} {share} seed 1" for share in ("0.5", "1.0") for method in ("sft", "slim")]
STAGES = {
    "prepare tokenizer",
    "pack held-out texts",
    "cut plain text",
    "train teacher",
    "sample corpus",
    "teacher knowledge top on teacher",
    *(f"train {student}" for student in STUDENTS),
    *(f"held-out loss {model}" for model in ("teacher", *STUDENTS)),
    "report",
}
MARK = 42
TOKENS = 31
"""Tokens of a sequence that are learnt."""


def configuration(folder: Path) -> Path:
    """Write the embedded default with short sequences and trainings."""
    training = {"warmup_steps": 2, "steps": 12, "evaluate_every": 6}
    settings = {
        "base": "configs/pretrain.yaml",
        "name": "small",
        "seeds": [1],
        "data": {"max_tokens": TOKENS + 1},
        "teacher": {"training": training},
        "corpus": {"sequences": 400, "validation_size": 40},
        "training": training,
        "methods": {"kd": None},
        "shares": [0.5, 1.0],
        "runtime": {"store": str(folder / "store"), "parallel_stages": 1, "retries": 0, "generation_batch_size": 4},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


class Pretrained(Resumed):
    """The resumed run, with its results."""

    def result(self, kind: str, **settings: object) -> Path:
        """Folder of the one result of a kind with these settings."""
        folders = [path.parent for path in self.store.glob(f"artifacts/{kind}-*/manifest.json")]
        found = {path: json.loads((path / "manifest.json").read_text(encoding="utf-8"))["settings"] for path in folders}
        (path,) = [path for path, of in found.items() if settings.items() <= of.items()]
        return path


@pytest.fixture(scope="module")
def resumed(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """Stop a run while the teacher writes, mark what is stored of it, and run it again."""
    folder = tmp_path_factory.mktemp("pretrain")
    config, store = configuration(folder), folder / "store"
    environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    parts = stop_once("pretrain", config, lambda: list(store.rglob("sequences-*.parquet")), **environment)
    part = pd.read_parquet(parts[0])
    pd.DataFrame({"tokens": [[MARK] * len(tokens) for tokens in part["tokens"]]}).to_parquet(parts[0])
    return Pretrained(run_flow("pretrain", config, str(config), **environment), store)


def test_a_stopped_run_is_continued_from_its_last_part(resumed: Pretrained):
    assert resumed.finished.status == 0, resumed.finished.log
    states = resumed.finished.states()
    assert states.keys() - {"pretrain"} == STAGES
    cached = {stage for stage, state in states.items() if state == "Cached"}
    beside_it = {"held-out loss teacher"}  # done by then or not
    assert cached - beside_it == {"prepare tokenizer", "pack held-out texts", "cut plain text", "train teacher"}
    corpus = pd.read_parquet(resumed.result("corpus") / "responses.parquet")
    assert [ids.tolist() for ids in corpus["prompt_ids"]] == [[MARK]] * 400, "the marked part was taken as it was"
    assert {len(ids) for ids in corpus["response_ids"]} == {TOKENS}


def test_its_figures_are_those_of_the_stages(resumed: Pretrained):
    page = (resumed.report / "pretrain.html").read_text(encoding="utf-8")
    results = json.loads((resumed.report / "results.json").read_text(encoding="utf-8"))
    assert results["columns"] == ["6.2\u00a0K (50 %)", "12.4\u00a0K (100 %)"]  # 200 and 400 sequences of 31
    for method in ("sft", "slim"):
        for place, share in enumerate(("0.5", "1.0")):
            held_out = resumed.result("held_out", role=f"{method} {share} seed 1") / "held_out.json"
            loss = json.loads(held_out.read_text(encoding="utf-8"))["texts"]["stories"]["loss"]
            cell = results["perplexity"]["stories"][method][place]
            assert cell == {"mean": math.exp(loss["value"]), "interval": [math.exp(end) for end in loss["interval"]]}
            assert f"{cell['mean']:.2f}" in page
    # 12 steps of 32 sequences are 11,904 tokens, and 1.92 passes over half of the corpus
    for words in (*results["verdict"], "One training seed was run", results["columns"][0], "11.9\u00a0K", ">1.9<"):
        assert words in page, words
    rows = re.findall(r"^\| (\w+) +\|(.*)\|$", resumed.finished.output, re.MULTILINE)
    assert [name for name, _ in rows] == ["sft", "slim"]


def test_students_learn_their_share_of_one_store(resumed: Pretrained):
    for share, rows in (("0.5", 200), ("1.0", 400)):
        manifests = [
            json.loads((resumed.result("train", role=f"{method} {share} seed 1") / "manifest.json").read_bytes())
            for method in ("sft", "slim")
        ]
        assert [of["settings"]["rows"] for of in manifests] == [rows, rows]
        assert ["knowledge" in of["inputs"] for of in manifests] == [False, True]
    assert len(list(resumed.store.glob("artifacts/knowledge-*"))) == 1


def test_its_figures_are_tracked(resumed: Pretrained):
    client = MlflowClient(f"sqlite:///{resumed.store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    found = json.loads((resumed.report / "results.json").read_text(encoding="utf-8"))
    assert parent.data.metrics["perplexity/teacher/stories"] == found["teacher"]["stories"]["mean"]
    for share, cell in zip(("0.5", "1.0"), found["perplexity"]["stories"]["slim"], strict=True):
        assert parent.data.metrics[f"perplexity/slim/{share}/stories"] == cell["mean"]


def test_short_held_out_text_stops_it_before_anything_is_trained(resumed: Pretrained, tmp_path: Path):
    (tmp_path / "short.txt").write_text("A fox.", encoding="utf-8")
    changes = {"evaluation.held_out.stories.path": tmp_path / "short.txt", "runtime.store": tmp_path / "store"}
    arguments = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    config, server = resumed.finished.config, str(PREFECT_API_URL.value())
    refused = run_flow("pretrain", config, str(config), *arguments, PREFECT_API_URL=server)
    assert refused.status == 1
    assert re.search(r"short\.txt has \d+ tokens, less than one block of 32", refused.log)
    assert "train teacher: started" not in refused.log
