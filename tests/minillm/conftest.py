"""Inputs of trainings, made once for all tests."""

from pathlib import Path

import pytest

from tests.minillm.jobs import run_worker, write_job
from tests.minillm.trainings import make_inputs, settings, text_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def teacher(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    done = run_worker(write_job(folder, settings("sft", steps=30, learning_rate=1e-2), text_inputs(inputs)))
    assert done.returncode == 0, done.stdout
    return folder / "output"
