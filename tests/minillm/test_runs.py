"""Comparison of runs on scores that are made here: what differs, what is paired, what the page says."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minillm.evaluation.uncertainty import adjusted, paired_estimate
from minillm.reporting.comparing.page import difference_tables, looks, other_figures, run_verdict, score_table, write
from minillm.reporting.comparing.runs import Run, RunComparison, differing
from minillm.reporting.plots import COLOURS, score_figure
from tests.minillm.test_report import Page

PROMPTS = {"dolly": 40, "vicuna": 12}
DIGESTS = {f"benchmark/{name}": name[0] * 36 for name in PROMPTS}
PARAMS = {"name": "small", "methods.minillm.text": "rollouts", "methods.sft.text": "dataset"} | {
    f"evaluation.benchmarks.{name}.metric": "rouge_l" for name in PROMPTS
}
CURVES = {"valid/rouge_l": pd.Series({100: 20.0, 200: 21.0}), "train/loss": pd.Series({s: 1 / s for s in range(1, 50)})}


def by_prompt(benchmark: str, above: float, seed: int = 0) -> pd.Series:
    """Return scores whose prompts differ far more than methods do, with noise of the run's own."""
    levels = np.random.default_rng(len(benchmark)).uniform(20, 80, PROMPTS[benchmark])
    return pd.Series(levels + above + np.random.default_rng([seed, PROMPTS[benchmark]]).normal(0, 2, len(levels)))


def a_run(label: str, methods: Mapping[str, float], seed: int = 0, **changes: object) -> Run:
    """Make a run in which each method is above the prompts' levels by the given amount."""
    facts = {
        "label": label,
        "identity": label * 8,
        "experiment": "small",
        "experiment_id": "1",
        "page": f"http://mlflow/{label}",
        "flow_page": f"http://prefect/{label}",
        "status": "FINISHED",
        "started": 1.8e9,
        "params": PARAMS,
        "data": DIGESTS,
        "code": {"torch": "2.13.0"},
        "metrics": {},
        "scores": {name: {b: by_prompt(b, above, seed) for b in PROMPTS} for name, above in methods.items()},
        "curves": dict.fromkeys([*methods, "initial"], CURVES),
    }
    return Run(**(facts | changes))  # type: ignore[arg-type]


FIRST = a_run("first", {"teacher": 9.0, "sft": 0.0, "minillm": 4.0})
LATER = a_run("later", {"teacher": 9.0, "sft": 0.2, "minillm": 7.0}, seed=1)


def test_only_names_that_differ_are_listed_with_what_each_run_has():
    table = differing({"a": {"x": "1", "same": "s", "z": "0"}, "b": {"x": "2", "same": "s", "new": "n", "z": "0"}})
    assert table.to_dict("index") == {"new": {"a": "–", "b": "n"}, "x": {"a": "1", "b": "2"}}


def test_p_values_are_those_of_sign_flips_adjusted_for_all_differences():
    close = a_run("later", {"minillm": 4.5}, seed=1)
    comparison = RunComparison([FIRST, close])
    ours, theirs = close.scores["minillm"], FIRST.scores["minillm"]
    gaps = [(ours[name] - theirs[name]).to_numpy() for name in PROMPTS]
    direct = [paired_estimate([gaps[0]]), paired_estimate([gaps[1]]), paired_estimate(gaps)]
    found = list(comparison.differences.values())
    assert [d.benchmark for d in found] == ["dolly", "vicuna", "mean"]
    assert [d.value for d in found] == [e.value for e in direct]
    alone = [e.p_value for e in direct]
    assert [d.p_value for d in found] == adjusted(alone, ["between methods"] * 3)
    assert [d.p_value for d in found] != alone


def test_differences_of_teachers_are_a_family_of_their_own():
    students = {"sft": 0.0, "minillm": 4.0}
    runs = [a_run(label, {**students, "teacher": 9.0}, seed) for seed, label in enumerate(("one", "two"))]
    without = [a_run(label, students, seed) for seed, label in enumerate(("one", "two"))]
    found = RunComparison(runs, every_method=True).differences
    assert not found["two:teacher", "one:teacher", "mean"].clear
    for pair, alone in RunComparison(without, every_method=True).differences.items():
        assert found[pair].p_value == alone.p_value


