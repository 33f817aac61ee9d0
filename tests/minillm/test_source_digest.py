"""A stage is computed again when what computes it changes, and not when only words do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minillm
from minillm.stages.base import Stage
from minillm.store.source_digest import DECLARATIONS

DIGESTS = """
import json
from minillm.stages import STAGES
from minillm.store.source_digest import source_digest
print(json.dumps({stage.kind: source_digest(stage.module) for stage in STAGES.values()}))
"""
TRAINING = {"train", "speed"}
"""Stages that train, including the one that times steps for a plan."""


def digests(package: Path) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    return json.loads(
        subprocess.check_output([sys.executable, "-c", DIGESTS], env=environment, cwd=package.parent, text=True)
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    copy = tmp_path_factory.mktemp("original") / "minillm"
    shutil.copytree(Path(minillm.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy, digests(copy)


def stale(original: tuple[Path, dict[str, str]], tmp_path: Path, name: str, old: str, new: str) -> set[str]:
    """Return the stages that one change of one file makes stale."""
    package, before = original
    copy = tmp_path / "minillm"
    shutil.copytree(package, copy)
    text = (copy / name).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    after = digests(copy)
    return {kind for kind, digest in before.items() if after[kind] != digest}


POLICY, TRAINER, CONFIG = "objectives/policy.py", "training/trainer.py", "config/training.py"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param(POLICY, '"""The policy gradient', '"""A policy gradient', id="docstring of a module"),
        pytest.param(
            "store/artifacts.py", "Remove unfinished work", "Take away unfinished work", id="docstring of a method"
        ),
        pytest.param(
            "errors.py", "300 characters", "as many characters as there is room for", id="docstring of errors"
        ),
        pytest.param(
            "reporting/report.py", '"""Sections in the order', '"""Parts in the order', id="words under a constant"
        ),
        pytest.param(POLICY, "import torch\n", "import torch  # for tensors\n", id="comment"),
        pytest.param(POLICY, "reward = reward * real", "reward = (reward\n        * real)", id="layout"),
        pytest.param(TRAINER, "is not finite at step", "is infinite at step", id="text of an error"),
        pytest.param("data/filtering.py", "rows read", "rows seen", id="line of the log"),
        pytest.param("store/artifacts.py", "missing or altered; computing", "altered; computing", id="logged warning"),
        pytest.param("words.py", "{left:.0f} s left", "{left:.0f} s to go", id="line of progress"),
        pytest.param("config/runtime.py", "PositiveInt = 100", "PositiveInt = 60", id="default of a setting"),
        pytest.param("config/method.py", "use a divergence", "choose a divergence", id="refusal of a configuration"),
        pytest.param(
            "stages/pages.py",
            "class Card(",
            "class New(Stage):\n    kind = 'new'\n    module = 'minillm.words'\n\n\nclass Card(",
            id="stage",
        ),
    ],
)
def test_words_make_nothing_stale(original, tmp_path: Path, name: str, old: str, new: str):
    assert stale(original, tmp_path, name, old, new) == set()


def test_a_constant_makes_stale_what_computes_with_it(original, tmp_path: Path):
    found = stale(original, tmp_path, "objectives/fused_head.py", "CHUNK_ENTRIES = ", "CHUNK_ENTRIES = 2 * ")
    assert found == TRAINING | {"calibration", "exposure", "held_out"}


def test_a_helper_two_imports_away_makes_stale_what_calls_it(original, tmp_path: Path):
    change = POLICY, "total / count.clamp(min=1)", "total / count.clamp(min=2)"
    assert stale(original, tmp_path, *change) == TRAINING


def test_how_a_figure_is_written_makes_stale_the_pages_that_show_it(original, tmp_path: Path):
    found = stale(original, tmp_path, "words.py", 'return "unknown"', 'return "not known"')
    assert "report" in found
    assert not found & {*TRAINING, "respond", "generate", "filter"}


def test_what_removes_secrets_makes_stale_the_pages_and_cards(original, tmp_path: Path):
    found = stale(
        original, tmp_path, "redaction.py", "    known = _values_pattern((", "    known = _values_pattern(2 * ("
    )
    assert {"report", "model", "study", "system2", "system2_model", "pretrain"} <= found
    assert not found & {*TRAINING, "generate", "filter"}


def test_a_method_of_a_configuration_makes_stale_what_holds_such_a_configuration(original, tmp_path: Path):
    change = CONFIG, "* examples // self", "* -(-examples) // self"
    assert stale(original, tmp_path, *change) == TRAINING | {"model", "system2_model"}


def test_a_constant_of_a_stage_makes_stale_what_computes_with_it(original, tmp_path: Path):
    change = "stages/measuring.py", "prompts: ClassVar[int] = 64", "prompts: ClassVar[int] = 63"
    assert stale(original, tmp_path, *change) == {"cost", "speed"}


def test_how_a_stage_is_run_and_shown_makes_nothing_stale(original, tmp_path: Path):
    change = "stages/measuring.py", '("tokens_per_second", "peak_memory_gib")', '("tokens_per_second",)'
    assert stale(original, tmp_path, *change) == set()


def test_the_declarations_of_a_stage_are_those_of_the_base_class():
    declared = {name for name, kind in Stage.__annotations__.items() if "ClassVar" in str(kind)}
    assert declared == set(DECLARATIONS)


def test_the_wording_of_a_template_makes_stale_the_pages_that_use_it(original, tmp_path: Path):
    change = "reporting/templates/page.html.jinja", "max-width: 68rem", "max-width: 60rem"
    assert stale(original, tmp_path, *change) == {"report", "study", "system2", "pretrain"}
