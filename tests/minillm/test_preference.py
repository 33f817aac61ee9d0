"""The stage `preference` and its section of the report."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from minillm.annotation.judgements import Choice, Judgement, write_csv
from minillm.annotation.pairs import answers_digest, read_report
from minillm.errors import StageError
from minillm.evaluation import preference
from minillm.evaluation.preference import agreement, compare
from minillm.evaluation.uncertainty import estimate
from minillm.reporting.plots import looks, save
from minillm.reporting.sections.preference import preference_section
from minillm.stages.base import Job
from minillm.stages.measuring import Preference
from tests.minillm.annotated import ROLES, response, write_run

LETTERS: dict[str, Choice] = {"w": "win", "t": "tie", "l": "loss"}


def judged(annotator: str, choices: str, other: str = "sft", benchmark: str = "self_inst") -> list[Judgement]:
    """Make judgements from a choice per prompt, given by its first letter; - means none."""
    return [
        Judgement(
            benchmark=benchmark,
            index=index,
            seed=10,
            method="minillm",
            other=other,
            answers=answers_digest(*(response(role, benchmark, index, 10) for role in ("minillm", other))),
            annotator=annotator,
            choice=LETTERS[letter],
            time=datetime.now(UTC),
        )
        for index, letter in enumerate(choices)
        if letter != "-"
    ]


def run_stage(tmp_path: Path, judgements: list[Judgement]) -> tuple[dict, Path]:
    run = read_report(write_run(tmp_path / "store"))
    write_csv(tmp_path / "judgements.csv", judgements)
    inputs = {"judgements": tmp_path / "judgements.csv"}
    inputs |= {f"responses/{role}": folder for role, folder in run.responses.items()}
    output = tmp_path / "preference"
    output.mkdir()
    job = Job(kind="preference", settings=Preference(), inputs=inputs, output=output, work=tmp_path)
    return preference.run(job), output


def test_a_prompt_counts_as_the_mean_over_its_annotators():
    (row,) = compare([*judged("ada", "wwtl"), *judged("ben", "wl--")])
    # prompts: win, half a win and half a loss, tie, loss
    values = {what: row[what]["value"] for what in ("win", "tie", "loss", "net")}
    assert values == {"win": 37.5, "tie": 25.0, "loss": 37.5, "net": 0.0}
    assert (row["prompts"], row["judgements"]) == (4, 6)


def test_every_benchmark_counts_the_same():
    (row,) = compare([*judged("ada", "wwwwwwww"), *judged("ada", "lt", benchmark="dolly")])
    assert [row[what]["value"] for what in ("win", "tie", "loss", "net")] == [50.0, 25.0, 25.0, 25.0]


def test_intervals_are_over_prompts():
    (row,) = compare(judged("ada", "w" * 30 + "t" * 6 + "l" * 24))
    wins = np.array([100.0] * 30 + [0.0] * 30)
    assert (row["win"]["low"], row["win"]["high"]) == (estimate([wins]).low, estimate([wins]).high)
    # a share of one half over 60 prompts: standard error 6.5
    assert row["win"]["low"] == pytest.approx(50 - 1.96 * 6.5, abs=2)
    assert row["net"]["value"] == pytest.approx(10)
    assert row["net"]["p_value"] == pytest.approx(0.41, abs=0.1), "10 with a standard error of 12.2"


def test_certainty_is_adjusted_for_the_number_of_comparisons():
    choices = "w" * 22 + "l" * 10
    (alone,) = compare(judged("ada", choices))
    both = compare([*judged("ada", choices), *judged("ada", "wl" * 16, other="kd")])
    assert [row["other"] for row in both] == ["sft", "kd"]
    assert both[0]["net"]["p_value"] == pytest.approx(2 * alone["net"]["p_value"])


def test_kappa_by_hand():
    # equal on 7 of 10; by chance alone, with 6 2 2 and 5 4 1 of each, (6·5 + 2·4 + 2·1) / 100 = 0.4
    (row,) = agreement([*judged("ada", "wwwwwwttll"), *judged("ben", "wwwwttttlw")])
    assert row == {"first": "ada", "second": "ben", "pairs": 10, "same": 70.0, "kappa": pytest.approx(0.5)}


def test_annotators_are_compared_on_what_both_judged():
    rows = agreement([*judged("cy", "wl------"), *judged("ada", "wltl----"), *judged("ben", "----wwtt")])
    assert rows == [{"first": "ada", "second": "cy", "pairs": 2, "same": 100.0, "kappa": 1.0}]


def test_saying_one_thing_throughout_is_no_evidence_of_agreement():
    (row,) = agreement([*judged("ada", "ttt"), *judged("ben", "ttt")])
    assert (row["same"], row["kappa"]) == (100.0, None)


def test_the_stage_counts_what_people_said_of_this_run(tmp_path: Path):
    summary, output = run_stage(tmp_path, [*judged("ada", "wwtl"), *judged("ben", "wwwl"), *judged("ada", "w", "kd")])
    assert summary == {
        "preference/minillm/sft/win": 62.5,
        "preference/minillm/sft/tie": 12.5,
        "preference/minillm/sft/loss": 25.0,
        "preference/minillm/sft/net": 37.5,
        "preference/minillm/kd/win": 100.0,
        "preference/minillm/kd/tie": 0.0,
        "preference/minillm/kd/loss": 0.0,
        "preference/minillm/kd/net": 100.0,
    }
    found = json.loads((output / "preference.json").read_text(encoding="utf-8"))
    assert found["agreement"][0]["pairs"] == 4


def test_judgements_of_other_answers_are_refused(tmp_path: Path):
    good, other = judged("ada", "ww")
    wrong = other.model_copy(update={"answers": "0" * 16})
    with pytest.raises(StageError, match=r"judgements\.csv, line 3: the answers of minillm and sft to prompt 1"):
        run_stage(tmp_path, [good, wrong])


def test_the_report_has_a_section_with_every_number(tmp_path: Path):
    _, output = run_stage(
        tmp_path, [*judged("ada", "wwwwwwttll"), *judged("ben", "wwwwttttlw"), *judged("ada", "w", "kd")]
    )
    section = preference_section({"preference": output}, ROLES, looks(ROLES))
    assert section is not None
    shares, agreed = section.tables.values()
    assert list(shares.index) == ["minillm against sft", "minillm against kd"]
    row = shares.loc["minillm against sft"]
    assert row["win, %"].startswith("55.0 [")
    assert row["tie, %"].startswith("30.0 [")
    assert row["loss, %"].startswith("15.0 [")
    assert re.fullmatch(r"\+40\.0 \[[+−]\d+\.\d, \+\d+\.\d\]( \*)?", row["win − loss"])
    assert list(row[["prompts", "judgements"]]) == ["10", "20"]
    assert section.words.startswith("Annotators: ada, ben. They saw")
    assert shares.loc["minillm against kd", "win, %"] == "100.0", "a single prompt has no interval"
    assert agreed.loc["ada and ben", "Cohen's κ"] == "0.50"
    ((_, figure),) = section.figures.values()
    svg = save(figure, tmp_path / "preference.png")
    for label in ("minillm", "tie", "sft", "kd", "55", "30", "15", "100"):
        assert f">{label}</text>" in svg
    look = looks(ROLES)
    assert svg.lower().count(look["minillm"][0].lower()) >= 3, "two bars and the legend"
    assert preference_section({}, ROLES, looks(ROLES)) is None