def test_the_verdict_tells_what_can_be_told_apart():
    swinging = {name: scores + np.resize([1.0, -1.0], len(scores)) for name, scores in FIRST.scores["minillm"].items()}
    same = a_run("same", {}, scores={"minillm": swinging})
    higher, equal = run_verdict(RunComparison([FIRST, LATER, same]))
    assert re.fullmatch(r"later:minillm is above first:minillm: \+[23]\.\d \[\+.*\], p\s<\s0\.001\.", higher)
    assert re.match(r"same:minillm cannot be told apart from first:minillm: [+−]0\.0 \[−", equal)


def test_a_benchmark_whose_data_changed_is_not_paired_and_stays_out_of_the_mean():
    changed = a_run("later", {"minillm": 7.0}, seed=1, data=DIGESTS | {"benchmark/vicuna": "f" * 36})
    comparison = RunComparison([FIRST, changed])
    (table,) = difference_tables(comparison).values()
    assert list(table.loc["vicuna"]) == ["–", "–", "–", "not paired: its data are not the same"]
    assert comparison.shared == ["dolly"]
    assert table.loc["mean", "difference"] == table.loc["dolly", "difference"]
    assert score_table(comparison).loc["later:minillm", "vicuna"] != "–", "its own score still stands"
    nothing = a_run("later", {"minillm": 7.0}, seed=1, data={})
    (sentence,) = run_verdict(RunComparison([FIRST, nothing]))
    assert sentence == "later:minillm and first:minillm: no mean, because no benchmark is the same in all runs."


@pytest.mark.parametrize(
    ("field", "value", "paired"),
    [
        ("fields.references", "answers", False),
        ("topics", "('colours',)", False),
        ("metric", "exact_match", False),
        ("source.path", "elsewhere/dolly.jsonl", True),
        ("min_reference_tokens", "11", True),
    ],
)
def test_the_same_data_read_or_scored_in_another_way_are_another_benchmark(field: str, value: str, paired: bool):
    params = {**PARAMS, f"evaluation.benchmarks.dolly.{field}": value}
    comparison = RunComparison([FIRST, a_run("later", {"minillm": 7.0}, params=params)])
    (table,) = difference_tables(comparison).values()
    assert (table.loc["dolly", ""] == "not paired: it is read or scored in another way") == (not paired)
    headings = ["dolly, Exact match or Rouge-L", "vicuna, Rouge-L", "mean"] if field == "metric" else [*PROMPTS, "mean"]
    assert list(score_table(comparison).columns) == headings
    assert comparison.measure == ("Score" if field == "metric" else "Rouge-L")


def test_another_pattern_to_strip_is_another_way_of_scoring_and_an_unknown_setting_is_none():
    later = {name: LATER.scores["minillm"][name] for name in PROMPTS}
    for given, paired in ({"evaluation.strip": "<t>"}, False), ({"evaluation.benchmarks.dolly.pattern": "None"}, True):
        run = a_run("later", {}, scores={"minillm": later}, params={**PARAMS, "evaluation.strip": "None", **given})
        (table,) = difference_tables(RunComparison([FIRST, run])).values()
        assert (table.loc["dolly", ""] != "not paired: it is read or scored in another way") == paired


