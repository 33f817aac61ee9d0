"""Evaluation of existing models from the command line: from a hub and from directories."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL
from transformers import AutoTokenizer

from minillm.models.tokenizers_bpe import train_bpe
from tests.flows.test_distill import Finished, run_flow
from tests.minillm.hub import COMMIT, Hub, serve
from tests.minillm.jobs import make_tokenizer
from tests.minillm.models_in_small import small_model
from tests.small import write_rows

REFERENCES = ["red", "red cat", "red cat runs", "red cat runs and", "red cat runs and sleeps"]
STAGES = {"read benchmarks", "encode prompts", "generation cost", "report"} | {
    f"{stage} {name}" for stage in ("prepare", "generate", "score", "diversity") for name in ("gpt2", "words", "copy")
}


@dataclass(frozen=True)
class Place:
    """Folder of the models and their configuration, and address of the hub that has one of them."""

    folder: Path
    hub: str

    @property
    def models(self) -> list[str]:
        """One model from the hub, and another in two directories."""
        return ["tiny/gpt2", f"words={self.folder / 'llama'}", str(self.folder / "copy")]

    def evaluate(self, *arguments: str) -> Finished:
        config = self.folder / "evaluation.yaml"
        environment = {"HF_ENDPOINT": self.hub, "HF_HOME": str(self.folder / "cache")}
        environment["PREFECT_API_URL"] = str(PREFECT_API_URL.value())
        return run_flow("evaluation", config, *arguments, "--config", str(config), **environment)

    def score(self, name: str) -> Path:
        """Return the score artifact of a model."""
        folders = (self.folder / "store" / "artifacts").glob("score-*")
        return next(f for f in folders if json.loads((f / "table.json").read_text(encoding="utf-8"))["role"] == name)


def gpt2(folder: Path) -> dict[str, bytes]:
    """Make the files of a small GPT-2 whose tokenizer knows no words and splits text into letters."""
    tokenizer = train_bpe(["zz"], 257)
    tokenizer.save_pretrained(folder)
    small_model("gpt2", vocabulary=len(tokenizer)).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def llama(folder: Path) -> Path:
    """Write a small Llama with a tokenizer of whole words."""
    small_model("llama", vocabulary=20).save_pretrained(folder)
    return make_tokenizer(folder)


def configuration(folder: Path) -> dict:
    """Return a configuration with short prompts, of which those with references of ten tokens or more count."""
    benchmark = {"source": {"path": "benchmark.jsonl"}, "min_reference_tokens": 10, "length_subsets": True}
    template = {"with_context": "{instruction} {context}\n", "without_context": "{instruction}\n"}
    return {
        "name": "small-evaluation",
        "data": {"directory": str(folder), "template": template, "max_prompt_tokens": 20, "max_tokens": 40},
        "evaluation": {"benchmarks": {"dolly": benchmark}, "seeds": [10, 20], "long_prompts": "cut"},
        "runtime": {"store": str(folder / "store"), "threads": 1, "parallel_stages": 2},
    }


@pytest.fixture(scope="module")
def place(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("evaluation")
    write_rows(folder / "benchmark.jsonl", [{"instruction": f"say {text}", "output": text} for text in REFERENCES])
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(configuration(folder)), encoding="utf-8")
    shutil.copytree(llama(folder / "llama"), folder / "copy")
    with serve(Hub({("models", "tiny/gpt2"): gpt2(folder / "gpt2")})) as hub:
        yield Place(folder, hub.endpoint)


@pytest.fixture(scope="module")
def first(place: Place) -> Finished:
    return place.evaluate(*place.models)


def report(finished: Finished) -> Path:
    """Return the folder of the report that the console names."""
    (path,) = re.findall(r"^report +(\S+)$", finished.output, re.MULTILINE)
    return Path(path).parent


def test_models_of_different_tokenizers_and_architectures_stand_side_by_side(first: Finished, place: Place):
    assert first.status == 0, first.log
    assert {stage for stage, state in first.states().items() if state in ("Completed", "Cached")} == {
        *STAGES,
        "evaluate",
    }
    rows = re.findall(r"^\| *(\w+) *\|(.*)\|$", first.output, re.MULTILINE)
    assert [name for name, _ in rows] == ["model", "gpt2", "words", "copy"]
    results = json.loads((report(first) / "results.json").read_text(encoding="utf-8"))
    for name, cells in rows[1:]:
        table = json.loads((place.score(name) / "table.json").read_text(encoding="utf-8"))
        assert results["tables"][name] == table
        score = table["mean"]["score"]
        assert f"{score['mean']:.1f} ± {score['spread']:.1f}" in cells
    assert "AutoModelForCausalLM" not in first.output, "nothing was exported"


def test_reference_lengths_count_tokens_of_the_first_model_for_all(first: Finished, place: Place):
    by_letters = AutoTokenizer.from_pretrained(place.folder / "gpt2")
    lengths = [len(by_letters(text)["input_ids"]) for text in REFERENCES]
    assert 0 < sum(length >= 10 for length in lengths) < len(lengths)
    for name in ("gpt2", "words", "copy"):
        scores = pd.read_parquet(place.score(name) / "scores.parquet").query("seed == 10").sort_values("index")
        assert scores["reference_tokens"].tolist() == lengths


def test_the_same_weights_under_two_names_are_prepared_and_generated_from_once(first: Finished, place: Place):
    states = first.states()
    for stage in ("prepare", "generate"):
        assert sorted(states[f"{stage} {name}"] for name in ("words", "copy")) == ["Cached", "Completed"]
    tables = json.loads((report(first) / "results.json").read_text(encoding="utf-8"))["tables"]
    assert tables["words"]["benchmarks"] == tables["copy"]["benchmarks"]
    client = MlflowClient(f"sqlite:///{place.folder / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small-evaluation")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    generated = {str(r.info.run_name): r.data.tags["cached"] for r in runs if r.data.tags.get("stage") == "generate"}
    assert sorted(generated) == ["generate copy", "generate gpt2", "generate words"], "a tracked run each"
    assert sorted(generated.values()) == ["false", "false", "true"]


def test_the_page_speaks_of_models_and_of_nothing_that_was_not_done(first: Finished):
    page = (report(first) / "report.html").read_text(encoding="utf-8")
    for words in ("The best model is", "tiny/gpt2, revision main", COMMIT[:12], "in tokens of\ngpt2"):
        assert words in page, words
    assert (
        "that count: dolly 3 of 5. Those whose beginning was cut to fit: gpt2: dolly 2; words: none; copy: none."
        in page
    )
    for words in ("student", "teacher", "method", "Rows kept", "Training"):
        assert words not in page, words
    parts = re.findall(r"<h([23])>(.*?)</h\1>(.*?)(?=<h[23]>|</body>)", page, re.S)
    assert [title for _, title, text in parts if not re.sub(r"<[^>]*>", "", text).strip()] == []


def test_a_second_run_computes_nothing_even_where_the_hub_is_away(first: Finished, place: Place):
    again = replace(place, hub="http://127.0.0.1:9").evaluate(*place.models)
    assert again.status == 0, again.log
    assert {stage for stage, state in again.states().items() if state == "Cached"} == STAGES
    assert report(again) == report(first)


def test_one_model_alone_is_compared_with_nothing(first: Finished, place: Place):
    alone = place.evaluate("tiny/gpt2")
    assert alone.status == 0, alone.log
    computed = {stage for stage, state in alone.states().items() if state == "Completed"}
    assert computed == {"generation cost", "report", "evaluate"}
    text = (report(alone) / "report.md").read_text(encoding="utf-8")
    assert re.search(r"^\*\*gpt2: Rouge-L \d+\.\d ± \d+\.\d \(on dolly\)\.\*\*$", text, re.MULTILINE)
    for words in ("rank", "best", "each other", "student", "of gpt2's"):
        assert words not in text, words


def test_models_that_cannot_serve_are_refused_before_any_generation(first: Finished, place: Place):
    endless, short = llama(place.folder / "endless"), llama(place.folder / "short")
    change(endless / "tokenizer_config.json", eos_token=None)
    change(short / "config.json", max_position_embeddings=32)
    models = ["tiny/gpt2", str(endless), str(short), "tiny/missing"]
    refused = place.evaluate(*models, "--set", "evaluation.seeds=[30]")
    assert refused.status == 1
    assert not re.search(r"generate gpt2: (started|Finished in state (Completed|Cached))", refused.log)
    for reason in (
        "prepare endless: model: the tokenizer in .*endless has no end-of-sequence token",
        r"prepare short: model \(llama\) sees at most 32 tokens",
        r"prepare missing: there is no model 'tiny/missing' \(revision main\)",
    ):
        assert re.search(reason, refused.log), (reason, refused.log)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def test_what_cannot_run_is_refused_before_anything_starts(place: Place):
    refused = place.evaluate("./nowhere")
    assert refused.status == 2
    assert re.search(r"models\.nowhere: .*nowhere does not exist", refused.log)
    assert "server" not in refused.log
