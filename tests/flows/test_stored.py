"""Whole runs whose students learn from a teacher's stored knowledge: one store serves several methods and students."""

from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL
from safetensors.torch import load_file

from minillm.files import read_json
from tests.flows.test_distill import Finished, distill
from tests.small import write_short_experiment

FORMS = ("hidden", "top", "sampled")
STORES = {f"teacher knowledge {form} on dataset" for form in FORMS} | {"teacher knowledge top on teacher"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_short_experiment(tmp_path_factory.mktemp("stored"))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    training = settings["methods"]["sft"]["training"]
    settings["student"]["initial"] = None
    forms = {f"kd_{form}": {"preset": "kd", "teacher": form} for form in FORMS}
    settings["methods"] = {
        name: {**method, "training": training} for name, method in {"kd": {}, **forms, "slim": {}}.items()
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def first(config: Path, prefect_server: None) -> Finished:
    return distill(config, PREFECT_API_URL=str(PREFECT_API_URL.value()))


def trained(config: Path) -> dict[str, Path]:
    """Return the folder of each training that is in the store, by role."""
    folders = config.parent.glob("store/artifacts/train-*")
    return {read_json(folder / "manifest.json")["settings"]["role"]: folder for folder in folders}


def test_every_form_goes_from_the_teacher_to_a_row_of_the_table(first: Finished, config: Path):
    assert first.status == 0, first.log
    states = first.states()
    assert {stage for stage in states if stage.startswith("teacher knowledge")} == STORES
    assert {states[stage] for stage in STORES} == {"Completed"}
    (report,) = config.parent.glob("store/artifacts/report-*")
    assert list(read_json(report / "results.json")["tables"]) == [
        *("teacher", "kd", "kd_hidden", "kd_top", "kd_sampled", "slim")
    ]


def test_stored_hidden_states_train_the_same_student_as_the_live_teacher(first: Finished, config: Path):
    folders = trained(config)
    weights = {role: load_file(folders[role] / "model" / "model.safetensors") for role in ("kd", "kd_hidden", "kd_top")}
    apart = {
        role: max(float((weights[role][name] - of).abs().max()) for name, of in weights["kd"].items())
        for role in ("kd_hidden", "kd_top")
    }
    assert apart["kd_hidden"] < 1e-6 < apart["kd_top"]


def test_another_student_learns_from_the_same_stores(first: Finished, config: Path):
    other = ("--set", "student.model.architecture.n_embd=12")
    again = distill(config, *other, PREFECT_API_URL=str(PREFECT_API_URL.value()))
    assert again.status == 0, again.log
    states = again.states()
    assert {states[stage] for stage in ("fine-tune teacher", "generate teacher", *STORES)} == {"Cached"}
    assert states["train kd_hidden"] == "Completed"
