"""A study's result on scores that are made here: its numbers checked by hand, and its page."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from minillm.errors import StageError
from minillm.evaluation.uncertainty import adjusted, estimate, paired_estimate
from minillm.files import write_json, write_json_lines
from minillm.reporting.study import study_report as study
from minillm.reporting.study.measures import measure_table
from minillm.reporting.study.variants import StudyComparison
from minillm.stages.base import Job
from minillm.stages.pages import StudyReport
from tests.minillm.test_report import Page

SEEDS = (1, 2)
DOLLY = {  # by training seed: the score of four prompts
    "whole": [[10.0, 20.0, 30.0, 40.0], [12.0, 22.0, 32.0, 42.0]],
    "off": [[9.0, 18.0, 29.0, 38.0], [11.0, 20.0, 31.0, 40.0]],  # 1, 2, 1, 2 below, with either seed
    "noise": [[20.0, 10.0, 40.0, 30.0], [2.0, 32.0, 22.0, 52.0]],  # nothing on the mean
}
VICUNA = {name: [[score + 10 for score in row[:3]] for row in rows] for name, rows in DOLLY.items()}


def write_run(folder: Path, dolly: list[float], vicuna: list[float], level: float) -> tuple[Path, Path]:
    """Write the artifacts `score` and `train` of one run, with two generation seeds around the score."""
    score, train = folder / "score", folder / "train"
    for path in (score, train):
        path.mkdir(parents=True)
    rows = [
        {"benchmark": name, "index": index, "seed": seed, "score": (value + shift) / 100, "headline": True}
        for name, values in (("dolly", dolly), ("vicuna", vicuna))
        for index, value in enumerate(values)
        for seed, shift in ((10, -1.0), (20, 1.0))
    ]
    short = {"benchmark": "dolly", "index": 99, "seed": 10, "score": 1.0, "headline": False}
    pd.DataFrame([*rows, short]).to_parquet(score / "scores.parquet")
    table = {"benchmarks": {name: {"metric": "rouge_l"} for name in ("dolly", "vicuna")}}
    (score / "table.json").write_text(json.dumps(table), encoding="utf-8")
    lines = [
        {"time": 0.0, "step": step, "total": 29, "metrics": {"train/reverse_kl": level / step}} for step in range(1, 30)
    ]
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return score, train


def make_job(folder: Path, variants: tuple[str, ...] = tuple(DOLLY), **changes: Any) -> Job:
    inputs = {}
    for name in variants:
        for place, seed in enumerate(SEEDS):
            paths = write_run(folder / name / str(seed), DOLLY[name][place], VICUNA[name][place], seed)
            inputs |= {f"score/{name}/{seed}": paths[0], f"train/{name}/{seed}": paths[1]}
    settings = {
        "name": "mixing",
        "base": "configs/quickstart.yaml",
        "method": "minillm",
        "changes": {name: () if name == "whole" else (f"{name}=<0>",) for name in variants},
        "baseline": "whole",
        "seeds": SEEDS,
        "parameter": None,
        "points": None,
        "missing": (),
    }
    (folder / "output").mkdir()
    stage = StudyReport(**(settings | changes))
    return Job(kind="study", settings=stage, inputs=inputs, output=folder / "output", work=folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float | str]]:
    job = make_job(tmp_path_factory.mktemp("study"))
    return job.output, study.run(job)


def test_the_table_has_the_means_over_prompts_seeds_and_benchmarks(finished):
    _, summary = finished
    # DOLLY's whole: 25 and 27 with the two seeds; VICUNA's: 30 and 32.
    assert summary["score/whole/dolly"] == pytest.approx(26.0)
    assert summary["score/whole/vicuna"] == pytest.approx(31.0)
    assert summary["score/whole/mean"] == pytest.approx(28.5)
    assert summary["difference/off/dolly"] == pytest.approx(-1.5)
    assert summary["difference/off/vicuna"] == pytest.approx(-4 / 3)
    assert summary["difference/off/mean"] == pytest.approx(-(1.5 + 4 / 3) / 2)
    assert "difference/whole/mean" not in summary


def test_differences_are_paired_by_prompt_and_seed_and_adjusted_for_all(finished):
    output, _ = finished
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))["differences"]
    below = [[-1.0, -2.0, -1.0, -2.0]] * 2, [[-1.0, -2.0, -1.0]] * 2
    noise = [[10.0, -10.0, 10.0, -10.0], [-10.0, 10.0, -10.0, 10.0]], [[10.0, -10.0, 10.0], [-10.0, 10.0, -10.0]]
    dolly, vicuna, no_dolly, no_vicuna = (np.array(of) for of in (*below, *noise))
    direct = [paired_estimate(of) for of in ([dolly], [vicuna], [dolly, vicuna])]
    direct += [paired_estimate(of) for of in ([no_dolly], [no_vicuna], [no_dolly, no_vicuna])]
    assert [(d["method"], d["benchmark"]) for d in found] == [
        (variant, column) for variant in ("off", "noise") for column in ("dolly", "vicuna", "mean")
    ]
    assert [d["value"] for d in found] == pytest.approx([e.value for e in direct])
    assert [d["low"] for d in found] == pytest.approx([e.low for e in direct])
    assert [d["p_value"] for d in found] == pytest.approx(adjusted([e.p_value for e in direct], ["one"] * 6))
    # The two seeds agree exactly. off's mean of −1, −2, −1, −2 has the standard error √(1/3)/2 = 0.2887, and the t
    # value with 3 degrees of freedom is 3.182.
    assert found[0]["low"] == pytest.approx(-1.5 - 3.182 * 0.2887, abs=1e-3)


def test_the_verdict_tells_apart_only_what_can_be(finished):
    output, _ = finished
    first, *groups = json.loads((output / "results.json").read_text(encoding="utf-8"))["verdict"]
    assert re.match(r"whole: Rouge-L 28\.5 \[", first)
    assert [text.split(":")[0] for text in groups] == ["Below whole", "Not distinguishable from it"]
    assert "off (−1.4 [" in groups[0]
    assert "noise (" in groups[1]


def test_the_csv_has_every_seed(finished):
    output, _ = finished
    table = pd.read_csv(output / "results.csv").set_index(["variant", "benchmark"])
    assert table.loc[("whole", "dolly"), ["seed_1", "seed_2"]].tolist() == pytest.approx([25.0, 27.0])
    assert table.loc[("off", "mean"), ["seed_1", "seed_2"]].tolist() == pytest.approx([26.0833333, 28.0833333])
    assert np.isnan(table.loc[("whole", "dolly"), "difference"])


def test_the_page_is_whole_and_loads_nothing(finished):
    output, _ = finished
    text = (output / "study.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert "off=<0>" in page.cells
    assert text.count("<svg") == 2, "differences and reverse KL"
    assert "\\mathdefault" not in text
    shown = (output / "study.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[.*\]\((.*)\)", shown):
        assert (output / name).stat().st_size > 1000
    assert re.search(r"^\| off +\| +26\.1 \| +28\.1 \|$", shown, re.MULTILINE)
    glance = json.loads((output / "results.json").read_text(encoding="utf-8"))["glance"]
    assert "![" not in glance
    assert "| off" in glance


def test_curves_are_means_over_the_seeds(tmp_path: Path):
    job = make_job(tmp_path, ("whole",))
    assert isinstance(job.settings, StudyReport)
    curves = study.training_curves(job, job.settings)
    assert curves["whole"]["train/reverse_kl"].head(2).to_dict() == {1: 1.5, 2: 0.75}


def log_points(job: Job[StudyReport], seed: int, points: dict[int, float]) -> None:
    """Let a seed have logged one metric, x, at these steps."""
    lines = [
        json.dumps({"time": 0.0, "step": step, "total": 9, "metrics": {"x": value}}) for step, value in points.items()
    ]
    (job.inputs[f"train/whole/{seed}"] / "metrics.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_figures_beside_the_scores_are_means_over_seeds(tmp_path: Path):
    job = make_job(tmp_path, ("whole", "off"))
    for variant, seed, reverse in (("whole", 1, 0.25), ("whole", 2, 0.75), ("off", 1, 0.5)):
        path = tmp_path / "exposure" / variant / str(seed)
        path.mkdir(parents=True)
        per_token = {"reverse_kl": {"value": reverse}, "forward_kl": {"value": 1.0}}
        write_json(path / "exposure.json", {"per_token": per_token, "exaccerr": {"value": [0.0, 20.0 * seed]}})
        job.inputs[f"exposure/{variant}/{seed}"] = path
    for seed in SEEDS:
        points = [
            {"time": 0.0, "step": 3, "total": 5, "metrics": {"train/tokens": 1000.0 * seed}},
            {"time": 0.0, "step": 5, "total": 5, "metrics": {"train/tokens": 500.0}},
        ]
        write_json_lines(job.inputs[f"train/whole/{seed}"] / "metrics.jsonl", points)
        held = {"time": 0.0, "step": 1, "metrics": {"system/worker_memory_usage_megabytes": 1500.0 + seed}}
        write_json_lines(job.inputs[f"train/whole/{seed}"] / "system_metrics.jsonl", [held])
    table = measure_table(job.inputs, ["whole", "off"], SEEDS)
    # Tokens: 3 steps of 1,000 and 2 of 500 with one seed, 3 of 2,000 and 2 of 500 with the other.
    assert table.loc["whole"].to_dict() == {
        "reverse KL": "0.500 ± 0.354",
        "forward KL": "1.000 ± 0.000",
        "ExAccErr, %": "30 ± 14",
        "thousand tokens": "6 ± 2",
        "memory, GB": "1.50 ± 0.00",
    }
    assert set(table.loc["off"]) == {"–"}, "not measured with all seeds"
    study.run(job)
    assert re.search(
        r"^\| \*?\*?whole.*0\.500 ± 0\.354", (job.output / "study.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_seeds_without_a_step_in_common_have_no_curve(tmp_path: Path):
    job = make_job(tmp_path, ("whole",))
    log_points(job, 1, {1: 1.0, 2: 2.0})
    log_points(job, 2, {3: 3.0})
    assert study.training_curves(job, job.settings) == {"whole": {}}
    study.run(job)
    assert (job.output / "study.html").exists()


def test_seeds_that_logged_at_other_steps_are_joined_by_straight_lines(tmp_path: Path):
    job = make_job(tmp_path, ("whole",))
    log_points(job, 1, {2: 10.0, 6: 30.0, 9: 0.0})
    log_points(job, 2, {4: 1.0, 6: 3.0, 8: 5.0})
    curve = study.training_curves(job, job.settings)["whole"]["x"]
    assert curve.to_dict() == {4: (20 + 1) / 2, 6: (30 + 3) / 2, 8: (10 + 5) / 2}


def test_a_number_has_a_curve_and_missing_runs_are_named(tmp_path: Path):
    points = {"whole": 0.0, "off": 0.5}
    job = make_job(tmp_path, ("whole", "off"), parameter="methods.x.mix", points=points, missing=("noise, seed 2",))
    study.run(job)
    assert (job.output / "plots" / "parameter.png").exists()
    assert "because runs failed: noise, seed 2" in (job.output / "study.md").read_text(encoding="utf-8")


def test_only_prompts_that_count_in_every_run_are_compared(tmp_path: Path):
    job = make_job(tmp_path, ("whole", "off"))
    path = job.inputs["score/off/2"] / "scores.parquet"
    scores = pd.read_parquet(path)
    scores.query("benchmark != 'dolly' or index != 3").to_parquet(path)
    assert isinstance(job.settings, StudyReport)
    read = study.read_scores(job, job.settings)
    assert read["whole"]["dolly"].tolist() == [[10.0, 20.0, 30.0], [12.0, 22.0, 32.0]]
    scores.assign(index=scores["index"] + 50).to_parquet(path)
    with pytest.raises(StageError, match="benchmark dolly: no prompt counts in every run"):
        study.read_scores(job, job.settings)


def test_one_seed_has_the_intervals_over_prompts():
    one = {name: {"dolly": np.array(rows[:1])} for name, rows in DOLLY.items()}
    comparison = StudyComparison(one, "whole", "Rouge-L")
    assert comparison.estimates["whole", "mean"] == estimate([np.array(DOLLY["whole"][0])])
