"""Pre-training on a teacher's corpus: rows of text, the corpus, training on a share of it, figures, and refusals."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from minillm.config.loading import load_pretrain
from minillm.data.plain_text import PlainText
from minillm.errors import ConfigError, StageError
from minillm.evaluation.uncertainty import Estimate
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.pretraining import corpus
from minillm.pretraining.report import Perplexities, budget_table, perplexity, verdict
from minillm.stages.measuring import HeldOut
from minillm.stages.pretraining import PretrainReport, SampleCorpus, TextRows
from minillm.stages.reading import HeldOutTexts
from minillm.streams import Purpose, generator, stream
from tests.conftest import ROOT
from tests.minillm.direct import alone, run_stage
from tests.minillm.jobs import make_tokenizer, run_worker, write_job
from tests.minillm.models_in_small import small_model
from tests.minillm.test_training import content
from tests.minillm.trainings import settings, text_inputs, weights

LENGTH = 12
CORPUS = SampleCorpus(sequences=10, validation_size=3, max_tokens=LENGTH, temperature=0.8, precision="float32", seed=4)


@pytest.fixture
def model(tmp_path: Path) -> dict[str, Path]:
    small_model("gpt2", vocabulary=16, spread=0.2).save_pretrained(tmp_path / "model")
    return {"model": tmp_path / "model", "tokenizer": make_tokenizer(tmp_path / "tokenizer")}


def read(output: Path) -> pd.DataFrame:
    parts = [pd.read_parquet(output / f"{name}.parquet") for name in ("responses", "validation")]
    assert list(map(len, parts)) == [10, 3]
    return pd.concat(parts)


def test_the_corpus_is_what_the_sampler_draws(model, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PART", 4)
    monkeypatch.setattr(corpus, "BEGINNINGS", 5)
    with alone():
        output, summary = run_stage(CORPUS, model, tmp_path, generation_batch_size=3)
    sampler = Sampler(small_model("gpt2", vocabulary=16, spread=0.2), (), 16, Decoding(temperature=0.8), batch_size=1)

    def drawn(number: int, first: int) -> list[int]:
        return sampler.sample([Request([first], LENGTH - 1, stream(Purpose.CORPUS, 4, number))])[0].tokens

    pool = [token for number in range(5) for token in drawn(number, 0)]
    firsts = generator(stream(Purpose.CORPUS_BEGINNINGS, 4)).choice(pool, 13).tolist()
    rows = read(output)
    assert [ids.tolist() for ids in rows["prompt_ids"]] == [[first] for first in firsts]
    assert [ids.tolist() for ids in rows["response_ids"]] == [drawn(5 + n, first) for n, first in enumerate(firsts)]
    assert any(0 in ids[:-1] for ids in rows["response_ids"]), "a document ends, and the sequence goes on"
    assert [turns[0]["end"] for turns in rows["turns"]] == [LENGTH - 1] * 13
    assert rows["row"].tolist() == list(range(13))
    assert summary == {"sequences": 10, "tokens": 110}


def test_two_processes_write_the_same_corpus(model, tmp_path):
    for processes in (1, 2):
        done = run_worker(write_job(tmp_path / str(processes), CORPUS, model), processes)
        assert done.returncode == 0, done.stdout
    assert read(tmp_path / "1" / "output").equals(read(tmp_path / "2" / "output"))
    assert len({content(tmp_path / name)["output/responses.parquet"] for name in "12"}) == 1


def test_training_on_a_share_sees_the_first_rows_and_no_others(inputs, tmp_path):
    whole = pd.read_parquet(inputs["examples"] / "train.parquet")
    (tmp_path / "cut").mkdir()
    whole.iloc[:19].to_parquet(tmp_path / "cut" / "train.parquet")
    pd.read_parquet(inputs["examples"] / "validation.parquet").to_parquet(tmp_path / "cut" / "validation.parquet")
    sft = settings("sft", steps=None, epochs=2)
    runs = {
        "share": (sft.model_copy(update={"rows": 19}), inputs["examples"]),
        "cut": (sft, tmp_path / "cut"),
        "whole": (sft, inputs["examples"]),
    }
    found = {}
    for name, (stage, examples) in runs.items():
        done = run_worker(write_job(tmp_path / name, stage, {**text_inputs(inputs), "examples": examples}))
        assert done.returncode == 0, done.stdout
        found[name] = weights(tmp_path / name)
    assert all(torch.equal(found["share"][name], of) for name, of in found["cut"].items())
    assert any(not torch.equal(found["share"][name], of) for name, of in found["whole"].items())


def test_plain_text_becomes_rows_of_its_blocks_the_last_for_validation(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text(
        "red blue green cat dog\nbird runs sleeps\nthe a and say sing\n", encoding="utf-8"
    )
    inputs = {"plain_text": tmp_path / "text.txt", "tokenizer": tokenizer}
    output, summary = run_stage(TextRows(block_tokens=4, validation_size=1), inputs, tmp_path / "rows")
    packed = [2, 3, 4, 5, 6, 0, 7, 8, 9, 0, 10, 11, 12, 13, 14, 0]
    rows = {part: pd.read_parquet(output / f"{part}.parquet") for part in ("train", "validation")}
    found = {
        part: [[*p, *r] for p, r in zip(of["prompt_ids"], of["response_ids"], strict=True)] for part, of in rows.items()
    }
    assert found == {"train": [packed[0:4], packed[4:8], packed[8:12]], "validation": [packed[12:16]]}
    assert [list(map(len, of["prompt_ids"])) for of in rows.values()] == [[1, 1, 1], [1]]
    assert summary == {"rows": 3, "tokens": 9}
    with pytest.raises(StageError, match=r"has 4 blocks of 4 tokens, and data\.validation_size takes 4; give a longer"):
        run_stage(TextRows(block_tokens=4, validation_size=4), inputs, tmp_path / "refused")


def test_held_out_text_is_measured_without_benchmarks(model, tmp_path):
    (tmp_path / "story.txt").write_text("red blue green cat dog bird runs sleeps\n" * 3, encoding="utf-8")
    sources = {"tokenizer": model["tokenizer"], "held_out/story": tmp_path / "story.txt"}
    texts, _ = run_stage(HeldOutTexts(texts=("story",), block_tokens=8), sources, tmp_path / "texts")
    stage = HeldOut(role="x", benchmarks=(), texts=("story",), precision="float32", max_tokens=8, block_tokens=8)
    stage.require_inputs([*model, "texts"])
    with alone():
        _, summary = run_stage(stage, {**model, "texts": texts}, tmp_path / "loss")
    packed = PlainText(texts / "story", 8)
    blocks = torch.tensor(np.stack([packed.block(number).astype(int) for number in range(len(packed))]))
    with torch.no_grad():
        loss = small_model("gpt2", vocabulary=16, spread=0.2)(blocks, labels=blocks).loss
    assert summary["perplexity/story"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_perplexity_and_its_interval_by_hand():
    one = perplexity([{"value": 1.0, "interval": [0.5, None]}])
    assert one == Estimate(math.exp(1.0), math.exp(0.5), None)
    # mean 2, standard error 1/√3, t(0.975; 2) = 4.302653
    found = perplexity([{"value": value, "interval": [0.0, 9.0]} for value in (1.0, 2.0, 3.0)])
    reach = 4.302653 / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(2))
    assert (found.low, found.high) == (pytest.approx(math.exp(2 - reach)), pytest.approx(math.exp(2 + reach)))
    two = perplexity([{"value": value, "interval": [0.0, 9.0]} for value in (1.0, 3.0)])
    assert two == Estimate(math.exp(2), None, None)


def test_the_verdict_names_the_smallest_share_that_is_enough():
    def curve(*values: float) -> list[Estimate]:
        return [Estimate(value, None, None) for value in values]

    found = Perplexities(
        Estimate(2.0, None, None), {"sft": curve(9, 5, 4), "kd": curve(6, 4.004, 3.5), "slim": curve(6, 5, 4.25)}
    )
    assert verdict("news", found, ["1 K (25 %)", "2 K (50 %)", "4 K (100 %)"]) == [
        "On news, sft has perplexity 4.00 after 4 K (100 %) tokens of the corpus; the teacher has 2.00.",
        "kd is as good after 2 K (50 %), with 4.00, the smallest such share.",
        "slim does not reach that: it has 4.25 after as many.",
    ]


def test_the_budget_by_hand():
    stage = PretrainReport(name="x", students=(), steps=(30, 30), batch_size=8)
    table = budget_table(stage, [40, 80], [440, 880], ["half", "all"])
    assert table.to_dict("index") == {
        "half": {
            "sequences": "40",
            "optimizer steps": "30",
            "tokens learnt, with repetitions": "2.64\u00a0K",
            "passes": "6.0",
        },
        "all": {
            "sequences": "80",
            "optimizer steps": "30",
            "tokens learnt, with repetitions": "2.64\u00a0K",
            "passes": "3.0",
        },
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["shares=[0.5,0.25]"], r"shares are \[0\.5, 0\.25\]; give rising ones above 0 and up to 1"),
        (["shares=[0.5,1.5]"], r"shares are \[0\.5, 1\.5\]; give rising"),
        (["shares=[0,1]"], "give rising ones above 0"),
        (["shares=[0.01,1]"], r"share 0\.01 of corpus\.sequences \(2048\) is 20 sequences, fewer than a batch \(32\)"),
        (["shares=[0.5,0.5001]"], r"share 0\.5001 .* is 1024 sequences, as many as the share before it"),
        (["methods.minillm={}"], "methods.minillm has text: rollouts, but students learn the corpus"),
        (
            ["methods.kd.teacher=live"],
            "methods.kd has teacher: live, but students here never load it; set teacher: top",
        ),
        (["methods.kd.divergence=reverse_kl"], "divergence reverse_kl needs the teacher's whole distribution"),
        (["methods.teacher={preset: sft}"], "methods: `teacher` is the name of the teacher itself; rename the method"),
        (["methods.kd.start=initial"], "methods.kd has start: initial, but students start from random weights"),
        (["methods.slim.training.steps=7"], "methods.slim.training.steps is 7, but the first method's is 400"),
        (["training.select_by=rouge_l"], "select_by is rouge_l, which needs answers to compare; set validation_loss"),
        (["teacher.training=null"], "teacher.training is null, but its weights are random"),
        (
            ["teacher.model={architecture: null, endpoint: {base_url: 'http://x/v1', model: m, max_requests: 1}}"],
            "teacher.model.endpoint: a teacher writes the corpus from its weights",
        ),
        (["data.plain_text=null"], "`teacher.training` and `data.plain_text` go together"),
        (["tokenizer=null"], "`tokenizer.train_vocabulary` and `teacher.model.architecture` go together"),
        (
            ["student.model.architecture=null", "student.model.path=configs"],
            "students start from random ones; give an `architecture`",
        ),
        (["evaluation.held_out=null"], "evaluation.held_out"),
        (["evaluation.held_out.stories.path=none.txt"], "evaluation.held_out.stories: .*none.txt does not exist"),
        (
            ["runtime.processes=3"],
            r"teacher\.training\.batch_size \(32\) and .* cannot be divided among the 3 processes",
        ),
    ],
)
def test_what_cannot_run_is_refused_by_name(changes, problem, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=problem):
        load_pretrain("configs/pretrain.yaml", changes)
