"""Excess accumulated error against its definition, with all responses of a small vocabulary, and as a stage."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from minillm.config import Template
from minillm.data.rows import evenly
from minillm.errors import StageError
from minillm.evaluation.exposure import (
    accumulated,
    curves_of,
    measure,
    prompt_means,
    read_texts,
    require_numbers,
    token_divergences,
    token_mean,
)
from minillm.models.batches import Limit, make_batch
from minillm.models.causal_lm import load_model
from minillm.stages.measuring import Exposure, Generate
from tests.minillm.direct import encode, generation, read_lines, write_lines
from tests.minillm.jobs import WORDS, make_tokenizer, run_worker, write_job
from tests.minillm.models_in_small import ARCHITECTURES, response_logits, small_model
from tests.minillm.tiny import EOS, LIMIT, VOCABULARY, every_response

PROMPT = [2, 1]
RESPONSES = [row[real].tolist() for row, real in zip(*every_response(), strict=True)]
MAX_TOKENS = 14


@pytest.fixture(scope="module")
def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return student and teacher in float64, with more embedding rows than the vocabulary has entries."""
    student, teacher = (small_model("gpt2", VOCABULARY + more, seed=more).double() for more in (2, 4))
    return student, teacher


def next_log_probs(model: PreTrainedModel, prefix: list[int], vocabulary: int = VOCABULARY) -> Tensor:
    """Return the law of the next token (V,) after a prompt and part of a response, from a plain forward pass."""
    with torch.no_grad():
        return model(torch.tensor([prefix])).logits[0, -1, :vocabulary].log_softmax(dim=-1)


def kl_after(student: PreTrainedModel, teacher: PreTrainedModel, prefix: list[int], vocabulary: int) -> float:
    """Return KL[p ‖ q] of the next token; with the models exchanged, KL[q ‖ p]."""
    of_teacher = next_log_probs(teacher, prefix, vocabulary)
    return float((of_teacher.exp() * (of_teacher - next_log_probs(student, prefix, vocabulary))).sum())


def log_prob(model: PreTrainedModel, response: list[int]) -> float:
    return sum(float(next_log_probs(model, PROMPT + response[:t])[token]) for t, token in enumerate(response))


def expected_sums(pair: tuple[PreTrainedModel, PreTrainedModel], author: PreTrainedModel) -> np.ndarray:
    """Compute Σ_{t≤l} E k_t for l = 1 … LIMIT with our code, every response weighted with its probability."""
    values = token_divergences(*pair, VOCABULARY, [PROMPT] * len(RESPONSES), RESPONSES, limit=Limit(rows=4))
    weights = np.exp([log_prob(author, response) for response in RESPONSES])
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    return weights @ accumulated([forward for forward, _ in values], LIMIT)


@pytest.mark.parametrize("author", [0, 1])
def test_sums_are_those_over_all_beginnings_of_responses(pair, author):
    beginnings = {tuple(response[:t]) for response in RESPONSES for t in range(len(response))}
    terms = np.zeros(LIMIT)
    for beginning in beginnings:
        said = np.exp(log_prob(pair[author], list(beginning)))
        terms[len(beginning)] += said * kl_after(pair[0], pair[1], PROMPT + list(beginning), VOCABULARY)
    assert len(beginnings) == 1 + 2 + 4  # nothing yet; one word; two words: after EOS nothing follows
    np.testing.assert_allclose(expected_sums(pair, pair[author]), terms.cumsum(), rtol=1e-12)


def test_on_the_teachers_text_they_end_at_the_divergence_of_whole_responses(pair):
    student, teacher = pair
    of_teacher = [log_prob(teacher, response) for response in RESPONSES]
    ratios = [p - log_prob(student, response) for p, response in zip(of_teacher, RESPONSES, strict=True)]
    assert expected_sums(pair, teacher)[-1] == pytest.approx(np.exp(of_teacher) @ ratios, rel=1e-12)