def test_a_benchmark_of_one_run_alone_and_prompts_that_count_in_one_run_alone():
    scores = {"minillm": {"dolly": LATER.scores["minillm"]["dolly"].iloc[:25]}}
    comparison = RunComparison([FIRST, a_run("later", {}, scores=scores)])
    (table,) = difference_tables(comparison).values()
    assert table.loc["vicuna", ""] == "not measured in later"
    turned = RunComparison(comparison.runs[::-1])
    (axes,) = score_figure(turned.cells, "Rouge-L", looks(turned)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dolly", "vicuna", "mean"]
    assert table.loc["dolly", "prompts"] == "25 of 40"
    direct = (scores["minillm"]["dolly"] - FIRST.scores["minillm"]["dolly"].iloc[:25]).mean()
    assert table.loc["dolly", "difference"].startswith(f"+{direct:.1f} [")


@pytest.mark.parametrize(
    ("methods", "main"),
    [
        ({"teacher": 9.0, "sft": 5.0, "minillm": 1.0}, "minillm"),
        ({"teacher": 9.0, "sft": 1.0, "kd": 2.0}, "kd"),
        ({"teacher": 9.0}, "teacher"),
    ],
)
def test_a_run_is_about_its_on_policy_method_or_else_its_best_student(methods: dict[str, float], main: str):
    assert a_run("x", methods).main_methods == [main]


def test_every_method_is_compared_with_itself_and_a_new_one_with_the_first_runs_main():
    later = a_run("later", {"teacher": 9.0, "sft": 0.2, "kd": 1.0})
    pairs = [(row.name, other.name) for row, other in RunComparison([FIRST, later], every_method=True).pairs]
    assert pairs == [("later:teacher", "first:teacher"), ("later:sft", "first:sft"), ("later:kd", "first:minillm")]


def test_a_run_without_scores_is_named_and_the_rest_of_it_compared(tmp_path: Path):
    failed = a_run("broken", {}, status="FAILED", params={**PARAMS, "seed": "2"}, curves={"sft": CURVES})
    words = write(RunComparison([FIRST, LATER, failed]), "http://mlflow/compare", tmp_path)
    assert "broken (failed) has no scores: only its configuration" in words
    assert re.search(r"^\| seed +\| +– +\| +– +\| +2 +\|$", words, re.MULTILINE)
    assert "broken:sft" in (tmp_path / "compare.html").read_text(encoding="utf-8"), "its curve"
    alone = write(RunComparison([failed, a_run("too", {}, status="KILLED")]), "http://x", tmp_path)
    assert "None of the runs has scores" in alone


def test_other_measurements_are_means_where_there_are_means():
    metrics = {"rouge_l/minillm/mean": 1.0, "distinct_4/minillm/dolly": 98.0, "distinct_4/minillm/mean": 97.5}
    metrics |= {"distinct_4/sft/mean": 50.0, "ece/minillm/sst2": 0.25}
    table = other_figures(RunComparison([a_run("first", {"minillm": 1.0}, metrics=metrics), LATER]))
    assert table.to_dict("index") == {
        "distinct_4/mean": {"first:minillm": "97.50", "later:minillm": "–"},
        "ece/sst2": {"first:minillm": "0.25", "later:minillm": "–"},
    }


def test_a_run_has_its_colour_and_a_method_its_marker():
    look = looks(RunComparison([FIRST, LATER], every_method=True))
    assert look["first:sft"][0] == look["first:minillm"][0] == COLOURS[0]
    assert look["later:sft"][0] == COLOURS[1]
    assert look["first:sft"][1] == look["later:sft"][1] != look["first:minillm"][1]


class LinkedPage(Page):
    """Links that only a person follows load nothing."""

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, [] if tag == "a" else attrs)


def test_the_page_is_whole_and_needs_nothing_else(tmp_path: Path):
    write(RunComparison([FIRST, LATER], every_method=True), 'http://mlflow/compare?runs=["a"]', tmp_path)
    html = (tmp_path / "compare.html").read_text(encoding="utf-8")
    page = LinkedPage()
    page.feed(html)
    assert page.open == []
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "#010203" not in html
    for link in ("http://mlflow/first", "http://prefect/later", "http://mlflow/compare?runs=%5B%22a%22%5D"):
        assert f'href="{link}"' in html
    assert page.text.count("No difference.") == 3
    svg = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(svg) == 3
    assert all(f">{run}:{method}</text>" in of for of in svg for run in ("first", "later") for method in FIRST.scores)
    markdown = (tmp_path / "compare.md").read_text(encoding="utf-8")
    drawn = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == {"benchmarks", "train-loss", "valid-rouge_l"}
    assert {f"](plots/{name}.png)" for name in drawn} <= set(re.findall(r"\]\(plots/[\w-]+\.png\)", markdown))


def test_a_value_of_several_lines_stays_in_its_cell(tmp_path: Path):
    template = a_run("later", {"minillm": 7.0}, params={**PARAMS, "data.template": "a|b\nc"})
    words = write(RunComparison([FIRST, template]), "http://x", tmp_path)
    assert re.search(r"^\| data\.template +\| +– +\| +a\\\|b↵c +\|$", words, re.MULTILINE)
