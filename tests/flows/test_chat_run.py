"""Conversations from raw rows to exported models that transformers' own chat pipeline serves."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from minillm.chat.partner import Partner, Settings, find_model
from minillm.generation.drawing import Decoding
from tests.flows.test_distill import Finished, distill
from tests.minillm.hub import Hub, serve
from tests.minillm.models_in_small import LLAMA_LIKE
from tests.minillm.templates import TURNS, save_chat_tokenizer, save_family
from tests.minillm.test_chat_rows import FORMATS
from tests.small import write_rows, write_short_experiment

STRANGER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
messages, folder = json.load(sys.stdin), sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
(answered,) = pipeline("text-generation", model=folder)(messages, max_new_tokens=8)
print(json.dumps({
    "prompt": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
    "roles": [message["role"] for message in answered["generated_text"]],
    "ends": AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id,
}))
"""


STRIP = r"(?s)<think>.*?(?:</think>\s*|\Z)"
TALK = [
    {"turns": ["Rome?", "And warm?"], "reference": ["It is sunny.", "It is 21 degrees."]},
    {"turns": ["Thank you!", "Be brief."], "reference": "It is brief."},
]


ENDS = {"messages": ["<s>", "<|end|>"], "conversations": ["</s>", "<|end|>"]}
"""Tokens that end a response, by the format of the rows."""


TOKEN = "hf_" + "Qw7" * 12
GAPPED = TURNS.replace("'\\n' + message.content", "gap + message.content").replace("assistant\\n'", "assistant' + gap")
"""A template that writes nothing without its variable."""
GIVEN = {"system": "Be brief.", "variables": {"gap": "\n\n"}}


def write_chat_experiment(folder: Path, form: str) -> Path:
    """Write a short experiment on conversations.

    Those in `messages` are for a base model as the teacher of a chat model; those in `conversations`, of which all
    answers are learnt, for a chat model and a student of its layers, with a message of the system and a variable.
    """
    path = write_short_experiment(folder, ("sft", "minillm"))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["data"]["template"], settings["tokenizer"]
    if form == "messages":
        models = save_family(folder)
        settings["tokenizer"] = {"from": "student"}
        settings["teacher"]["model"], settings["student"]["model"] = (
            {"path": str(models[name])} for name in ("base", "chat")
        )
        settings["export"] = {"hub": "me/talker", "method": "minillm"}
    else:
        start_from_chat_models(settings, save_chat_tokenizer(folder / "teacher", GAPPED))
        settings["data"] |= {"turns": "all", "template": GIVEN}
    settings["evaluation"]["benchmarks"] |= {
        "talk": {"source": {"path": "talk.jsonl"}, "metric": "regex", "pattern": "(?i)is (\\w+)"},
        "form": {"source": {"path": "form.jsonl"}, "metric": "json_schema", "json_schema": {"type": "integer"}},
    }
    settings["evaluation"] |= {"strip": STRIP, "max_prompt_tokens": 160}
    write_rows(folder / "talk.jsonl", TALK)
    write_rows(folder / "form.jsonl", [{"instruction": f"How many, {n}?", "output": str(n)} for n in range(3)])
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    write_rows(folder / "rows.jsonl", many(FORMATS[form]))
    return path


def rendered(finished: Finished, tokenizer: Any, messages: list[dict[str, str]], **settings: Any) -> Any:
    """Return what the tokenizer of a run, which knows no settings of it, writes with those settings."""
    given = yaml.safe_load(finished.config.read_text(encoding="utf-8"))["data"].get("template", {})
    system = [{"role": "system", "content": given["system"]}] if given else []
    variables = given.get("variables", {})
    return tokenizer.apply_chat_template(
        [*system, *messages], add_generation_prompt=True, return_dict=False, **variables, **settings
    )