def test_nothing_said_means_no_excess_and_then_there_is_some(pair):
    student, teacher = pair
    along_student, along_teacher = expected_sums(pair, student), expected_sums(pair, teacher)
    of_student, of_teacher, excess = curves_of(np.stack([along_student, along_teacher]))
    assert of_student[0] == pytest.approx(of_teacher[0], rel=1e-12)
    assert of_student[0] == pytest.approx(kl_after(student, teacher, PROMPT, VOCABULARY), rel=1e-12)
    assert abs(excess[0]) < 1e-10
    assert abs(excess[-1]) > 1


def test_a_student_that_equals_its_teacher_has_none(pair):
    teacher = pair[1]
    assert not expected_sums((teacher, teacher), teacher).any()
    assert not curves_of(np.zeros((2, 3))).any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_and_batches_change_nothing_and_padded_rows_do_not_count(name):
    student, teacher = (
        small_model(name, vocabulary=12, seed=1).double(),
        small_model(name, vocabulary=16, seed=2).double(),
    )
    prompts = [[5, 6, 7, 8, 9], [3, 4], [5], [7, 7, 7]]
    responses = [[1, 0], [2, 3, 4, 5], [6, 7, 0], [8]]
    both_ways = ((student, teacher), (teacher, student))
    want = [
        [[kl_after(*pair, prompt + response[:t], 10) for t in range(len(response))] for pair in both_ways]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    for batch_size in (1, 3, 4):
        done: list[int] = []
        got = token_divergences(student, teacher, 10, prompts, responses, Limit(rows=batch_size), done.append)
        for values, wanted in zip(got, want, strict=True):
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5 if name == "gptj" else 1e-10)
        assert done[-1] == 4


def test_means_by_hand():
    sums = accumulated([np.array([1.0, 2.0]), np.array([3.0]), np.array([1.0, 1.0, 1.0])], 3)
    assert sums.tolist() == [[1, 3, 3], [3, 3, 3], [1, 2, 3]]
    assert accumulated([np.array([1.0, 2.0, 4.0])], 2).tolist() == [[1, 3]]
    assert prompt_means(sums, np.array([7, 4, 7])).tolist() == [[3, 1], [3, 2.5], [3, 3]]
    # means of 6 and 4 over the two prompts: 50 % more
    assert curves_of(np.array([[[4.0, 8.0]], [[2.0, 6.0]]]).mean(axis=-1)).tolist() == [[6], [4], [50]]


def test_the_mean_of_a_token_counts_the_tokens_of_all_chosen_responses():
    divergences = [np.array([1.0, 2.0]), np.array([9.0]), np.array([6.0]), np.array([3.0, 0.0])]
    found = token_mean(divergences, np.array([0, 0, 1, 2]), np.array([True, False, True, True]))
    assert found.value == pytest.approx((3 + 6 + 3) / (2 + 1 + 2))
    assert found.low is not None
    assert found.low < found.value


def test_divergences_that_are_no_number_are_refused():
    require_numbers([np.array([0.5, np.inf])], "sft")
    with pytest.raises(StageError, match="divergence of sft from its teacher is not a number on 1 of 2 responses"):
        require_numbers([np.array([0.5, np.nan]), np.array([0.1])], "sft")


def test_prompts_are_spread_evenly():
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly([3, 5], None) == evenly([3, 5], 9) == [3, 5]


def test_two_prompts_have_no_interval():
    assert measure(np.array([[3.0, 6.0]]), np.array([[2.0, 4.0]]))["exaccerr"] == {"value": [50.0]}


def test_intervals_leave_out_both_sums_of_a_prompt_together():
    """The divergence differs a hundredfold between prompts, but the excess is a tenth on each of them."""
    of_teacher = np.geomspace(1, 100, 40)[None]
    found = measure(1.1 * of_teacher, of_teacher)
    for end in ("value", "low", "high"):
        assert found["exaccerr"][end] == pytest.approx([10.0])
    assert found["teacher_text"]["high"][0] > 1.3 * found["teacher_text"]["value"][0]


