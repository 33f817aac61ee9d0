import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2LMHeadModel

from minillm.config import DIVERGENCES, Config, Divergence, Template
from minillm.data.prompts import template_of
from minillm.models.causal_lm import build_model
from minillm.models.tokenizers_bpe import train_bpe
from minillm.reporting import model_card
from minillm.reporting.plots import CURVES
from minillm.reporting.study.page import SHOWN_CURVES
from minillm.stages.base import Job
from minillm.stages.pages import Card
from tests.manifests import write_manifest

TOKEN = "correct-horse"
TRAINING = {"learning_rate": 1e-3, "batch_size": 8, "steps": 10, "evaluate_every": 5}
CONFIG = {
    "name": "toy",
    "seed": 4,
    "data": {
        "instructions": {"hub": "databricks/databricks-dolly-15k"},
        "plain_text": {"path": "books/plain.txt"},
        "max_prompt_tokens": 96,
        "max_tokens": 112,
    },
    "teacher": {"model": {"hub": "gpt2-xl"}, "training": TRAINING},
    "student": {"model": {"hub": "gpt2", "revision": "abc"}, "initial": TRAINING},
    "methods": {
        "kd": {"text": "dataset", "divergence": "forward_kl", "divergence_weight": 0.25, "training": TRAINING},
        "minillm": {
            "text": "rollouts",
            "divergence": "reverse_kl",
            "start": "initial",
            "policy": {"rollouts": 16, "teacher_mix": 0.3},
            "training": TRAINING,
        },
    },
    "evaluation": {
        "benchmarks": {"dolly": {"source": {"path": "dolly.jsonl"}}},
        "seeds": [10, 20],
        "temperature": 0.7,
        "top_k": 5,
        "no_repeat_ngram": 6,
    },
}


def cell(mean: float) -> dict:
    return {"mean": mean, "spread": 0.5, "per_seed": {"10": mean - 0.35, "20": mean + 0.35}}