def many(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with numbers in their questions, so that there are enough different ones."""
    texts = [json.dumps(row) for row in rows]
    numbered = [text.replace("thing", f"thing {n}").replace("one?", f"one {n}?") for n in range(7) for text in texts]
    return list(map(json.loads, numbered))


@pytest.fixture(scope="module")
def server(prefect_server: None) -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def start_from_chat_models(settings: dict[str, Any], folder: Path) -> None:
    """Take a ready-made teacher as it comes and a student of its layers, which learns on policy alone."""
    words = len(AutoTokenizer.from_pretrained(folder))
    model = AutoConfig.for_model("llama", **{**LLAMA_LIKE, "num_hidden_layers": 3, "vocab_size": words})
    AutoModelForCausalLM.from_config(model).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}), encoding="utf-8")
    settings["teacher"] = {"model": {"path": str(folder)}, "training": None}
    settings["student"] = {"model": {"layers_of": "teacher", "layers": 2}, "initial": None}
    settings["methods"]["minillm"]["start"] = "pretrained"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve(Hub({}, token=TOKEN)) as running:
        yield running


@pytest.fixture(scope="module", params=["messages", "conversations"])
def finished(
    request: pytest.FixtureRequest, server: str, hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    config = write_chat_experiment(tmp_path_factory.mktemp(request.param), request.param)
    return distill(config, PREFECT_API_URL=server, HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)


def test_a_conversation_is_trained_on_generated_from_and_served(finished: Finished):
    assert finished.status == 0, finished.log
    store = finished.config.parent / "store" / "artifacts"
    (examples,) = store.glob("filter-*/train.parquet")
    row = pd.read_parquet(examples).iloc[0]
    (model,) = re.findall(r"^model minillm +(\S+)$", finished.output, re.MULTILINE)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.decode(row["response_ids"]).endswith("<|end|>")
    told = [text.removeprefix("<|start|>").split("\n", 1) for text in row["prompt"].split("<|end|>\n")[:-1]]
    messages = [{"role": role, "content": content.lstrip("\n")} for role, content in told if role != "system"]
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(store)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", STRANGER, model],
        input=json.dumps(messages),
        cwd=store,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["prompt"] == row["prompt_ids"].tolist()
    assert found["roles"] == [*(message["role"] for message in messages), "assistant"]
    ends = ENDS[next(form for form in ENDS if form in finished.config.parent.name)]
    assert sorted(found["ends"]) == sorted(tokenizer.convert_tokens_to_ids(ends))
    drawn = Settings(Decoding(), seed=1, max_tokens=8, context=128, dtype=torch.float32)
    talked = Partner("student", find_model(Path(model).name, str(store.parent)), drawn)
    talked.messages += messages[:-1]
    assert talked.request(messages[-1]["content"], 0).prompt == found["prompt"]
    assert sorted(talked.shared.ends) == sorted(found["ends"])


def test_a_student_of_two_layers_of_its_teacher_is_exported(finished: Finished):
    (model,) = re.findall(r"^model minillm +(\S+)$", finished.output, re.MULTILINE)
    card = (Path(model) / "README.md").read_text(encoding="utf-8")
    ready_made = not yaml.safe_load(finished.config.read_text(encoding="utf-8"))["student"]["initial"]
    assert ("2 evenly spaced layers of the teacher as given" in card) == ready_made
    if ready_made:
        assert AutoConfig.from_pretrained(model).num_hidden_layers == 2


def test_benchmarks_are_asked_as_a_message_of_the_user(finished: Finished):
    store = finished.config.parent / "store" / "artifacts"
    (prompts,) = store.glob("prompts-*/dolly.parquet")
    (tokenizer_files,) = store.glob("prepare-*/tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_files)
    asked = [json.loads(line) for line in (finished.config.parent / "benchmark.jsonl").read_text("utf-8").splitlines()]
    message = [{"role": "user", "content": asked[0]["instruction"]}]
    wanted = rendered(finished, tokenizer, message)
    assert pd.read_parquet(prompts)["prompt_ids"][0].tolist() == wanted


def test_conversations_are_answered_turn_by_turn_and_scored_by_their_own_metric(finished: Finished):
    store = finished.config.parent / "store" / "artifacts"
    (tokenizer_files,) = store.glob("prepare-*/tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_files)
    for path in store.glob("generate-*/talk.jsonl"):
        texts = [json.loads(line)["response"] for line in path.read_text("utf-8").splitlines()]
        asked = pd.read_parquet(path.with_suffix(".parquet"))
        assert asked["turn"].tolist() == [0, 1] * 2 * 2, "two turns of two conversations with two seeds"
        told = [{"role": "user", "content": "Rome?"}, {"role": "assistant", "content": texts[0]}]
        wanted = [*told, {"role": "user", "content": "And warm?"}]
        text = rendered(finished, tokenizer, wanted, tokenize=False)
        assert tokenizer.decode(asked["prompt_ids"][1]) == text
    (report,) = store.glob("report-*/report.md")
    page = report.read_text(encoding="utf-8")
    for words in ("## Score", "dolly, Rouge-L", "talk, Regex match", "form, Valid JSON", f"whatever `{STRIP}` matches"):
        assert words in page, words
    (experiment,) = MlflowClient(f"sqlite:///{store.parent / 'mlflow.db'}").search_experiments(
        filter_string="name = 'small'"
    )
    runs = MlflowClient(f"sqlite:///{store.parent / 'mlflow.db'}").search_runs([experiment.experiment_id])
    metrics = {name for run in runs for name in run.data.metrics}
    assert {"regex/minillm/talk", "json_schema/minillm/form", "rouge_l/minillm/mean"} <= metrics
    assert "regex/minillm/mean" not in metrics, "not all benchmarks are measured by it"


def test_the_card_shows_messages(finished: Finished, hub: Hub, tmp_path: Path):
    (model,) = re.findall(r"^model minillm +(\S+)$", finished.output, re.MULTILINE)
    card = (Path(model) / "README.md").read_text(encoding="utf-8")
    assert "messages = [{'role': 'user', 'content': 'Name three colours.'}]" in card
    assert "apply_chat_template" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    uploaded = re.findall(r"^hub minillm +(\S+)$", finished.output, re.MULTILINE)
    assert uploaded == ([f"{hub.endpoint}/me/talker/tree/{hub.commits[-1]}"] if "me/talker" in code else [])
    assert bool(uploaded) == ("messages" in finished.config.parent.name)
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=model, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if uploaded:
        files = {path.name: path.read_bytes() for path in Path(model).iterdir() if path.name != "manifest.json"}
        assert {**hub.repositories["models", "me/talker"], **files} == hub.repositories["models", "me/talker"]
        assert set(hub.repositories["models", "me/talker"]) - set(files) == {".gitattributes"}
        assert hub.private == {"me/talker"}
        assert "model.safetensors" in hub.fetched, "the card's code loaded what was uploaded"
        assert TOKEN not in finished.log + finished.output
