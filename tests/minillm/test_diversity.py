import pandas as pd
import pytest

from minillm.evaluation.diversity import distinct, measure, self_overlap
from minillm.stages.measuring import Diversity
from tests.minillm.direct import run_stage, write_lines


def test_distinct_n_grams_by_hand():
    texts = ["the cat and the dog", "the cat"]
    # the cat and the dog the cat: 4 of 7; the-cat cat-and and-the the-dog the-cat: 4 of 5; no n-gram crosses texts
    assert distinct(texts, 1) == pytest.approx(100 * 4 / 7)
    assert distinct(texts, 2) == pytest.approx(100 * 4 / 5)
    assert distinct(texts, 4) == 100.0
    assert distinct(["ha ha ha ha ha"], 4) == 50.0
    assert distinct(["", "one"], 4) == 100.0


def test_self_overlap_by_hand():
    # a b c / a b d: two of three words in common, 2/3; x y / x y: 1; x y / z: 0 twice, so 1/3 for the second prompt
    assert self_overlap([["a b c", "a b d"], ["x y", "x y", "z"]]) == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)


def test_seeds_are_measured_apart():
    rows = [(0, 1, "a b c d"), (1, 1, "a b c d"), (0, 2, "e f g h"), (1, 2, "i j k l")]
    found = measure(pd.DataFrame(rows, columns=["index", "seed", "response"]))
    assert found["distinct_4"] == pytest.approx((50 + 100) / 2)
    assert found["self_overlap"] == 0.0
    assert "self_overlap" not in measure(pd.DataFrame(rows[:2], columns=["index", "seed", "response"]))


def test_the_stage_reports_each_benchmark_and_the_mean(tmp_path):
    for name, text in (("a", "x x x x x"), ("b", "p q r s t")):
        write_lines(tmp_path / "in" / f"{name}.jsonl", [{"index": 0, "seed": 1, "response": text}])
    _, summary = run_stage(Diversity(role="x", benchmarks=("a", "b")), {"responses": tmp_path / "in"}, tmp_path / "run")
    assert summary["distinct_4/a"] == 50.0
    assert summary["distinct_4/b"] == 100.0
    assert summary["distinct_4/mean"] == 75.0
