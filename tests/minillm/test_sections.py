"""Calibration and held-out text on the page show what was measured, and nothing if nothing was."""

import json
from pathlib import Path

import numpy as np
import pytest

from minillm.evaluation import held_out
from minillm.evaluation.calibration import measure
from minillm.evaluation.likelihood import Likelihood
from minillm.evaluation.uncertainty import FEW_PROMPTS, WITHOUT_INTERVAL
from minillm.reporting import report
from minillm.reporting.plots import looks
from minillm.reporting.sections.base import doubt_words
from minillm.reporting.sections.calibration import calibration_section, points
from minillm.reporting.sections.held_out import held_out_section
from minillm.stages.base import Job
from minillm.stages.pages import Report
from tests.minillm.test_report import ROLES, make_inputs, read_page

SURE = {"teacher": 0.6, "sft": 0.9, "kd": 0.8, "minillm": 0.7}
"""Probability that each model gives its choice; each is right in three of five."""
LOSS = {"teacher": 1.0, "sft": 1.5, "kd": 2.0, "minillm": 2.5}


def make_measured(folder: Path) -> dict[str, Path]:
    """Make the results of both stages, by the names of the report's inputs."""
    inputs = {}
    for role, sure in SURE.items():
        lines = [
            {"answer": 0, "predicted": int(number % 5 > 2), "probabilities": [sure, 1 - sure]} for number in range(50)
        ]
        asked = folder / f"calibration-{role}"
        asked.mkdir(parents=True)
        (asked / "calibration.json").write_text(json.dumps({"arc": measure(lines)}), encoding="utf-8")
        log_prob = np.full(10, -LOSS[role])
        found = held_out.measure([Likelihood(log_prob, np.array([-LOSS[role]] * 5 + [-0.5] * 5))] * 4, [19, 20, 20, 21])
        scored = folder / f"held-out-{role}"
        scored.mkdir()
        sets = {"benchmarks": {"dolly": found}, "texts": {"story": found}}
        (scored / "held_out.json").write_text(json.dumps(sets), encoding="utf-8")
        inputs |= {f"calibration/{role}": asked, f"held_out/{role}": scored}
    return inputs


def test_tables_say_what_was_measured(tmp_path):
    inputs, look = make_measured(tmp_path), looks(ROLES)
    asked, scored = calibration_section(inputs, ROLES, look), held_out_section(inputs, ROLES, look)
    assert asked is not None
    assert scored is not None
    accuracy, error = asked.tables.values()
    assert list(accuracy.index) == list(ROLES)
    assert accuracy.loc["sft", "arc"].startswith("60.0 [")
    assert [cell.split()[0] for cell in error["arc"]] == ["0.000", "0.300", "0.200", "0.100"]
    loss, per_byte, perplexity, next_token = scored.tables.values()
    assert list(loss.columns) == ["dolly", "story"]
    assert loss.loc["kd", "story"] == "2.000", "the same in every text"
    assert per_byte.loc["kd", "story"].startswith("1.443 ["), "10 tokens of 2 nats in 20 bytes"
    assert perplexity.loc["kd", "story"] == "7.389"
    # half of the tokens are the likeliest, at e^−2; for the others, the likeliest is at e^−0.5
    assert next_token.loc["kd", "dolly"].startswith(f"{((1 - np.exp(-2)) + np.exp(-0.5)) / 2:.3f}")
    assert list(asked.figures) == ["calibration-arc"]
    assert list(scored.figures) == ["held-out-story"], "benchmarks are in the tables"


def test_a_diagram_has_a_point_per_bin_that_holds_enough():
    sums = np.zeros((3, 15))
    sums[:, 2], sums[:, 7], sums[:, 14] = (40, 6, 10), (1, 0.5, 1), (159, 151.05, 159)
    sure, right, share = points(sums.tolist())
    assert sure == pytest.approx([0.15, 0.95])
    assert right == pytest.approx([0.25, 1])
    assert share == pytest.approx([0.2, 0.795])


def test_without_a_measurement_there_is_no_section():
    assert calibration_section({}, ROLES, looks(ROLES)) is None
    assert held_out_section({}, ROLES, looks(ROLES)) is None


def test_the_page_shows_both(tmp_path):
    inputs = make_inputs(tmp_path / "run") | make_measured(tmp_path / "measured")
    output = tmp_path / "report"
    output.mkdir()
    settings = Report(name="toy-run", roles=ROLES, benchmarks=("dolly", "sni"), models={}, planned={})
    report.run(Job(kind="report", settings=settings, inputs=inputs, output=output, work=tmp_path))
    page, markdown = read_page(output), (output / "report.md").read_text(encoding="utf-8")
    assert "2.000" in page.cells
    assert "Where no interval is given, none can be computed" in page.text
    assert "## Calibration" in markdown
    assert markdown.index("## Calibration") < markdown.index("## Held-out text") < markdown.index("## Models")
    for name in ("calibration-arc", "held-out-story"):
        assert f"plots/{name}.png" in markdown
        assert (output / "plots" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert ">minillm 0.100</text>" in (output / "report.html").read_text(encoding="utf-8")


def test_missing_and_short_intervals_are_told():
    assert doubt_words([1.0, 2.0], [10, 500]) == ""
    assert doubt_words([1.0, None], [2, 500]) == f" {WITHOUT_INTERVAL}"
    assert doubt_words([1.0, 2.0], [9]) == f" {FEW_PROMPTS}"
