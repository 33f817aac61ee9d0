"""A divergence is a function and a name in the configuration; everything else follows, or one of these fails.

Its value and gradient: test_vocabulary. Its model card and the title of its curve: test_model_card.
"""

import inspect
import re
from typing import get_args

import pytest

from minillm.config import DIVERGENCES, Divergence, Method
from minillm.objectives import divergences
from tests.minillm.direct import ROOT

TRAINING = {"learning_rate": 1e-3, "batch_size": 8, "steps": 10, "evaluate_every": 5}
METHOD_PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
COMPARED = [name for name in get_args(Divergence) if name not in ("cross_entropy", "preference")]


@pytest.mark.parametrize("name", COMPARED)
def test_a_divergence_reads_the_parameter_that_the_configuration_lets_one_set(name):
    function = inspect.signature(getattr(divergences, name))
    own = [key for key, parameter in function.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    method = Method.model_validate({"text": "dataset", "divergence": name, "training": TRAINING})
    assert own == ([method.parameter] if method.parameter else [])
    filled = divergences.functional(name, **method.parameters)
    assert len(inspect.signature(filled).bind(None, None, None).args) == 3


def test_an_unknown_divergence_is_none():
    with pytest.raises(KeyError, match="sideways_kl"):
        divergences.functional("sideways_kl", skew=0.3)


@pytest.mark.parametrize("name", COMPARED)
def test_the_page_on_the_method_defines_every_divergence(name):
    title = DIVERGENCES[name].removesuffix(" divergence")
    assert f"| {title} | `{name}` |" in METHOD_PAGE


def test_the_notation_table_names_what_is_in_the_code():
    table = METHOD_PAGE.split("## 1 Notation")[1].split("## 2 ")[0]
    rows = [row.replace("\\|", "").split("|") for row in table.splitlines() if row.startswith("|")]
    names = [name for _, _, cell, *_ in rows for name in re.findall(r"`(\w+)\*?`", cell)]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "minillm").rglob("*.py"))
    assert len(names) >= 7
    assert [name for name in names if name not in code] == []
