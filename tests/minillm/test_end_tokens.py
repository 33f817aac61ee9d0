"""Several tokens end a response: where they come from, what they end, and what an exported model says about them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from minillm.config import Template
from minillm.errors import StageError
from minillm.models.causal_lm import load_model, save_model
from minillm.models.shared_tokenizer import load_shared_tokenizer, named_end_tokens, share
from minillm.stages.reading import TOKENIZER, Prepare
from minillm.stages.training import Respond, Train
from minillm.worker.progress import read_metrics
from tests.minillm.direct import PLAIN, alone, encode, generation, read_lines, run_stage, write_lines
from tests.minillm.jobs import WORDS, make_constant_model, make_examples, make_tokenizer, run_worker, write_job
from tests.minillm.trainings import MAX_TOKENS, method

SING = 2 + WORDS.index("sing")
NOW = 2 + WORDS.index("now")
BASES = {
    "none of its own": {"bos_token_id": 0, "eos_token_id": 0},
    "like Llama 3": {"eos_token_id": 0, "do_sample": True, "temperature": 0.6, "top_p": 0.6, "repetition_penalty": 1.3},
    "names no end token": {"bos_token_id": 0},
    "names another": {"eos_token_id": 7, "forced_eos_token_id": 7, "max_length": 6, "suppress_tokens": [SING]},
}


def checkpoint(folder: Path, settings: dict[str, Any] | None, **config: Any) -> Path:
    """Write a model that says "sing" half of the time, with its tokenizer and its own generation settings."""
    make_constant_model(folder, {"sing": 0.5})
    make_tokenizer(folder)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**fields, **config}), encoding="utf-8")
    (folder / "generation_config.json").unlink()
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def prepare(folder: Path, **models: Path) -> tuple[Path, dict[str, float | str]]:
    stage = Prepare(
        tokenizer=next(iter(models)),
        template=Template(**PLAIN),
        models=dict.fromkeys(models),
        max_tokens=MAX_TOKENS,
        generation_tokens=MAX_TOKENS,
    )
    return run_stage(stage, dict(models), folder)


@pytest.fixture(scope="module")
def singing(tmp_path_factory) -> dict[str, Path]:
    """Write a checkpoint that names "sing" as its second end token, and run `prepare` on it."""
    folder = tmp_path_factory.mktemp("singing")
    model = checkpoint(folder / "model", {"eos_token_id": [0, SING]})
    return {"model": model, "tokenizer": prepare(folder / "run", model=model)[0] / TOKENIZER}


def test_the_end_tokens_are_those_of_the_tokenizers_model(tmp_path, capsys):
    teacher = checkpoint(tmp_path / "teacher", {"eos_token_id": [SING, 999]}, eos_token_id=5)
    student = checkpoint(tmp_path / "student", None, eos_token_id=NOW)
    output, summary = prepare(tmp_path / "run", teacher=teacher, student=student)
    assert load_shared_tokenizer(output / TOKENIZER).ends == (0, SING), "the tokenizer's EOS, then what its model names"
    assert summary["end_tokens"] == "<|endoftext|> sing"
    told = capsys.readouterr().out
    assert "teacher names end tokens that the tokenizer does not have: [999]" in told
    assert f"ends with '<|endoftext|>' (0) or 'sing' ({SING}, an ordinary token)\n" in told
    assert "student also ends with 'now', which ends nothing here; data.end_tokens can add it" in told


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"config.json": {"eos_token_id": 5}}, [5]),
        ({"config.json": {"text_config": {"eos_token_id": [5, 6]}}}, [5, 6]),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": [7, 8]}}, [7, 8]),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": None}}, [5]),
    ],
)
def test_a_checkpoint_names_what_transformers_would_end_with(tmp_path, files, expected):
    for name, fields in files.items():
        (tmp_path / name).write_text(json.dumps(fields), encoding="utf-8")
    assert named_end_tokens(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"eos_token_id": "</s>"}', r"generation_config\.json: eos_token_id is '</s>'; give a token id, or a list"),
        ('{"eos_token_id": [1, true]}', r"eos_token_id is \[1, True\]"),
        ("[0]", r"generation_config\.json cannot be read as a JSON object"),
        ("{", r"generation_config\.json cannot be read as a JSON object"),
    ],
)
def test_what_is_no_token_id_is_refused(tmp_path, text, message):
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(StageError, match=message):
        named_end_tokens(tmp_path)


def test_the_teachers_responses_for_seqkd_end_with_any_of_them(singing, tmp_path):
    inputs = {**singing, "examples": make_examples(tmp_path / "examples")}
    with alone():
        output, _ = run_stage(
            Respond(role="teacher", max_tokens=60, precision="float32", seed=1), inputs, tmp_path / "run"
        )
    responses = pd.read_parquet(output / "responses.parquet")
    assert {ids[-1] for ids in responses["response_ids"]} == {0, SING}, "the end that was drawn is learnt"
    assert not any({0, SING} & set(ids[:-1]) for ids in responses["response_ids"])
    assert not any("sing" in turn["text"] for (turn,) in responses["turns"])


def test_answers_end_with_any_of_them_and_are_texts_without_it(singing, tmp_path):
    rows = [{"instruction": "say", "context": "", "references": ["a"], "topic": ""}] * 20
    benchmarks = write_lines(tmp_path / "benchmarks" / "words.jsonl", rows).parent
    prompts = encode(tmp_path / "prompts", singing["tokenizer"], benchmarks)
    with alone():
        output, _ = run_stage(generation(60), {**singing, "prompts": prompts}, tmp_path / "run")
    lines = read_lines(output / "words.jsonl")
    ids = pd.read_parquet(output / "words.parquet")["response_ids"]
    assert all(line["finished"] for line in lines)
    assert {of[-1] for of in ids} == {0, SING}
    assert [line["response"].split() for line in lines] == [[WORDS[t - 2] for t in of[:-1] if t > 1] for of in ids]


def test_rollouts_end_with_any_of_them_and_the_trained_model_says_so(singing, tmp_path):
    stage = Train(
        role="minillm", method=method("minillm", steps=4), architecture=None, max_tokens=MAX_TOKENS,
        validation_prompts=2, seed=1,
    )  # fmt: skip
    assert stage.method.policy is not None
    policy = stage.method.policy.model_copy(update={"plain_text_coefficient": 0.0})
    stage = stage.model_copy(update={"method": stage.method.model_copy(update={"policy": policy})})
    inputs = {"tokenizer": singing["tokenizer"], "examples": make_examples(tmp_path / "examples")}
    inputs |= {"weights": singing["model"], "teacher": singing["model"]}
    done = run_worker(write_job(tmp_path, stage, inputs))
    assert done.returncode == 0, done.stdout
    values = {name: value for _, name, value in read_metrics(tmp_path / "output" / "metrics.jsonl")}
    # half of the tokens are "sing", and rows have room for at least ten: with EOS alone, 3 % would end at each token
    assert values["train/finished"] > 0.9
    assert values["train/response_tokens"] < 4
    settings = GenerationConfig.from_pretrained(tmp_path / "output" / "model")
    assert settings.eos_token_id == [0, SING]


@pytest.mark.parametrize("name", BASES)
def test_a_saved_model_generates_as_this_run_does_whatever_its_base_said(name, tmp_path):
    base = checkpoint(tmp_path / "base", BASES[name], repetition_penalty=1.3)
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path / "tokenizer"))
    save_model(load_model(base), share(tokenizer, [NOW]), tmp_path / "saved")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.manual_seed(0)
    asked = torch.full((400, 1), 3)
    found = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=60)[:, 1:].tolist()
    lengths = [next((i for i, token in enumerate(row, start=1) if token in (0, NOW)), 60) for row in found]
    drawn = [token for row, length in zip(found, lengths, strict=True) for token in row[:length]]
    assert len(set(drawn)) == 16
    assert drawn.count(SING) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert sum(lengths) / 400 == pytest.approx(15, abs=2.5), "two tokens of 1/30 each end a response"
