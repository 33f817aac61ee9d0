"""A real pretrained chat model through every stage, on a few real rows."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.data.chat import ChatTemplate
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


def test_the_mask_of_a_dialogue_with_a_tool_in_its_real_template(model: Path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = ChatTemplate(tokenizer, [2])
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    dialogue: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it warm in Rome?"},
        {"role": "assistant", "content": '<tool_call>{"name": "weather"}</tool_call>'},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "Yes, 21 degrees."},
        {"role": "user", "content": "Thank you!"},
        {"role": "assistant", "content": "You are welcome."},
    ]
    found = chat.encode(dialogue, turns="all")
    # (learnt?, text) by hand, up to the last end token; the template writes a line break behind each.
    by_hand = [
        (False, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nIs it warm in Rome?<|im_end|>\n"),
        (False, "<|im_start|>assistant\n"),
        (True, '<tool_call>{"name": "weather"}</tool_call><|im_end|>'),
        (False, "\n<|im_start|>tool\n21<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Yes, 21 degrees.<|im_end|>"),
        (False, "\n<|im_start|>user\nThank you!<|im_end|>\n<|im_start|>assistant\n"),
        (True, "You are welcome.<|im_end|>"),
    ]
    pieces = [(is_learnt, tokenizer(text, add_special_tokens=False)["input_ids"]) for is_learnt, text in by_hand]
    mask = [is_learnt for is_learnt, ids in pieces for _ in ids]
    assert found.tokens == [token for _, ids in pieces for token in ids]
    learnt = {place for start, end in found.turns for place in range(start, end)}
    assert [place in learnt for place in range(len(found.tokens))] == mask
    assert found.notes == []
    dialogue[2] |= {"content": "", "tool_calls": [call]}
    with pytest.raises(ValueError, match="leaves out a part of it: the call of the tool 'weather'"):
        chat.encode(dialogue, turns="all")
