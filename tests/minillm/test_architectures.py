"""Small GPT-2, OPT, LLaMA, GPT-J, Mistral, Qwen2 and Gemma 3 models pass through every stage that uses a model."""

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from minillm.config import Benchmark, Evaluation, Method, Source, Template
from minillm.stages.base import Stage
from minillm.stages.measuring import Exposure, Score
from minillm.stages.reading import TOKENIZER, Prepare
from minillm.stages.training import Respond, Train
from minillm.worker.progress import read_metrics
from tests.minillm.direct import PLAIN, encode, generation, run_stage, write_lines
from tests.minillm.jobs import WORDS, make_examples, make_plain_text, make_tokenizer, run_worker, write_job
from tests.minillm.models_in_small import ARCHITECTURES, VARIED, small_model

MAX_TOKENS = 16
TEMPLATE = Template(**PLAIN)
TRAINING = {"learning_rate": 1e-3, "batch_size": 8, "steps": 4, "evaluate_every": 2}


def worker(folder: Path, stage: Stage, inputs: dict[str, Path]) -> Path:
    done = run_worker(write_job(folder, stage, inputs))
    assert done.returncode == 0, done.stdout
    return folder / "output"


def train(role: str, **method: object) -> Train:
    return Train(
        role=role,
        method=Method.model_validate({"training": TRAINING, **method}),
        architecture=None,
        max_tokens=MAX_TOKENS,
        validation_prompts=4,
        seed=1,
    )


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3, some in windows"])
def test_every_stage(architecture, tmp_path):
    # Embedding tables of different sizes under one tokenizer, as in Qwen2.5.
    models = {"teacher": tmp_path / "teacher", "student": tmp_path / "student"}
    for rows, (role, folder) in zip((24, 20), models.items(), strict=True):
        small_model(architecture, vocabulary=rows, seed=len(role)).save_pretrained(folder)
    # Kept apart from the models: in a Qwen2 directory, transformers would load the words with Qwen2's tokenizer class.
    words = make_tokenizer(tmp_path / "words")
    prepare = Prepare(
        tokenizer="tokenizer.from",
        template=TEMPLATE,
        models=dict.fromkeys(models),
        max_tokens=MAX_TOKENS,
        generation_tokens=MAX_TOKENS,
    )
    prepared, _ = run_stage(prepare, {**models, "tokenizer.from": words}, tmp_path / "prepare")
    tokenizer = prepared / TOKENIZER
    examples = make_examples(tmp_path / "examples")
    text = {"tokenizer": tokenizer, "examples": examples}

    sft = train("teacher", text="dataset", divergence="cross_entropy")
    teacher = worker(tmp_path / "sft", sft, {**text, "weights": models["teacher"]})
    policy = {"rollouts": 8, "inner_epochs": 2}
    minillm = train("minillm", text="rollouts", divergence="reverse_kl", start="initial", policy=policy)
    plain_text = make_plain_text(tmp_path / "plain_text", MAX_TOKENS)
    given = {**text, "weights": models["student"], "teacher": teacher, "plain_text": plain_text}
    student = worker(tmp_path / "minillm", minillm, given)
    names = {name for _, name, _ in read_metrics(student / "metrics.jsonl")}
    assert {"train/loss", "train/reverse_kl", "train/plain_text", "valid/loss", "valid/rouge_l"} <= names
    loaded = AutoModelForCausalLM.from_pretrained(student / "model")
    assert loaded.config.model_type == (ARCHITECTURES | VARIED)[architecture]["model_type"]
    assert loaded.get_input_embeddings().num_embeddings == 20

    respond = Respond(role="teacher", max_tokens=MAX_TOKENS, precision="bfloat16", seed=1)
    answers = worker(tmp_path / "respond", respond, {**text, "model": teacher})
    responses = pd.read_parquet(answers / "responses.parquet")
    assert len(responses) == len(pd.read_parquet(examples / "train.parquet"))
    assert all(max(ids) < 2 + len(WORDS) for ids in responses["response_ids"]), "padded rows are never sampled"

    questions = [
        {"index": i, "instruction": w, "context": "", "references": [w], "topic": ""} for i, w in enumerate(WORDS)
    ]
    benchmarks = write_lines(tmp_path / "benchmarks" / "words.jsonl", questions).parent
    prompts = encode(tmp_path / "prompts", tokenizer, benchmarks)
    asked = {"tokenizer": tokenizer, "prompts": prompts}
    generated = worker(tmp_path / "generate", generation(MAX_TOKENS), {"model": student, **asked})
    evaluation = Evaluation(benchmarks={"words": Benchmark(source=Source(path="words.jsonl"))}, seeds=(10, 20))
    score = Score(role="minillm", seeds=evaluation.seeds, benchmarks=evaluation.benchmarks)
    scored, summary = run_stage(
        score, {"responses": generated, "benchmarks": benchmarks, "tokenizer": tokenizer}, tmp_path / "score"
    )
    assert len(pd.read_parquet(scored / "scores.parquet")) == 2 * len(WORDS)
    assert 0 <= float(summary["rouge_l/words"]) <= 100

    exposure = Exposure(role="minillm", benchmark="words", max_length=8, prompts=None, precision="bfloat16")
    given = {"student": student, "teacher": teacher, "tokenizer": tokenizer}
    same = {"responses": generated, "teacher_responses": generated}
    measured = json.loads(
        (worker(tmp_path / "exposure", exposure, given | same) / "exposure.json").read_text(encoding="utf-8")
    )
    assert measured["student_text"]["value"][-1] > 0.01
    assert measured["exaccerr"]["value"] == pytest.approx([0.0] * 8, abs=1e-3), "one text on both sides"
