"""What a model is and whether it fits the run, found without loading its weights."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minillm.config import Model, Strict
from minillm.errors import StageError
from minillm.models.model_files import require_weights
from minillm.nearest import suggestion


class ModelFacts(Strict):
    """One model, as models.json records it."""

    model_type: str
    parameters: int
    """Weights, tied ones counted once."""
    embedding_rows: int
    tokenizer_entries: int
    positions: int | None
    """Tokens it can see at most; None where it has no such limit."""


def inspect_model(role: str, model: Model, directory: Path | None, entries: int) -> ModelFacts:
    """Look at a model's configuration, built without memory for its weights.

    Args:
        role: teacher or student, for errors.
        model: As configured.
        directory: Of its files; None for an `architecture`.
        entries: Of the tokenizer.

    Raises:
        StageError: If it has no weights, is not a causal language model, or its embedding is too small.
    """
    if directory is not None:
        require_weights(directory)
    try:
        config = _architecture(model, entries) if directory is None else AutoConfig.from_pretrained(directory)
        _require_causal(config)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except StageError as error:
        raise StageError(f"{role}.model: {error}") from error
    except Exception as error:  # the architecture's own code refuses values in many ways
        raise StageError(f"{role}.model: transformers cannot build it: {error}") from error
    text = config.get_text_config()
    facts = ModelFacts(
        model_type=config.model_type,
        parameters=skeleton.num_parameters(),
        embedding_rows=int(skeleton.get_input_embeddings().weight.shape[0]),
        tokenizer_entries=entries,
        positions=getattr(text, "max_position_embeddings", None),
    )
    if facts.embedding_rows < entries:
        raise StageError(
            f"{role}.model has {facts.embedding_rows} embedding rows, fewer than the tokenizer's {entries} entries; "
            "use the tokenizer it was made with"
        )
    return facts


def require_positions(role: str, facts: ModelFacts, max_tokens: int, generation_tokens: int) -> None:
    """Check that the longest sequence of the run fits the model.

    Raises:
        StageError: If it does not.
    """
    if facts.positions is not None and facts.positions < max(max_tokens, generation_tokens):
        raise StageError(
            f"{role}.model ({facts.model_type}) sees at most {facts.positions} tokens, but data.max_tokens is "
            f"{max_tokens} and the longest benchmark prompt with its response {generation_tokens}; lower "
            "data.max_tokens or evaluation.max_prompt_tokens, or take a model with more positions"
        )


def _require_causal(config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise StageError(
            f"{config.model_type} is an encoder–decoder model; the method is for causal language models "
            "(gpt2, opt, llama, gptj, mistral, qwen2 …)"
        )
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise StageError(f"{config.model_type} is not a causal language model")


def _architecture(model: Model, entries: int) -> PreTrainedConfig:
    """The configuration of a model to initialise; fields that its class does not know are refused."""
    assert model.architecture is not None
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)  # only their being entries counts here
    fields: dict[str, Any] = {"vocab_size": entries, **special, **model.architecture}
    name = str(fields.pop("model_type"))
    try:
        default = AutoConfig.for_model(name)
    except ValueError as error:
        known = suggestion(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise StageError(f"architecture.model_type {name!r} is unknown; {known}") from error
    _require_causal(default)
    known = {field.name for field in dataclasses.fields(default)} | set(default.attribute_map)
    for field in model.architecture:
        if field not in known and not hasattr(default, field):
            raise StageError(f"architecture.{field} is no field of {name}; {suggestion(field, known)}")
    return AutoConfig.for_model(name, **fields)