def table(role: str, mean: float) -> dict:
    row = {"metric": "rouge_l", "score": cell(mean), "rouge_l": cell(mean), "exact_match": cell(mean / 10)}
    return {"role": role, "seeds": [10, 20], "benchmarks": {"dolly": row}, "mean": row}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A tiny model exported as `minillm`."""
    return export(tmp_path_factory.mktemp("card"), "minillm", CONFIG["methods"])


def export(
    folder: Path,
    role: str,
    methods: dict[str, Any],
    chat: str | dict[str, str] | None = None,
    template: dict[str, Any] | None = None,
    **further: dict,
) -> Path:
    """A tiny real GPT-2 with a real tokenizer, with its card, as one of a configuration's methods."""
    for name in ("train/model", "examples", "report", "output", "work"):
        (folder / name).mkdir(parents=True)
    tokenizer = train_bpe(["Name three colours. red green blue ### Instruction: ### Response:\n"] * 5, 300)
    tokenizer.chat_template = chat
    student = build_model({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, tokenizer, seed=1)
    own = {"do_sample": True, "max_length": 4, "repetition_penalty": 1.3, "top_p": 0.5}
    student.generation_config = GenerationConfig(eos_token_id=[0, 5], **own)
    student.save_pretrained(folder / "train" / "model")
    tokenizer.save_pretrained(folder / "train" / "model")
    write_manifest(folder / "train", "train", "ab" * 32, settings={"seed": 4}, versions={"torch": "2.13.0"})
    for part, rows in (("train", 11435), ("validation", 1000), ("test", 500)):
        pd.DataFrame({"row": range(rows)}).to_parquet(folder / "examples" / f"{part}.parquet")
    results = {
        "verdict": ["The best student is minillm.", "It is above kd.", f"It was asked with {TOKEN}."],
        "benchmarks": ["dolly", *further],
        "tables": {"teacher": table("teacher", 27.6), role: table(role, 24.64)},
    }
    for name, benchmark in further.items():
        for of in results["tables"].values():
            own = {"metric": benchmark["metric"], "score": cell(60), benchmark["metric"]: cell(60)}
            of["benchmarks"][name] = of["benchmarks"]["dolly"] | own
    (folder / "report" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    measured = CONFIG["evaluation"]["benchmarks"] | further
    evaluation = {**CONFIG["evaluation"], "benchmarks": measured}
    data = {**CONFIG["data"], "template": template or {}}
    whole = {**CONFIG, "data": data, "methods": methods, "evaluation": evaluation}
    config = Config.model_validate(whole).model_dump(mode="json", exclude={"runtime"})
    inputs = {"model": folder / "train", "examples": folder / "examples", "report": folder / "report"}
    settings = Card(role=role, config=config)
    job = Job(kind="model", settings=settings, inputs=inputs, output=folder / "output", work=folder / "work")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_TOKEN", TOKEN)
        summary = model_card.run(job)
    assert summary == {"parameters": student.num_parameters(), "score/mean": 24.64}
    return folder / "output"


def run_apart(code: str, folder: Path) -> str:
    """Run code in a process that cannot see this project or the network."""
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(folder.parent)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippet(folder: Path) -> str:
    match = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    assert match
    return match[1]


def test_the_snippet_of_the_card_runs_where_nothing_of_this_project_is_known(exported):
    check = "import sys; assert not any(name.startswith('minillm') for name in sys.modules)"
    printed = run_apart(
        f"{snippet(exported)}\n{check}\nprint(answer.shape[1] - len(tokenizer(prompt)['input_ids']))", exported
    )
    assert printed.startswith("Below is an instruction that describes a task.")
    assert "### Instruction:\nName three colours.\n\n### Response:\n" in printed
    assert 1 <= int(printed.split("\n")[-2]) <= 112 - 96


def test_generate_decodes_as_the_evaluation_did(exported):
    """The settings in the trained model's directory, left over from the base model, must not count."""
    found = GenerationConfig.from_pretrained(exported).to_diff_dict()
    expected = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 1.0, "no_repeat_ngram_size": 6}
    ids = {"eos_token_id": [0, 5], "bos_token_id": 0, "pad_token_id": 0}
    assert {key: value for key, value in found.items() if key != "transformers_version"} == {**expected, **ids}
    model: Any = AutoModelForCausalLM.from_pretrained(exported)
    torch.manual_seed(0)
    answers = model.generate(
        torch.full((50, 1), 9), attention_mask=torch.ones(50, 1, dtype=torch.long), max_new_tokens=60
    )
    for row in answers[:, 1:].tolist():
        end = next((place for place, token in enumerate(row) if token in (0, 5)), len(row))
        assert set(row[end + 1 :]) <= {0}, "padding and nothing else"
    assert "ends with `<|endoftext|>` or `%`" in (exported / "README.md").read_text(encoding="utf-8")


def test_greedy_decoding_is_said_without_what_sampling_needs():
    evaluation = {**CONFIG["evaluation"], "strategy": "greedy", "temperature": 1.0, "top_k": None}
    config = Config.model_validate({**CONFIG, "evaluation": evaluation}).model_dump(mode="json")
    assert model_card.decoding(config) == {"no_repeat_ngram_size": 6, "do_sample": False}


def usage(config: dict[str, Any], tokenizer: Any) -> str:
    return model_card.usage(config, template_of(tokenizer, Template(**config["data"]["template"])))


def test_the_snippet_gives_a_template_with_bos_no_second_one():
    tokenizer = train_bpe(["Ask: "], 300)
    data = {
        **CONFIG["data"],
        "template": {"with_context": "{instruction}{context}", "without_context": "{instruction}"},
    }
    written = {name: f"<|endoftext|>{text}" for name, text in data["template"].items()}
    plain, opening = (
        Config.model_validate({**CONFIG, "data": {**data, "template": template}}).model_dump(mode="json")
        for template in (data["template"], written)
    )
    assert "add_special_tokens" not in usage(opening, tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    assert "tokenizer(prompt, add_special_tokens=False, return_tensors=" in usage(opening, tokenizer)
    assert "add_special_tokens" not in usage(plain, tokenizer)


SAID = (
    "  {% macro place() %}{{ mood.name }}, {{ loud }}{% endmacro %}\n\n{{ place() }}{{ '<|endoftext|>' }}\n"
    "{% for message in messages %}\n    {% if message.role == 'system' %}\n{{ message.content | upper }}\n"
    "    {% else %}{{ message.role }}: {{ message.content }}<|endoftext|>\n    {% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize("chat", [SAID, {"default": SAID, "tool_use": SAID}])
def test_an_exported_chat_model_is_asked_as_it_was_trained_without_further_words(chat, tmp_path):
    system = 'Say "so" \\ {{ mood }} %} #}\n\tand – é 😀 \u2028.'
    variables = {"mood": {"name": "calm 'one'", "of": [1.5, None, -2]}, "loud": False}
    methods, template = CONFIG["methods"], {"system": system, "variables": variables}
    output = export(tmp_path, "minillm", methods, chat=chat, template=template)
    trained_with = AutoTokenizer.from_pretrained(tmp_path / "train" / "model")
    asked = "Name three colours."
    ((text, wanted),) = template_of(trained_with, Template(**template)).prompts([(asked, "")])
    assert text.startswith("\ncalm 'one', False<|endoftext|>")
    assert system.upper() in text
    code = snippet(output)
    assert "calm" not in code, "the directory knows it"
    show = "import json; print(json.dumps(inputs['input_ids'][0].tolist()))"
    assert json.loads(run_apart(f"{code}\n{show}", output).splitlines()[-1]) == wanted
    again = template_of(AutoTokenizer.from_pretrained(output), Template(**template))
    assert again.prompts([(asked, "")]) == [(text, wanted)], "with the settings given once more too"
    other = AutoTokenizer.from_pretrained(output).apply_chat_template(
        [{"role": "system", "content": "Hm."}, {"role": "user", "content": asked}], tokenize=False, loud=True
    )
    assert other.startswith("\ncalm 'one', True<|endoftext|>\nHM.\n")


def test_a_chat_template_is_exported_as_it_is_where_a_run_changes_nothing(tmp_path):
    output = export(tmp_path, "minillm", CONFIG["methods"], chat=SAID)
    assert AutoTokenizer.from_pretrained(output).chat_template == SAID


def test_the_exported_weights_are_those_selected(exported):
    selected = GPT2LMHeadModel.from_pretrained(exported.parent / "train" / "model").state_dict()
    copied = GPT2LMHeadModel.from_pretrained(exported).state_dict()
    assert all((copied[name] == weights).all() for name, weights in selected.items())
    assert AutoTokenizer.from_pretrained(exported)("red green")["input_ids"]


def test_metadata_is_what_the_hub_reads(exported):
    data = ModelCard.load(exported / "README.md").data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["base_model"] == "gpt2"
    assert data["datasets"] == ["databricks/databricks-dolly-15k"]
    result = data["model-index"][0]["results"][0]
    assert (result["dataset"]["name"], result["metrics"][0]["value"]) == ("dolly", 24.64)


def test_a_card_of_several_metrics_names_that_of_each_score(tmp_path):
    numbers = {"source": {"path": "numbers.jsonl"}, "metric": "regex", "pattern": r"(\d+)"}
    output = export(tmp_path, "minillm", CONFIG["methods"], numbers=numbers)
    results = ModelCard.load(output / "README.md").data.to_dict()["model-index"][0]["results"]
    assert [result["metrics"][0]["name"] for result in results] == ["Rouge-L", "Regex match"]
    text = (output / "README.md").read_text(encoding="utf-8")
    cells = [re.split(r" +\| +", line) for line in text.splitlines() if line.startswith("|")]
    (heading,) = [line for line in cells if "this model, Score" in line]
    assert heading[1:4] == ["this model, Score", "teacher, Score", "this model, Rouge-L"]
    assert ["| numbers, Regex match", "60.0 ± 0.5", "60.0 ± 0.5", "24.6 ± 0.5"] in [line[:4] for line in cells]
    assert "Regex match (the group of a regular expression holds what it holds in a reference)." in text


def test_the_card_says_what_from_what_how_and_how_well(exported):
    text = (exported / "README.md").read_text(encoding="utf-8")
    for words in (
        "Student: `gpt2` (revision abc)",
        "Teacher: `gpt2-xl` (revision main)",
        "sampled in training from the student, mixed with the teacher",
        "reverse KL divergence",
        "the student fine-tuned on the data",
        "train 11,435, validation 1,000, test 500",
        "`plain.txt`",
        "24.6 ± 0.5",
        "27.6 ± 0.5",
        "over the generation seeds 10, 20",
        "abababababababab",
        "torch 2.13.0",
    ):
        assert words in text
    assert re.search(r"\| teacher_mix +\| +0\.3 \|", text)
    assert re.search(r"\| learning_rate +\| +0\.001 \|", text)
    assert "books/plain.txt" not in text  # folders of the machine are left out


def test_the_card_holds_no_secret(exported):
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert "It was asked with \\*\\*\\*." in text
    assert TOKEN not in text


def test_a_mixture_of_losses_is_written_out(exported):
    config = Config.model_validate(CONFIG).model_dump(mode="json", exclude={"runtime"})
    words = model_card.training_words(Card(role="kd", config=config))
    assert words["divergence_words"].startswith("0.75 · cross-entropy + 0.25 · forward KL")
    assert words["plain_text_words"] == "none"


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_a_model_trained_with_any_divergence_gets_its_card(divergence, tmp_path):
    text = "pairs" if divergence == "preference" else "dataset"
    methods = {"tried": {"text": text, "divergence": divergence, "start": "initial", "training": TRAINING}}
    text = (export(tmp_path, "tried", methods) / "README.md").read_text(encoding="utf-8")
    assert f"- Loss per token: {DIVERGENCES[divergence]}" in text
    assert re.search(rf"\| divergence +\| +{divergence} \|", text)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_the_curve_of_every_divergence_has_a_title_and_is_shown(divergence):
    if divergence == "cross_entropy":
        assert "train/cross_entropy" not in CURVES, "the training loss is its curve"
        assert "train/cross_entropy" not in SHOWN_CURVES
    else:
        assert CURVES[f"train/{divergence}"].lower().startswith(DIVERGENCES[divergence].lower())
        assert f"train/{divergence}" in SHOWN_CURVES
