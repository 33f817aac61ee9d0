"""The recipes for today's chat models, from rows to the exported student, on small models of the same architecture."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from minillm.config.loading import load_config
from minillm.models.causal_lm import save_model
from minillm.models.shared_tokenizer import share
from tests.conftest import ROOT
from tests.flows.test_distill import distill
from tests.minillm.models_in_small import LLAMA_LIKE
from tests.minillm.templates import chat_tokenizer
from tests.small import write_rows, write_short_experiment

_TURN = "{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}"
_ASK = "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
SYSTEM_BY_ITSELF = (
    "{% if messages[0].role != 'system' %}{{ '<|start|>system\\nHelp.<|end|>\\n' }}{% endif %}"
    "{% for message in messages %}" + _TURN + "{% endfor %}" + _ASK
)
"""A message of the system where there is none (the form of SmolLM2's)."""
DATED = (
    "{{ '<s><|start|>system\\nIt is ' + (date_string if date_string is defined else strftime_now('%d %b %Y')) }}"
    "{{ '<|end|>\\n' }}{% for message in messages %}" + _TURN + "{% endfor %}" + _ASK
)
"""The date before all messages (the form of Llama 3.2's)."""
THOUGHTS = (
    "{% for message in messages %}{% if loop.last and message.role == 'assistant' %}"
    "{{ '<|start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|end|>\\n' }}"
    "{% else %}" + _TURN + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""Thoughts in the last answer alone, empty where there are none (the form of Qwen 3's)."""
RECIPES = {
    "qwen3-0.6b": ("qwen3", THOUGHTS, {"enable_thinking": False}),
    "llama3.2-1b": ("llama", DATED, {"date_string": "26 Jul 2024"}),
    "smollm2-360m": ("llama", SYSTEM_BY_ITSELF, {}),
}
"""Architecture, form of the template, and its variables."""


def chat_model(folder: Path, architecture: str, template: str, layers: int) -> Path:
    """Write a random chat model with its tokenizer."""
    tokenizer = chat_tokenizer(template)
    own = {"head_dim": 16} if architecture == "qwen3" else {}
    sizes = {**LLAMA_LIKE, **own, "num_hidden_layers": layers, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(architecture, **sizes, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    torch.manual_seed(layers)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert isinstance(end, int)
    save_model(AutoModelForCausalLM.from_config(config), share(tokenizer, [end]), folder)
    return folder


def in_small(folder: Path, name: str) -> Path:
    """Write a recipe's configuration with small models, few rows and few steps."""
    write_short_experiment(folder)
    rows = [
        [
            {"role": "user", "content": f"Say number {n}."},
            {"role": "assistant", "content": f"It is {n}."},
            {"role": "user", "content": f"And after {n}?"},
            {"role": "assistant", "content": f"That is {n + 1}."},
        ]
        for n in range(40)
    ]
    write_rows(folder / "rows.jsonl", [{"messages": messages} for messages in rows])
    architecture, template, _ = RECIPES[name]
    here: dict[str, Any] = {"hub": None, "file": None}
    others = dict.fromkeys(("self_inst", "vicuna", "sni", "unni"))
    settings = {
        "base": str(ROOT / "configs" / f"{name}.yaml"),
        "data": {
            "directory": str(folder),
            "instructions": {**here, "path": "rows.jsonl"},
            "validation_size": 4,
            "max_prompt_tokens": 120,
            "max_tokens": 140,
        },
        "teacher": {"model": {"hub": None, "path": str(chat_model(folder / "teacher", architecture, template, 2))}},
        "student": {"model": {"hub": None, "path": str(chat_model(folder / "student", architecture, template, 1))}},
        "methods": {
            "minillm": {
                "policy": {"rollouts": 8, "inner_epochs": 1},
                "training": {"batch_size": 8, "steps": 2, "warmup_steps": 1, "evaluate_every": 2},
            }
        },
        "evaluation": {
            "benchmarks": {"dolly": {"source": {**here, "path": "benchmark.jsonl"}}, **others},
            "seeds": [10],
            "validation_prompts": 2,
        },
        "runtime": {"store": str(folder / "store"), "threads": 1, "retries": 0},
    }
    path = folder / "tried.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_what_it_is_made_for(name: str):
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert re.search(r"^# Made for one device with \d+ GB", text, re.MULTILINE)
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert list(config.methods) == ["minillm"], "on policy alone"
    assert (config.teacher.training, config.student.initial) == (None, None)
    assert (config.data.template.chat, config.data.template.variables) == (True, RECIPES[name][2])


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (n > 0)) for n, name in enumerate(RECIPES)]
)
def test_a_recipe_runs_from_conversations_to_the_exported_student(name: str, tmp_path: Path):
    from prefect.settings import PREFECT_API_URL

    done = distill(in_small(tmp_path, name), PREFECT_API_URL=str(PREFECT_API_URL.value()))
    assert done.status == 0, done.log
    assert done.states()["train minillm"] == "Completed"
    assert not list((tmp_path / "store" / "artifacts").glob("respond-*"))
    assert len(list((tmp_path / "store" / "artifacts").glob("train-*"))) == 1, "nothing is fine-tuned first"
    (model,) = re.findall(r"^model minillm +(\S+)$", done.output, re.MULTILINE)
    assert AutoConfig.from_pretrained(model).model_type == RECIPES[name][0]
    examples = next((tmp_path / "store" / "artifacts").glob("filter-*")) / "train.parquet"
    row = pd.read_parquet(examples).iloc[0]
    tokenizer = AutoTokenizer.from_pretrained(model)
    number = re.findall(r"Say number (\d+)", row["prompt"])[0]
    talk = [
        {"role": "user", "content": f"Say number {number}."},
        {"role": "assistant", "content": f"It is {number}."},
        {"role": "user", "content": f"And after {number}?"},
    ]
    wanted = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False, **RECIPES[name][2])
    assert row["prompt_ids"].tolist() == wanted
