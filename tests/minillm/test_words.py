"""Figures are written in one way, by one module."""

import re

import pytest

from minillm.words import (
    counted,
    duration,
    interval,
    number,
    p_statement,
    p_value,
    percent,
    percent_more,
    short_count,
    span,
    with_interval,
    with_spread,
)
from tests.conftest import ROOT

HAND_MADE = {
    "a minus sign": r"""replace\(["']-["'], ?["']−""",
    "a p-value": r"""\bp ?= ?\{|<[ \\u0a]*0\.001""",
    "an interval": r"""\[\{[^{}]*:[+,]*\.\df\}, ?""",
    "an interval without a form": r"""\[\{\}, \{\}\]|\{[^{}]*:\.\df\} to \{""",
    "a signed figure": r"""\{[^{}]*:\+[,.\d]*f\}""",
    "a percentage": r"""\{[^{}]*:\+?\.\d%\}""",
}
LEFT = {
    ("minillm/data/rows.py", "a percentage"),  # a limit of the configuration, in an error
}


@pytest.mark.parametrize("kind", HAND_MADE)
def test_nothing_else_writes_figures_by_hand(kind: str):
    paths = [*(ROOT / "minillm").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
    assert len(paths) > 150
    found = {
        str(path.relative_to(ROOT))
        for path in paths
        if path != ROOT / "minillm" / "words.py" and re.search(HAND_MADE[kind], path.read_text(encoding="utf-8"))
    }
    assert found == {name for name, left in LEFT if left == kind}


def test_the_patterns_find_what_they_are_for():
    samples = {
        "a minus sign": 'f"{x:+.1f}".replace("-", "−")',
        "a p-value": 'f"p = {x:.3f}" if x >= 0.001 else "p < 0.001"',
        "an interval": 'f"[{low:+.1f}, {high:+.1f}]"',
        "an interval without a form": '"{} [{}, {}]".format(*figures)',
        "a signed figure": 'f"{gain:+.1f}"',
        "a percentage": 'f"{share:.0%}"',
    }
    for kind, sample in samples.items():
        assert re.search(HAND_MADE[kind], sample)


def test_signs_intervals_and_spreads():
    assert [number(x) for x in (-0.51, 0.0, 1234.56)] == ["−0.5", "0.0", "1,234.6"]
    assert number(0.5, 2, signed=True) == "+0.50"
    assert interval((-1.0, 2.0)) == "[−1.0, 2.0]"
    assert interval((None, None)) == ""
    assert with_interval(0.5, (-1.0, 2.0), signed=True) == "+0.5 [−1.0, +2.0]"
    assert with_interval(0.5, (None, None), 3) == "0.500"
    assert with_interval(0.5, (), 0) == "0"
    assert with_spread(50.24, 1.26) == "50.2 ± 1.3"
    assert with_spread(0.25, None, 3) == "0.250"
    assert [span(555.0, 679.2), span(2, 2)] == ["555–679", "2"]


def test_p_values_in_tables_and_sentences():
    assert [p_value(p) for p in (None, 0.0004, 0.001, 0.0126, 1.0)] == ["unknown", "< 0.001", "0.001", "0.013", "1.000"]
    assert [p_statement(p) for p in (None, 0.0004, 0.04)] == ["p unknown", "p < 0.001", "p = 0.040"]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (999, "999"),
        (34_200, "34.2\u00a0K"),
        (833_000, "833\u00a0K"),
        (999_900, "1\u00a0M"),
        (1_557_611_200, "1.56\u00a0B"),
    ],
)
def test_large_counts_are_written_with_three_digits(count: int, words: str):
    assert short_count(count) == words


def test_small_shares_keep_their_digits():
    shares = (0.861, 0.0413, 0.0035, 1.024)
    assert [percent(share) for share in shares] == ["86\u00a0%", "4.1\u00a0%", "0.35\u00a0%", "102\u00a0%"]
    assert [percent_more(ratio) for ratio in (1.12, 0.92)] == ["+12\u00a0%", "−8\u00a0%"]


def test_counts_and_durations():
    assert [counted(n, "prompt") for n in (0, 1, 1200)] == ["0 prompts", "1 prompt", "1,200 prompts"]
    assert duration(262.4) == "4 minutes and 22 seconds"
    assert duration(7503.4) == "2 hours and 5 minutes"


def test_no_template_writes_figures():
    for path in (ROOT / "minillm" / "reporting" / "templates").iterdir():
        assert not re.search(r"\|\s*(round|format)\b", path.read_text(encoding="utf-8")), path.name
