"""Facts about a model, and checks that it fits the run, without loading its weights."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minillm.errors import StageError, error_words
from minillm.models.causal_lm import initial_fields
from minillm.models.facts import ModelFacts
from minillm.models.model_files import require_weights
from minillm.nearest import suggestion


def require_loadable(name: str, directory: Path) -> dict[str, Any]:
    """Check that a model's files are of an architecture that transformers has.

    Args:
        name: Name of the model, for errors.
        directory: Directory of its files.

    Returns:
        The fields of its config.json.

    Raises:
        StageError: The model has no weights or no readable configuration, or needs code of its own.
    """
    require_weights(directory)
    with explained(name, f"read the configuration in {directory}"):
        fields, _ = PreTrainedConfig.get_config_dict(directory)
    if not isinstance(fields, dict):
        raise StageError(f"{name}: {directory / 'config.json'} holds no JSON object; get the file again")
    if "auto_map" in fields and str(fields.get("model_type")) not in CONFIG_MAPPING:
        raise StageError(
            f"{name}: {directory} is of an architecture of its own ({fields.get('model_type')}) and needs code that "
            "comes with it, which is never run; take a model whose architecture transformers has"
        )
    return fields


@contextmanager
def explained(name: str, attempt: str) -> Iterator[None]:
    """Turn a library's error into one that names the model and what was attempted.

    Raises:
        StageError: Anything was raised within.
    """
    try:
        yield
    except StageError as error:
        raise StageError(f"{name}: {error}") from error
    except Exception as error:  # an architecture's own code refuses values in many ways
        raise StageError(f"{name}: transformers cannot {attempt}: {error_words(error)}") from error


def build_skeleton(
    name: str, origin: Mapping[str, Any] | Path, entries: int
) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """Read a model's configuration and build the model on the meta device, without memory for its weights.

    Args:
        name: Name of the model, for errors.
        origin: Architecture of the model, or the directory of its files.
        entries: Number of the tokenizer's entries.

    Raises:
        StageError: It is not a causal language model, or transformers cannot build it.
    """
    with explained(name, f"read the configuration in {origin}" if isinstance(origin, Path) else "build it"):
        config = AutoConfig.from_pretrained(origin) if isinstance(origin, Path) else _architecture(origin, entries)
        _require_causal(config)
    with explained(name, f"build it ({config.model_type})"), torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config)


def inspect_model(name: str, config: PreTrainedConfig, skeleton: PreTrainedModel, entries: int) -> ModelFacts:
    """Collect the sizes of a model.

    Args:
        name: Name of the model, for errors.
        config: Configuration of the model.
        skeleton: The model on the meta device.
        entries: Number of the tokenizer's entries.

    Raises:
        StageError: The model's embedding is too small, or its configuration lacks a size.
    """
    with explained(name, f"tell the sizes of {config.model_type}"):
        text = config.get_text_config()
        body = _body(skeleton)
        facts = ModelFacts(
            model_type=config.model_type,
            parameters=skeleton.num_parameters(),
            body_parameters=sum(parameter.numel() for parameter in body),
            matrix_edges=sum(sum(parameter.shape) for parameter in body if parameter.dim() == 2),
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            cache_width=max(map(_cache_width, getattr(text, "per_layer_config", [text]))),
            embedding_rows=int(skeleton.get_input_embeddings().weight.shape[0]),  # type: ignore[index]
            tokenizer_entries=entries,
            positions=getattr(text, "max_position_embeddings", None),
        )
    if facts.embedding_rows < entries:
        raise StageError(
            f"{name} has {facts.embedding_rows} embedding rows, fewer than the tokenizer's {entries} entries; "
            "use the tokenizer it was made with"
        )
    return facts


def require_positions(name: str, facts: ModelFacts, max_tokens: int, generation_tokens: int) -> None:
    """Check that the longest sequence of the run fits the model.

    Raises:
        StageError: The sequence is longer than the model's positions.
    """
    if facts.positions is not None and facts.positions < max(max_tokens, generation_tokens):
        raise StageError(
            f"{name} ({facts.model_type}) sees at most {facts.positions} tokens, but data.max_tokens is "
            f"{max_tokens} and the longest benchmark prompt with its response {generation_tokens}; lower "
            "data.max_tokens or evaluation.max_prompt_tokens, or take a model with more positions"
        )


def _cache_width(layer: PreTrainedConfig) -> int:
    """Width of one layer's keys and values. A model without attention counts as if its state were one head."""
    heads = getattr(layer, "num_attention_heads", 1)
    head_width = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return 2 * head_width * (getattr(layer, "num_key_value_heads", None) or heads)


def _body(model: PreTrainedModel) -> list[nn.Parameter]:
    """Weights that belong neither to embeddings nor to the head."""
    head = model.get_output_embeddings()
    ends = [module for module in model.modules() if isinstance(module, nn.Embedding) or module is head]
    outside = {id(parameter) for module in ends for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in outside]


def _require_causal(config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise StageError(
            f"{config.model_type} is an encoder–decoder model; the method is for causal language models "
            "(gpt2, opt, llama, gptj, mistral, qwen2 …)"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise StageError(f"{config.model_type} is not a causal language model")


def _architecture(architecture: Mapping[str, Any], entries: int) -> PreTrainedConfig:
    """Make the configuration of a model to initialise, and refuse fields that its class does not know."""
    fields = initial_fields(architecture, entries, eos=0)  # any entry will do as EOS here
    name = str(fields.pop("model_type"))
    try:
        default = AutoConfig.for_model(name)
    except ValueError as error:
        known = suggestion(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise StageError(f"architecture.model_type {name!r} is unknown; {known}") from error
    _require_causal(default)
    known = {field.name for field in dataclasses.fields(default)} | set(default.attribute_map)
    for field in architecture:
        if field not in known and not hasattr(default, field):
            raise StageError(f"architecture.{field} is no field of {name}; {suggestion(field, known)}")
    return AutoConfig.for_model(name, **fields)
