"""Benchmark prompts and the limit."""

import pytest

from minillm.config import Template
from minillm.data.prompts import fit_prompts
from minillm.errors import StageError
from minillm.stages import Generate

PROMPTS = [[1, 5, 6], [1, 5, 6, 7, 8, 9], [1, 2]]


def settings(long_prompts: str) -> Generate:
    return Generate.model_validate(
        {
            "template": Template(),
            "seeds": [10],
            "strategy": "sample",
            "temperature": 1.0,
            "top_k": None,
            "top_p": None,
            "precision": "float32",
            "no_repeat_ngram": None,
            "max_prompt_tokens": 4,
            "long_prompts": long_prompts,
            "max_tokens": 8,
        }
    )


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
