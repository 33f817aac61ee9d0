"""Inputs of trainings, made once for all tests, and a configuration as read from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.minillm.direct import write_lines
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


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """Return a valid configuration whose data are in tmp_path/data."""
    for name in ("dolly", "split", "eval"):
        write_lines(tmp_path / "data" / f"{name}.jsonl", [])
    (tmp_path / "data" / "plain.txt").write_text("", encoding="utf-8")
    training = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 1, "evaluate_every": 10}
    architecture = {"architecture": {"model_type": "gpt2", "n_layer": 2}}
    config = {
        "name": "test",
        "data": {
            "directory": str(tmp_path / "data"),
            "instructions": {"path": "dolly.jsonl"},
            "split": {"path": "split.jsonl"},
            "plain_text": {"path": "plain.txt"},
        },
        "tokenizer": {"train_vocabulary": 300},
        "teacher": {"model": architecture, "training": training},
        "student": {"model": architecture, "initial": training},
        "methods": {
            "sft": {"text": "dataset", "divergence": "cross_entropy", "training": training},
            "minillm": {
                "text": "rollouts",
                "divergence": "reverse_kl",
                "policy": {"rollouts": 8},
                "training": {**training, "epochs": None, "steps": 2},
            },
        },
        "evaluation": {"benchmarks": {"dolly": {"source": {"path": "eval.jsonl"}}}},
    }
    return json.loads(json.dumps(config))  # no part is shared between two places
