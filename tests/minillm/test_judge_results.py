"""Ratings become figures and a report, with numbers that can be checked by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minillm.judging.questions import ORDERS
from minillm.judging.results import difference, prompt_ratings, table
from minillm.reporting import report
from minillm.reporting.sections.judge import difference_table
from minillm.stages.base import Job
from minillm.stages.pages import Report
from tests.minillm.test_report import ROLES, make_inputs, read_page

Rows = list[tuple[str, int, int, int, float | None, float | None, float | None, float | None]]
"""Rows of benchmark, prompt, seed, sample, and the ratings of model and reference in each order, model first."""


def ratings(rows: Rows) -> pd.DataFrame:
    columns = ["benchmark", "index", "seed", "sample", "order", "model", "reference"]
    shown = [
        (*row[:4], order, *row[4 + 2 * number : 6 + 2 * number]) for row in rows for number, order in enumerate(ORDERS)
    ]
    return pd.DataFrame(shown, columns=columns).astype({"model": "float64", "reference": "float64"})


def test_samples_seeds_and_orders_weigh_the_same():
    rated = ratings(
        [
            ("a", 0, 1, 0, 8, 4, 6, 6),
            ("a", 0, 1, 1, 6, 4, 6, 6),  # seed 1: model (7 + 6) / 2, reference (4 + 6) / 2
            ("a", 0, 2, 0, 1, 9, 1, 9),
            ("a", 1, 1, 0, 5, 5, None, None),  # one order: left out
            ("a", 1, 2, 0, 2, 8, 4, 8),
        ]
    )
    prompts = prompt_ratings(rated)["a"]
    assert prompts["model"].to_dict() == {0: (6.5 + 1) / 2, 1: 3.0}
    assert prompts["reference"].to_dict() == {0: (5 + 9) / 2, 1: 8.0}
    row = table("x", rated)["benchmarks"]["a"]
    assert row["ratio"] == pytest.approx(100 * (3.75 + 3) / (7 + 8))
    # pairs: (0, 1) is ahead by 3 and 0, (0, 2) by −8 and −8, (1, 2) by −6 and −4
    assert row["order_agreement"] == pytest.approx(100 * 2 / 3)
    assert row["first_advantage"] == pytest.approx((3 + 0 - 2) / 3 / 2)


def many(model: list[int], reference: list[int], missing: int | None = None) -> pd.DataFrame:
    rows: Rows = [("a", i, 1, 0, m, r, m, r) for i, (m, r) in enumerate(zip(model, reference, strict=True))]
    return ratings([row if row[1] != missing else (*row[:4], None, None, row[6], row[7]) for row in rows])


def test_the_interval_of_a_ratio_agrees_with_the_delta_method():
    draw = np.random.default_rng(1)
    reference = draw.integers(5, 11, 400)
    model = np.clip(reference - draw.integers(0, 4, 400), 1, 10)
    low, high = table("x", many(model.tolist(), reference.tolist()))["mean"]["interval"]
    ratio = model.sum() / reference.sum()
    reach = 1.96 * np.std(model - ratio * reference, ddof=1) / np.sqrt(400) / reference.mean()
    assert (low, high) == (
        pytest.approx(100 * (ratio - reach), abs=12 * reach),
        pytest.approx(100 * (ratio + reach), abs=12 * reach),
    )


def test_differences_are_paired_and_on_the_prompts_that_both_have():
    hard = [2, 9] * 30
    better = [value + 1 for value in hard]
    first, second = prompt_ratings(many(better, [10] * 60, missing=0)), prompt_ratings(many(hard, [10] * 60))
    found = difference(first, second)
    assert found is not None
    assert (found.value, found.low) == (pytest.approx(10.0), None), "a point on every prompt says nothing of others"
    words = difference_table("minillm", {"minillm": first, "sft": second})
    assert words.loc["sft", "a"] == "+10.0 *"
    one = prompt_ratings(many([5], [5]))
    assert difference_table("x", {"x": one, "y": one}).loc["y", "a"] == "+0.0"
    assert difference(one, {"a": one["a"].iloc[:0]}) is None


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, Path]:
    """Make the inputs of a whole report, with ratings."""
    inputs = make_inputs(tmp_path)
    for place, role in enumerate(ROLES):
        rated = pd.concat(
            [many([9 - place, 7, 7], [9, 8, 8]), many([5, 9 - place, 9 - place], [9, 8, 8]).assign(benchmark="b")]
        )
        spent = {"questions": 8, "prompt_tokens": 12345, "completion_tokens": 96, "cost": 1.5}
        result = {**table(role, rated), "judge": "gpt", "answered_by": ["gpt-exactly"], "spent": spent}
        folder = inputs[f"judge/{role}"] = tmp_path / f"judge-{role}"
        folder.mkdir()
        rated.to_parquet(folder / "ratings.parquet")
        (folder / "judge.json").write_text(json.dumps(result), encoding="utf-8")
    return inputs


def test_the_report_shows_ratings_trust_and_cost(tmp_path, judged):
    output = tmp_path / "report"
    output.mkdir()
    stage = Report(name="toy", roles=ROLES, benchmarks=("dolly", "sni"), models={}, planned={})
    report.run(Job(kind="report", settings=stage, inputs=judged, output=output, work=tmp_path))
    page = read_page(output)
    assert "gpt-exactly rated each answer" in page.text
    teacher, minillm = 100 * 23 / 25, 100 * 20 / 25  # on a
    row = re.findall(
        r"^\| \**(teacher|minillm)\** +\|(.*)\|$", (output / "report.md").read_text(encoding="utf-8"), re.M
    )
    shown = {role: cells for role, cells in row if f"{teacher:.1f} [" in cells or f"{minillm:.1f} [" in cells}
    assert list(shown) == ["teacher", "minillm"]
    assert f"{(teacher + 100 * 23 / 25) / 2:.1f} [" in shown["teacher"], "the mean of both benchmarks"
    assert {"12,345", "1.5000", "+0.00", "100"} <= set(page.cells)
    assert "minillm minus each other method, points" in page.text
    assert (output / "plots" / "judge.png").exists()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
