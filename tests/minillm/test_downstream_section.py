import json
from pathlib import Path
from typing import Any

from minillm.reporting.plots import looks
from minillm.reporting.sections.downstream import downstream_section

ROLES = ("teacher", "minillm")


def row(value: float, stderr: float | None = 0.02, **changes: Any) -> dict[str, Any]:
    return {
        "metric": "acc",
        "value": value,
        "stderr": stderr,
        "higher_is_better": True,
        "scores": {"acc": [value, stderr]},
        "version": "1.0",
        "shots": 0,
        "questions": 500,
        "cut": 0,
        **changes,
    }


def inputs(folder: Path, teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Path]:
    paths = {}
    for role, tasks in zip(ROLES, (teacher, student), strict=True):
        paths[f"downstream/{role}"] = folder / role
        (folder / role).mkdir()
        (folder / role / "table.json").write_text(json.dumps({"harness": "0.4.13", "tasks": tasks}), encoding="utf-8")
    return paths


def test_each_task_has_a_row_with_what_was_asked_and_every_score(tmp_path):
    perplexity = {"metric": "word_perplexity", "higher_is_better": False, "stderr": None}
    teacher = {"arc_easy": row(0.5, 0.0223607), "mmlu": row(0.25, shots=None), "wikitext": row(31.5, **perplexity)}
    student = {"arc_easy": row(0.4), "mmlu": row(0.24, shots=None, cut=3), "wikitext": row(60.0, **perplexity)}
    section = downstream_section(inputs(tmp_path, teacher, student), ROLES, looks(ROLES))
    assert section is not None
    assert "0.4.13" in section.words
    table = section.tables["Scores"]
    assert list(table.columns) == ["metric", "version", "examples", "questions", "cut", *ROLES]
    assert list(table.loc["arc_easy"]) == ["acc", "1.0", "0", "500", "0", "0.500 ± 0.022", "0.400 ± 0.020"]
    assert list(table.loc["mmlu"])[2:5] == ["–", "500", "0–3"]
    assert list(table["metric"]) == ["acc", "acc", "word_perplexity, lower is better"]
    assert list(table.loc["wikitext"])[-2:] == ["31.500", "60.000"]
    (_, figure) = section.figures["downstream"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["arc_easy", "mmlu"], "one scale"


def test_there_is_no_section_and_no_figure_without_anything_to_show(tmp_path):
    assert downstream_section({}, ROLES, looks(ROLES)) is None
    perplexity = {"metric": "word_perplexity", "higher_is_better": False}
    only = {"wikitext": row(31.5, **perplexity)}
    section = downstream_section(inputs(tmp_path, only, only), ROLES, looks(ROLES))
    assert section is not None
    assert section.figures == {}
