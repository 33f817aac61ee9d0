"""The page of architectures says of each causal language model that transformers has what `prepare` says of it."""

import re

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from docs.architectures import NAME, PAGE, SERVES, in_short, verdict

A_FEW = ("bart", "bert", "bloom", "codegen", "cohere2", "gemma2", "gpt_neo", "granite", "mamba", "mistral", "olmoe")


def told() -> dict[str, str]:
    """Read the page: the verdict on each architecture."""
    found: dict[str, str] = {}
    rows = re.compile(r"^\| (?!verdict)(.+) \| (.+) \|$", re.MULTILINE)
    for short, names in rows.findall(PAGE.read_text(encoding="utf-8")):
        for name in names.split(", "):
            assert name not in found
            found[name] = short
    return found


def test_the_page_has_a_verdict_on_every_architecture():
    titled = (
        f"{len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)} causal language models of transformers {transformers.__version__},"
    )
    assert titled in PAGE.read_text(encoding="utf-8")
    assert set(told()) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert {name for name in A_FEW if told()[name] == SERVES} == set(A_FEW) - {"bart", "bert", "gpt_neo", "mamba"}


@pytest.mark.parametrize("name", A_FEW)
def test_a_few_are_as_the_page_says(name):
    assert in_short(verdict(name)) == told()[name]


@pytest.mark.long
def test_all_are_as_the_page_says_and_are_refused_by_name():
    reasons = {name: verdict(name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    assert all(reason is None or re.match(rf"{NAME}\b", reason) for reason in reasons.values())
    assert {name: in_short(reason) for name, reason in reasons.items()} == told()
