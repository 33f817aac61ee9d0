"""Students made of their teacher's layers, compared with the teacher with its other layers passed over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.errors import StageError
from minillm.models.causal_lm import load_model
from minillm.preparation.layers import chosen_layers
from minillm.stages.reading import TakeLayers
from tests.minillm.direct import run_stage
from tests.minillm.models_in_small import GPT_LIKE, LLAMA_LIKE

LAYERS = {"num_hidden_layers": 6}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 3}
TAKEN = {
    "gpt2": {"model_type": "gpt2", **GPT_LIKE, "n_layer": 6},
    "llama": {"model_type": "llama", **LLAMA_LIKE, **LAYERS, "tie_word_embeddings": True},
    "opt": {"model_type": "opt", "hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 64, **LAYERS},
    "gemma2": {"model_type": "gemma2", **LLAMA_LIKE, **LAYERS, **WINDOWS, "head_dim": 16},
    "qwen3": {"model_type": "qwen3", **LLAMA_LIKE, **LAYERS, **WINDOWS, "use_sliding_window": True},
    "mixtral": {"model_type": "mixtral", **LLAMA_LIKE, **LAYERS, "num_local_experts": 2},
}


def save_teacher(folder: Path, **architecture: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(**architecture, vocab_size=50, bos_token_id=0, eos_token_id=0, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return model


def take(teacher: Path, layers: Any, folder: Path) -> PreTrainedModel:
    output, _ = run_stage(TakeLayers(layers=layers), {"teacher": teacher}, folder)
    return load_model(output).eval()


@pytest.mark.parametrize(
    ("layers", "count", "kept"),
    [
        (20, 30, [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 23, 24, 26, 27, 29]),
        (3, 7, [0, 3, 6]),
        (2, 12, [0, 11]),
        (6, 12, [0, 2, 4, 7, 9, 11]),
        ((0, 1, 5), 6, [0, 1, 5]),
    ],
)
def test_layers_are_evenly_spaced_or_as_listed(layers, count, kept):
    assert chosen_layers(layers, count) == kept


@pytest.mark.parametrize(("layers", "count"), [(6, 6), (7, 6), ((0, 6), 6)])
def test_a_student_has_fewer_layers_than_its_teacher(layers, count):
    with pytest.raises(StageError, match=r"model\.layers is .* the teacher has 6 layers, numbered from 0 to 5"):
        chosen_layers(layers, count)


@pytest.mark.parametrize("name", TAKEN)
def test_a_student_computes_what_its_teacher_does_without_the_other_layers(name, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", **TAKEN[name])
    student = take(tmp_path / "teacher", (1, 2, 4), tmp_path / "run")
    row = torch.arange(1, 20)[None]
    stack = next(m for m in teacher.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 6)
    seen = []
    for layer in stack:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    for number in (0, 3, 5):  # the hidden states that went in come out
        stack[number].register_forward_hook(
            lambda module, args, output: (seen[-1], *output[1:]) if isinstance(output, tuple) else seen[-1]
        )
    with torch.no_grad():
        torch.testing.assert_close(student(row).logits, teacher(row, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    assert student.config.get_text_config().num_hidden_layers == 3


def test_a_precision_stays_and_tied_weights_stay_tied(tmp_path):
    save_teacher(tmp_path / "bfloat16", **TAKEN["llama"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "teacher")
    output, summary = run_stage(TakeLayers(layers=2), {"teacher": tmp_path / "teacher"}, tmp_path / "run")
    student = AutoModelForCausalLM.from_pretrained(output / "model")
    assert student.dtype == torch.bfloat16
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert summary == {"parameters": float(student.num_parameters()), "layers": "0 5"}


def test_layers_of_kinds_that_the_configuration_cannot_name_one_by_one_are_refused(tmp_path):
    dense_first = {"model_type": "deepseek_v3", **LLAMA_LIKE, **LAYERS, "first_k_dense_replace": 2}
    small = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8}
    save_teacher(tmp_path / "teacher", **dense_first, **small)
    with pytest.raises(StageError, match=r"student\.model \(layers of the teacher\).*deepseek_v3"):
        take(tmp_path / "teacher", (2, 3, 4), tmp_path / "run")