QUESTIONS = {"words": WORDS, "few": WORDS[:3]}


def exposure(**changes: object) -> Exposure:
    fields = {"role": "minillm", "benchmark": "words", "max_length": 6, "prompts": None, "precision": "float32"}
    return Exposure.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make two models with embeddings of different sizes, a tokenizer, and both models' responses from workers."""
    folder = tmp_path_factory.mktemp("exposure")
    inputs = {"tokenizer": make_tokenizer(folder / "words"), "student": folder / "a", "teacher": folder / "b"}
    for name, words in QUESTIONS.items():
        rows = [
            {"index": i, "instruction": w, "context": "", "references": [w], "topic": ""} for i, w in enumerate(words)
        ]
        write_lines(folder / "benchmarks" / f"{name}.jsonl", rows)
    template = Template(with_context="{context} {instruction} now", without_context="say {instruction} now")
    prompts = encode(folder / "prompts", inputs["tokenizer"], folder / "benchmarks", 4, template)
    for rows, (role, made) in zip((20, 24), (("student", "responses"), ("teacher", "teacher_responses")), strict=True):
        small_model("gpt2", vocabulary=rows, seed=rows).save_pretrained(inputs[role])
        given = {"model": inputs[role], "tokenizer": inputs["tokenizer"], "prompts": prompts}
        inputs[made] = work(folder / made, generation(MAX_TOKENS), given)
    return inputs


def work(folder: Path, stage: Generate | Exposure, inputs: dict[str, Path], processes: int = 1) -> Path:
    done = run_worker(write_job(folder, stage, inputs, micro_batch_size=5), processes)
    assert done.returncode == 0, done.stdout
    return folder / "output"


def test_token_ids_are_stored_beside_the_texts(stored):
    tokenizer = AutoTokenizer.from_pretrained(stored["tokenizer"])
    ids = pd.read_parquet(stored["responses"] / "words.parquet")
    lines = read_lines(stored["responses"] / "words.jsonl")
    assert len(ids) == len(lines) == 2 * len(WORDS)
    for row, line in zip(ids.to_dict("records"), lines, strict=True):
        assert (row["index"], row["seed"], len(row["response_ids"])) == (line["index"], line["seed"], line["tokens"])
        assert (row["response_ids"][-1] == EOS) == line["finished"]
        assert tokenizer.decode(row["response_ids"], skip_special_tokens=True) == line["response"]
        assert tokenizer.decode(row["prompt_ids"]) == f"say {WORDS[row['index']]} now"
    assert any(line["finished"] for line in lines)
    assert not all(line["finished"] for line in lines)


def test_generation_goes_on_with_the_benchmark_it_was_killed_in(stored):
    output = stored["responses"]
    whole = {path.name: path.read_bytes() for path in output.iterdir() if path.name != "metrics.jsonl"}
    assert set(whole) == {"words.jsonl", "words.parquet", "few.jsonl", "few.parquet"}
    (output / "words.jsonl").unlink()
    (output / "words.parquet").write_bytes(b"half")
    untouched = (output / "few.parquet").stat().st_mtime_ns
    done = run_worker(output.parent / "job.json")
    assert done.returncode == 0, done.stdout
    assert {name: (output / name).read_bytes() for name in whole} == whole
    assert (output / "few.parquet").stat().st_mtime_ns == untouched


