"""Promotion decides by scores that are made here who takes the champion's place."""

from pathlib import Path

import pandas as pd
import pytest

from minillm.config import Promotion
from minillm.config.loading import load_config
from minillm.errors import ConfigError
from minillm.reporting.comparing.runs import MethodOfRun
from minillm.reporting.promotion import decide, other_versions
from tests.minillm.test_runs import DIGESTS, PARAMS, a_run
from tests.small import write_experiment


def row(label: str, above: float, seed: int = 0, **changes: object) -> MethodOfRun:
    return MethodOfRun(a_run(label, {"minillm": above}, seed, **changes), "minillm")


def test_a_clear_gain_over_both_benchmarks_is_promoted_and_the_other_way_round_it_is_not():
    champion, candidate = row("champion", 0.0), row("candidate", 3.0, seed=1)
    up, down = decide(candidate, champion, Promotion()), decide(champion, candidate, Promotion())
    assert up.promoted
    assert up.reason.startswith("Rouge-L +")
    assert "against the champion, p < 0.001, 52 prompts of 2 benchmarks" in up.reason
    assert not down.promoted
    assert down.reason.endswith("it takes a gain with p < 0.05")


def test_every_way_in_which_the_two_were_measured_differently_is_named():
    champion = row("champion", 0.0)
    less = row("less", 9.0, data=DIGESTS | {"benchmark/dolly": "x" * 36})
    assert other_versions(less, champion) == ["dolly: its data differ (digest xxxxxxxxxxxx instead of dddddddddddd)"]
    exact = {"evaluation.benchmarks.dolly.metric": "exact_match"}
    assert other_versions(row("shown", 9.0, params=PARAMS | exact), champion) == [], "tables alone show that"
    topics = {"evaluation.benchmarks.vicuna.topics": "('law',)", "evaluation.top_k": "50"}
    assert other_versions(row("topics", 9.0, params=PARAMS | topics), champion) == [
        "vicuna: topics is ('law',) instead of –",
        "evaluation.top_k is 50 instead of –",
    ]
    some = row("some", 9.0)
    del some.run.scores["minillm"]["vicuna"]  # type: ignore[attr-defined]
    some.run.scores["minillm"]["dolly"] = some.scores["dolly"].iloc[1:]  # type: ignore[index]
    assert other_versions(some, champion) == [
        "dolly: different prompts count (39 instead of 40; see min_reference_tokens)",
        "vicuna: not measured in this run",
    ]
    assert other_versions(row("none", 9.0, scores={}), champion) == ["MLflow has no scores per prompt of this run"]
    refused = decide(some, champion, Promotion())
    assert not refused.promoted
    assert "begin anew by removing the alias `champion` in MLflow" in refused.reason


def test_a_single_prompt_tells_nothing():
    one = {"minillm": {"dolly": pd.Series([50.0])}}
    champion, candidate = row("champion", 0.0, scores=one), row("candidate", 0.0, scores=one)
    far = row("far", 0.0, scores={"minillm": {"dolly": pd.Series([99.0])}})
    for challenger, gain in ((candidate, "+0.0"), (far, "+49.0")):
        verdict = decide(challenger, champion, Promotion())
        assert verdict.reason == (
            f"Rouge-L {gain} against the champion, p = 1.000, 1 prompt of 1 benchmark; it takes a gain with p < 0.05"
        )


def test_a_method_that_is_no_student_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(ConfigError, match="is 'minilm', which is no student; did you mean"):
        load_config(write_experiment(tmp_path), ["promotion.method=minilm"])
