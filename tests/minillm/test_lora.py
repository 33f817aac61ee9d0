"""Adapters change nothing at the start, are trained alone, and are merged into the saved weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.config import Lora, Method
from minillm.errors import StageError
from minillm.models.lora import ADAPTER, add_adapters, merged_weights
from minillm.models.output_head import OutputHead
from minillm.objectives.vocabulary import head_loss
from minillm.stages.training import Train
from tests.minillm.jobs import run_worker, write_job
from tests.minillm.models_in_small import ARCHITECTURES
from tests.minillm.trainings import settings, text_inputs, weights

TOKENS = torch.tensor([[2, 3, 5, 7, 4]])


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{"vocab_size": 16, **ARCHITECTURES[name]})).eval()


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_an_adapter_starts_as_nothing_and_is_merged_as_it_acts(name: str):
    model = build(name)
    before = model(TOKENS).logits
    names = set(model.state_dict())
    add_adapters(model, Lora(rank=2, alpha=6))
    assert torch.equal(model(TOKENS).logits, before)
    trained = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(ADAPTER in n for n in trained)
    with torch.no_grad():
        for n, parameter in model.named_parameters():
            if "lora_B" in n:
                parameter.normal_(std=0.1)
    after = model(TOKENS).logits
    assert not torch.allclose(after, before)
    merged = merged_weights(model)
    assert set(merged) == names
    plain = build(name)
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(TOKENS).logits, after)


def test_modules_that_are_not_there_are_named_with_those_that_are():
    with pytest.raises(StageError, match=r"modules \['q_proj'\]: gpt2 has none of these; it has c_attn, c_fc, c_proj"):
        add_adapters(build("gpt2"), Lora(modules=("q_proj",)))


@pytest.mark.parametrize(
    ("name", "module", "told"),
    [
        ("llama", "lm_head", "lm_head"),
        ("opt", "lm_head", "lm_head"),
        ("gpt2", "wte", r"transformer\.wte"),
        ("llama", "embed_tokens", r"model\.embed_tokens"),
    ],
)
def test_adapters_that_no_loss_would_use_are_refused(name: str, module: str, told: str):
    with pytest.raises(
        StageError, match=rf"training\.lora\.modules: {told} is an embedding or the output head of {name}"
    ):
        add_adapters(build(name), Lora(modules=(module,)))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_adapters_beside_all_matrices_leave_out_the_ends(name: str):
    model = build(name)
    add_adapters(model, Lora())
    trained = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("lm_head" in n or "embed" in n or "wte" in n for n in trained)


def test_a_frozen_head_gets_no_gradient_and_changes_none():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    tokens = torch.tensor([1, 0, 8, 3, 3])
    head_loss(hidden, OutputHead(weight, None, 9), tokens, lambda terms, part: -terms.log_prob)[0].backward()
    assert hidden.grad is not None
    whole, hidden.grad = hidden.grad, None
    frozen = OutputHead(weight.detach(), None, 9)
    head_loss(hidden, frozen, tokens, lambda terms, part: -terms.log_prob)[0].backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, whole)


@pytest.fixture(scope="module")
def start(inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    assert run_worker(write_job(folder, settings("sft", steps=2), text_inputs(inputs))).returncode == 0
    return folder / "output"


def with_adapters(kind: str, steps: int) -> Train:
    return settings(kind, None, steps=steps, lora={"rank": 2}, learning_rate=1e-2, select_by="validation_loss")


def test_training_changes_matrices_by_a_low_rank_and_leaves_the_rest(inputs, start, tmp_path):
    done = run_worker(write_job(tmp_path, with_adapters("sft", steps=20), {**text_inputs(inputs), "weights": start}))
    assert done.returncode == 0, done.stdout[-3000:]
    before, after = load_file(start / "model" / "model.safetensors"), weights(tmp_path)
    assert after.keys() == before.keys()
    changed = {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}
    assert changed
    assert all("attn" in name or "mlp" in name for name in changed)
    for difference in changed.values():
        values = torch.linalg.svdvals(difference)
        assert values[2] < 1e-5 * values[0]
    history = json.loads((tmp_path / "output" / "selection.json").read_text(encoding="utf-8"))["history"]
    assert history[-1]["valid/loss"] < history[0]["valid/loss"]
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["parameters"] == AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "model").num_parameters()


def test_student_and_teacher_with_adapters_distil_alike_on_two_processes_that_share_their_weights(
    inputs, start, tmp_path
):
    teacher = tmp_path / "teacher"
    done = run_worker(write_job(teacher, with_adapters("sft", steps=8), {**text_inputs(inputs), "weights": start}))
    assert done.returncode == 0, done.stdout[-3000:]
    given = {**inputs, "weights": start, "teacher": teacher / "output"}
    values = []
    for zero_stage, count in ((0, 1), (3, 2)):
        folder = tmp_path / f"{zero_stage}"
        job = write_job(folder, with_adapters("minillm", steps=4), given, processes=count, zero_stage=zero_stage)
        done = run_worker(job, count)
        assert done.returncode == 0, done.stdout[-3000:]
        values.append(json.loads((folder / "output" / "selection.json").read_text(encoding="utf-8"))["value"])
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_dropout_on_rollouts_is_refused():
    with pytest.raises(ValueError, match=r"training\.lora\.dropout is 0\.1, but on rollouts"):
        Method.model_validate(
            {
                "text": "rollouts",
                "divergence": "reverse_kl",
                "policy": {},
                "training": {
                    "learning_rate": 1e-3,
                    "batch_size": 8,
                    "steps": 4,
                    "evaluate_every": 4,
                    "lora": {"dropout": 0.1},
                },
            }
        )