def naive_divergences(stored: dict[str, Path], name: str, length: int) -> Iterator[np.ndarray]:
    """Yield KL[p ‖ q] and KL[q ‖ p] (2, T), one response at a time, from the models' own logits."""
    student, teacher = (load_model(stored[role]).eval() for role in ("student", "teacher"))
    ids = pd.read_parquet(stored[name] / "words.parquet")
    for prompt, response in zip(ids["prompt_ids"], ids["response_ids"], strict=True):
        batch = make_batch([prompt], [response])
        with torch.no_grad():
            q, p = (response_logits(m, batch, 2 + len(WORDS))[0].double().log_softmax(-1) for m in (student, teacher))
        yield torch.stack([(p.exp() * (p - q)).sum(dim=-1), (q.exp() * (q - p)).sum(dim=-1)])[:, :length].numpy()


def mean_sums(divergences: list[np.ndarray], length: int) -> np.ndarray:
    """Return the mean over responses of Σ_{t≤l} k_t, (length,)."""
    return np.mean([np.pad(of[0], (0, length - len(of[0]))).cumsum() for of in divergences], axis=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_stage_is_what_its_definition_gives(stored, tmp_path, processes):
    output = work(tmp_path, exposure(), stored, processes)
    found = json.loads((output / "exposure.json").read_text(encoding="utf-8"))
    assert (found["benchmark"], found["prompts"], found["responses"]) == ("words", len(WORDS), 2 * len(WORDS))
    texts = [list(naive_divergences(stored, name, 6)) for name in ("responses", "teacher_responses")]
    of_student, of_teacher = (mean_sums(text, 6) for text in texts)
    assert found["student_text"]["value"] == pytest.approx(of_student.tolist(), rel=1e-4)
    assert found["teacher_text"]["value"] == pytest.approx(of_teacher.tolist(), rel=1e-4)
    excess = 100 * (of_student - of_teacher) / of_teacher
    assert found["exaccerr"]["value"] == pytest.approx(excess.tolist(), rel=1e-3, abs=1e-3)
    assert abs(excess[-1]) > 1
    assert found["exaccerr"]["low"][-1] < excess[-1] < found["exaccerr"]["high"][-1]
    on_its_own, on_the_teachers = (np.concatenate(text, axis=1).mean(axis=1) for text in texts)
    assert found["per_token"]["reverse_kl"]["value"] == pytest.approx(on_its_own[1], rel=1e-4)
    assert found["per_token"]["forward_kl"]["value"] == pytest.approx(on_the_teachers[0], rel=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["reverse_kl"] == found["per_token"]["reverse_kl"]["value"]
    assert summary["exaccerr"] == found["exaccerr"]["value"][-1]
    assert summary["exaccerr_low"] == found["exaccerr"]["low"][-1]
    progress = read_lines(output / "metrics.jsonl")[-1]
    assert progress["step"] == progress["total"] == 4 * len(WORDS)


def test_some_prompts_and_no_more_tokens_than_asked_for(stored):
    texts = read_texts(stored, exposure(prompts=5, max_length=3))
    assert sorted(set(texts["index"])) == [0, 2, 5, 8, 11]
    assert len(texts) == 2 * 2 * 5
    assert max(map(len, texts["response_ids"])) == 3


def test_an_unknown_benchmark_is_refused_with_those_there_are(stored):
    with pytest.raises(StageError, match=r"student's responses have no benchmark wrds, but few, words; name one"):
        read_texts(stored, exposure(benchmark="wrds"))


def test_models_that_were_not_asked_the_same_are_refused(stored, tmp_path):
    ids = pd.read_parquet(stored["responses"] / "words.parquet")
    prompts = zip(ids["index"], ids["prompt_ids"], strict=True)
    other_prompt = ids.assign(prompt_ids=[[*prompt, 5] if index == 9 else prompt for index, prompt in prompts])
    no_prompt = ids[ids["index"] != 9]
    no_seed = ids[(ids["index"] != 9) | (ids["seed"] != 20)]
    for changed in (other_prompt, no_prompt, no_seed):
        changed.to_parquet(tmp_path / "words.parquet")
        with pytest.raises(StageError, match="not asked the same, the first difference is at prompt 9; generate both"):
            read_texts({**stored, "responses": tmp_path}, exposure())
