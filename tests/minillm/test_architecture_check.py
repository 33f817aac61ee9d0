"""Architectures pass if they compute the same in every way that we run a model; others are refused by name."""

import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minillm.errors import StageError
from minillm.models.output_head import OutputHead, output_head
from minillm.preparation.architecture_check import TOLERANCE, _try_all, require_faithful
from minillm.preparation.model_checks import build_skeleton
from minillm.preparation.small_likeness import SPREADS, layers_of_every_kind, likeness
from minillm.stages.reading import Prepare
from tests.minillm.direct import run_stage
from tests.minillm.models_in_small import ARCHITECTURES, LLAMA_LIKE
from tests.minillm.test_preparation import GPT2, instructions, settings

NEO = {
    "model_type": "gpt_neo",
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 256,
}
LONGROPE = {
    "model_type": "phi3",
    **LLAMA_LIKE,
    "pad_token_id": 0,
    "original_max_position_embeddings": 40,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
}
PLAIN = {name: value for name, value in LLAMA_LIKE.items() if name != "num_key_value_heads"}
WINDOWED = {**LLAMA_LIKE, "sliding_window": 24}
SERVE = {
    **ARCHITECTURES,
    "qwen3": {"model_type": "qwen3", **LLAMA_LIKE},
    "gemma2": {"model_type": "gemma2", **LLAMA_LIKE, "head_dim": 16},
    "gemma3": {"model_type": "gemma3_text", **LLAMA_LIKE, "head_dim": 16, "num_hidden_layers": 12},
    "falcon": {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt_neox": {"model_type": "gpt_neox", **PLAIN},
    "mixtral": {"model_type": "mixtral", **LLAMA_LIKE},
    "mistral in windows": {"model_type": "mistral", **WINDOWED},
    "gemma2 in windows": {"model_type": "gemma2", **WINDOWED, "head_dim": 16},
    "gemma3 in windows": {"model_type": "gemma3_text", **WINDOWED, "head_dim": 16, "num_hidden_layers": 6},
    "phi3 in windows": {"model_type": "phi3", **WINDOWED, "pad_token_id": 0},
    "gpt_oss in windows": {"model_type": "gpt_oss", **WINDOWED, "head_dim": 16, "num_local_experts": 4},
    "olmo3 in windows": {"model_type": "olmo3", **WINDOWED, "num_hidden_layers": 4},
    "qwen2, its last layer in windows": {
        "model_type": "qwen2",
        **WINDOWED,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "llama4 in chunks": {
        "model_type": "llama4_text",
        **LLAMA_LIKE,
        "attention_chunk_size": 24,
        "no_rope_layers": [1, 0],
        "num_local_experts": 2,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "cohere": {"model_type": "cohere", **LLAMA_LIKE, "logit_scale": 0.3},
    "granite": {"model_type": "granite", **LLAMA_LIKE, "logits_scaling": 3.0},
    "minicpm3": {"model_type": "minicpm3", **LLAMA_LIKE, "dim_model_base": 8},
    "longrope within its original length": {**LONGROPE, "original_max_position_embeddings": 64},
    "llama 7b": {"model_type": "llama"},
    "qwen2.5 1.5b": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
RUNNING_STATE = "it keeps a running state"
REFUSED = {
    "gpt_neo": (NEO, "a cache of rows .* unequal steps differs from a plain forward pass by up to .* nats, from token"),
    "mamba": ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}, RUNNING_STATE),
    "lfm2": ({"model_type": "lfm2", **LLAMA_LIKE, "layer_types": ["conv", "full_attention"]}, RUNNING_STATE),
    "qwen3_next": ({"model_type": "qwen3_next", **LLAMA_LIKE}, RUNNING_STATE),
    "falcon_h1": ({"model_type": "falcon_h1", **LLAMA_LIKE}, RUNNING_STATE),
    "deepseek_v32": ({"model_type": "deepseek_v32", "num_hidden_layers": 2}, "an index of its keys"),
    "logits multiplied by what divides them elsewhere": (
        {"model_type": "hyperclovax", **LLAMA_LIKE, "logits_scaling": 3.0},
        "output head, .* differs",
    ),
    "bert": ({"model_type": "bert", **PLAIN}, "a row without its last tokens differs"),
    "longrope": (LONGROPE, "a row without its last tokens differs .* it serves with rows of at most 40 tokens"),
}


@pytest.mark.parametrize("name", SERVE)
def test_architectures_that_serve(name):
    config, skeleton = build_skeleton("student.model", SERVE[name], entries=97)
    require_faithful("student.model", config, skeleton, length=64)


@pytest.mark.parametrize("name", REFUSED)
def test_architectures_that_do_not_serve_are_refused_by_what_differs(name):
    architecture, reason = REFUSED[name]
    config, skeleton = build_skeleton("student.model", architecture, entries=97)
    message = rf"^student\.model \({architecture['model_type']}\) cannot serve.*{reason}"
    with pytest.raises(StageError, match=message):
        require_faithful("student.model", config, skeleton, length=64)


def test_prepare_tries_the_longest_rows_of_the_run(tmp_path):
    stage = settings(GPT2, LONGROPE, max_tokens=64, tokenizer=300)
    with pytest.raises(StageError, match=r"student\.model \(phi3\) cannot serve with rows of 64 tokens"):
        run_stage(stage, instructions(tmp_path), tmp_path / "run")
    shorter = Prepare(**{**dict(stage), "max_tokens": 32, "generation_tokens": 40})
    run_stage(shorter, instructions(tmp_path), tmp_path / "again")


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ({"model_type": "llama", "num_hidden_layers": 7}, 2),
        ({"model_type": "gemma3_text", "num_hidden_layers": 26}, 6),
        ({"model_type": "gpt_neo", "num_layers": 6, "attention_types": [[["global", "global", "local"], 2]]}, 3),
        ({"model_type": "deepseek_v3", "num_hidden_layers": 8, "first_k_dense_replace": 3}, 4),
        ({"model_type": "qwen2", "num_hidden_layers": 8, "use_sliding_window": True, "max_window_layers": 5}, 6),
        ({"model_type": "mixtral", "num_hidden_layers": 1}, 1),
    ],
)
def test_one_layer_of_every_kind_is_tried(architecture, layers):
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture))
    assert layers_of_every_kind(skeleton) == layers


