"""Benchmark prompts as tokens, and the limit on their length."""

import json
from typing import Any

import pytest

from minillm.config import Template
from minillm.data.encoding import load_prompts
from minillm.data.prompts import fit_prompts
from minillm.errors import StageError
from minillm.generation.answering import make_requests
from minillm.stages.reading import EncodedPrompts
from tests.minillm.direct import PLAIN, encode, generation, run_stage, write_lines
from tests.minillm.jobs import WORDS, make_tokenizer
from tests.minillm.templates import save_chat_tokenizer

PROMPTS = [[1, 5, 6], [1, 5, 6, 7, 8, 9], [1, 2]]


def settings(long_prompts: Any) -> EncodedPrompts:
    return EncodedPrompts(template=Template(**PLAIN), max_prompt_tokens=4, long_prompts=long_prompts, answer_tokens=4)


def test_a_prompt_longer_than_the_limit_is_refused_by_name_with_the_remedy():
    with pytest.raises(StageError) as refusal:
        fit_prompts("benchmark sni", PROMPTS, settings("refuse"), [])
    message = str(refusal.value)
    assert "benchmark sni: 1 prompts are longer than 4 tokens, the first is number 1 with 6" in message
    assert "evaluation.max_prompt_tokens" in message
    assert "evaluation.long_prompts: cut" in message


def test_a_cut_prompt_keeps_its_end_and_its_bos_and_is_counted():
    assert fit_prompts("benchmark sni", PROMPTS, settings("cut"), []) == ([[1, 5, 6], [6, 7, 8, 9], [1, 2]], 1)
    assert fit_prompts("benchmark sni", PROMPTS, settings("cut"), [1]) == ([[1, 5, 6], [1, 7, 8, 9], [1, 2]], 1)


def test_a_response_has_the_room_that_its_prompt_leaves_up_to_its_own_limit():
    stages = generation(max_tokens=9), generation(max_tokens=9, max_response_tokens=4)
    asked = [make_requests(PROMPTS, stage, 0) for stage in stages]
    assert [[request.max_tokens for request in requests[:3]] for requests in asked] == [[6, 3, 7], [4, 3, 4]]


def test_a_prompt_that_begins_with_a_chat_template_is_never_cut():
    with pytest.raises(StageError, match=r"number 1 with 6; .* cut would drop what the chat template begins with"):
        fit_prompts("benchmark sni", PROMPTS, settings("cut"), None)
    assert fit_prompts("benchmark sni", [[1, 2]], settings("cut"), None) == ([[1, 2]], 0)


def test_the_stage_keeps_the_order_of_rows_and_counts_cuts_by_benchmark(tmp_path):
    benchmarks = {"b": ["the cat runs now", "red the cat runs now and blue"], "a": ["dog >"]}
    for name, texts in benchmarks.items():
        rows = [{"index": i, "instruction": text, "context": "", "references": ["x"]} for i, text in enumerate(texts)]
        write_lines(tmp_path / "benchmarks" / f"{name}.jsonl", rows)
    inputs = {"tokenizer": make_tokenizer(tmp_path / "tokenizer"), "benchmarks": tmp_path / "benchmarks"}
    output, summary = run_stage(settings("cut"), inputs, tmp_path / "run")
    known = {word: 2 + number for number, word in enumerate(WORDS)}
    unknown = 1
    assert load_prompts(output) == {
        "a": [[known["dog"], unknown]],
        "b": [
            [known["the"], known["cat"], known["runs"], unknown],
            [known["runs"], known["now"], known["and"], unknown],
        ],
    }
    assert json.loads((output / "cut_prompts.json").read_text(encoding="utf-8")) == {"a": 0, "b": 1}
    assert summary == {"cut_prompts/a": 0.0, "cut_prompts/b": 1.0}


def test_a_question_that_the_chat_template_refuses_is_named_by_benchmark_and_number(tmp_path):
    rows = [{"index": i, "instruction": text, "context": "", "references": ["x"]} for i, text in enumerate(["a", "b"])]
    write_lines(tmp_path / "benchmarks" / "asked.jsonl", rows)
    form = "{{ raise_exception('no b') if messages[0].content == 'b' else messages[0].content }}"
    tokenizer = save_chat_tokenizer(tmp_path / "tokenizer", form)
    with pytest.raises(StageError) as error:
        encode(tmp_path / "run", tokenizer, tmp_path / "benchmarks", template=Template())
    assert str(error.value) == (
        "benchmark asked, prompt 1 (counted from 0), which begins 'b': the chat template refuses it: no b"
    )
