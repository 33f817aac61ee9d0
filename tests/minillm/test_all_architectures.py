"""Every causal language model that transformers has, in its default configuration."""

import re

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from docs.architectures import PAGE, verdict


@pytest.mark.long
def test_every_architecture_serves_as_the_page_says_or_is_refused_by_name():
    reasons = {name: verdict(name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    refused = {name: reason for name, reason in reasons.items() if reason is not None}
    assert all(re.match(r"model\b", reason) for reason in refused.values())
    written = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " in written:
        told = re.search(r"\d+ serve: (.*)\.\n", written)
        assert told is not None
        assert sorted(set(reasons) - set(refused)) == told[1].split(", ")
