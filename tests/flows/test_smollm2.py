"""A real pretrained chat model through every stage, on a few real rows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.files import read_json
from minillm.models.causal_lm import bfloat16_is_slow
from minillm.words import few
from tests.conftest import ROOT
from tests.flows.test_distill import distill
from tests.minillm.direct import real_data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = Path(os.environ.get("MINILLM_MODELS", ROOT / "../shared/models")) / "smollm2.sh"
    if not script.is_file():
        pytest.skip(f"no script that writes SmolLM2-135M-Instruct at {script}; set MINILLM_MODELS")
    folder = tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct"
    done = subprocess.run(["bash", str(script), str(folder), sys.executable], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"SmolLM2-135M-Instruct is not to be had: {few(done.stderr.splitlines()[-1:])}")
    return folder


def test_it_goes_through_every_stage(model: Path, prefect_server: None, tmp_path: Path):
    changes = {
        "teacher.model.hub": None,
        "teacher.model.path": model,
        "data.directory": real_data(),
        "runtime.store": tmp_path / "store",
    }
    if bfloat16_is_slow():  # it would take most of an hour
        for part in ("teacher.training", "student.initial", "training", "methods.minillm.training", "evaluation"):
            changes[f"{part}.precision"] = "float32"
    arguments = [word for name, value in changes.items() for word in ("--set", f"{name}={value or 'null'}")]
    done = distill(ROOT / "configs" / "smollm2-smoke.yaml", *arguments)
    assert done.status == 0, done.log[-5000:]
    table = [line.split("|")[1].strip() for line in done.output.splitlines() if line.startswith("| ")]
    assert table == ["method", "teacher", "sft", "kd", "seqkd", "minillm"]
    (exported,) = re.findall(r"^model minillm +(\S+)$", done.output, re.MULTILINE)
    student = AutoModelForCausalLM.from_pretrained(exported)
    assert (student.config.num_hidden_layers, student.num_parameters()) == (20, 99_114_048)
    assert student.generation_config.eos_token_id == [2]
    messages = [{"role": "user", "content": "Name three colours."}]
    asked = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for folder in (model, exported)
    ]
    assert asked[0] == asked[1]
    (examples,) = (tmp_path / "store" / "artifacts").glob("filter-*/train.parquet")
    row = pd.read_parquet(examples).iloc[0]
    assert row["prompt"].startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert row["response_ids"][-1] == 2
    # On Dolly's answers the teacher as it comes loses 2.7 nats a token; behind a wrong prompt it would lose far more.
    trained = [read_json(path) for path in (tmp_path / "store" / "artifacts").glob("train-*/manifest.json")]
    loss = {stage["settings"]["role"]: stage["summary"]["best/loss"] for stage in trained}
    assert loss["teacher"] < 3.1 < loss["sft"]