def test_a_small_likeness_keeps_what_is_computed():
    config = AutoConfig.for_model("gemma2")
    small = likeness(config, layers=2, seed=1, spread=1.5)
    kept = ("head_dim", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window")
    assert all(getattr(small.config, name) == getattr(config, name) for name in kept)
    assert small.config.layer_types == config.layer_types[:2]
    assert small.num_parameters() < 3_000_000


def test_logits_of_a_likeness_are_large_enough_to_show_a_soft_cap():
    model = likeness(AutoConfig.for_model("gemma2", final_logit_softcapping=30.0), layers=2, seed=1, spread=1.5)
    head = output_head(model, 290)
    plain = OutputHead(head.weight, head.bias, 290)
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.arange(1, 40)[None]).last_hidden_state[0]
        capped, uncapped = (torch.log_softmax(h.logits(hidden), dim=-1) for h in (head, plain))
    assert float((capped - uncapped).abs().max()) > 100 * TOLERANCE


def test_what_a_library_raises_names_the_model_and_what_was_tried():
    with pytest.raises(StageError, match=r"^student\.model: transformers cannot build it \(gpt2\): ValueError: .*3"):
        build_skeleton("student.model", {**GPT2, "n_head": 3}, entries=97)
    with pytest.raises(StageError, match=re.escape("student.model: transformers cannot build it (dots1): TypeError")):
        build_skeleton("student.model", {"model_type": "dots1"}, entries=97)


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_mask_shows_whatever_the_weights_are(seed):
    config, skeleton = build_skeleton("student.model", NEO, entries=97)
    layers = layers_of_every_kind(skeleton)
    assert _try_all([likeness(config, layers, seed, spread) for spread in SPREADS], length=64) is not None


def test_a_difference_that_some_weights_hide_is_found():
    """In GPT-Neo's own configuration, some small models hardly attend to the tokens that the cache hides."""
    config, skeleton = build_skeleton("model", {"model_type": "gpt_neo"}, 300)
    with pytest.raises(StageError, match="unequal steps differs from a plain forward pass"):
        require_faithful("model", config, skeleton, 64)
