"""A stage is computed again when the code behind it changes, and not when only its comments do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minillm


@pytest.fixture
def package(tmp_path: Path) -> Path:
    copy = tmp_path / "minillm"
    shutil.copytree(Path(minillm.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def digest(package: Path, module: str) -> str:
    code = f"from minillm.source_digest import source_digest; print(source_digest('{module}'))"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=package.parent, text=True)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_change_deep_below_a_stage_changes_its_digest(package):
    training, scoring = digest(package, "minillm.training.trainer"), digest(package, "minillm.evaluation.scoring")
    replace(package / "objectives" / "policy.py", "total / count.clamp(min=1)", "total / count.clamp(min=2)")
    assert digest(package, "minillm.training.trainer") != training
    assert digest(package, "minillm.evaluation.scoring") == scoring


def test_a_new_setting_or_stage_changes_no_other_stage(package):
    before = digest(package, "minillm.training.trainer")
    replace(package / "stages.py", "STAGES: tuple", "class Another(Stage):\n    kind = 'another'\n\n\nSTAGES: tuple")
    replace(package / "config" / "evaluation.py", "validation_prompts: PositiveInt = 1000", "another: int = 1")
    assert digest(package, "minillm.training.trainer") == before


def test_comments_and_layout_do_not_count(package):
    before = digest(package, "minillm.training.trainer")
    path = package / "objectives" / "policy.py"
    path.write_text(
        "# a comment\n"
        + path.read_text(encoding="utf-8").replace("reward = reward * real", "reward = (reward\n        * real)"),
        encoding="utf-8",
    )
    assert digest(package, "minillm.training.trainer") == before


def test_the_wording_of_a_template_counts_where_it_is_used(package):
    before = digest(package, "minillm.reporting.report"), digest(package, "minillm.evaluation.scoring")
    (package / "reporting" / "templates" / "report.md.jinja").write_text("other words", encoding="utf-8")
    assert digest(package, "minillm.reporting.report") != before[0]
    assert digest(package, "minillm.evaluation.scoring") == before[1]


def test_what_templates_share_counts_where_it_is_used(package):
    before = digest(package, "minillm.reporting.report"), digest(package, "minillm.evaluation.scoring")
    replace(package / "reporting" / "templates" / "page.html.jinja", "max-width: 68rem", "max-width: 60rem")
    assert digest(package, "minillm.reporting.report") != before[0]
    assert digest(package, "minillm.evaluation.scoring") == before[1]
