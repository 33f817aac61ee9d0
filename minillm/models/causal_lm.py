"""Loading, running and saving causal language models of any Hugging Face architecture."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minillm.errors import StageError
from minillm.models.lora import ADAPTER, merged_weights
from minillm.models.model_files import require_weights
from minillm.models.weight_files import require_all_loaded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

transformers.logging.disable_progress_bar()  # a worker's log is read line by line


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory; never runs code from it."""
    return AutoTokenizer.from_pretrained(directory)


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a response."""
    if not isinstance(tokenizer.eos_token_id, int):
        raise StageError("the tokenizer has no EOS token, so no response could end; set its eos_token")
    return tokenizer.eos_token_id


def model_directory(path: Path) -> Path:
    """Where an input's model is: a train artifact holds it in model/, a plain model directory is it."""
    return path / "model" if (path / "model").is_dir() else path


def load_model(path: Path, dtype: torch.dtype = torch.float32, dropout: bool = True) -> PreTrainedModel:
    """Load a train artifact's or directory's weights, all of them; never runs code from it.

    Args:
        path: Train artifact or model directory.
        dtype: Of the weights.
        dropout: Keep the dropout of the model's configuration; otherwise none.

    Raises:
        StageError: If a weight is missing, left over or of another shape.
    """
    directory = model_directory(path)
    require_weights(directory)
    config = AutoConfig.from_pretrained(directory)
    if not dropout:
        _disable_dropout(config)
    model, found = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]  # a pair with output_loading_info
        directory, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
    )
    require_all_loaded(str(directory), model, found)
    return model


def build_model(
    architecture: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    dtype: torch.dtype = torch.float32,
    dropout: bool = True,
) -> PreTrainedModel:
    """Initialise a model at random.

    Args:
        architecture: Fields of its Hugging Face configuration, `model_type` among them.
        tokenizer: Gives the vocabulary size and the special tokens.
        seed: Of the initial weights; the same seed gives the same weights.
        dtype: Of the weights.
        dropout: Keep the dropout of the architecture; otherwise none.
    """
    special = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id")}  # a pad row would not learn
    fields = {"vocab_size": len(tokenizer), **special, **architecture}
    config = AutoConfig.for_model(**fields)
    if not dropout:
        _disable_dropout(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _disable_dropout(config: PretrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name):
            setattr(config, name, 0.0)


def parameter_count(model: nn.Module) -> int:
    """Number of weights without adapters, tied ones counted once; right under ZeRO-3 too."""
    return sum(getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters() if ADAPTER not in name)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write weights (safetensors; adapters merged) and tokenizer as an ordinary Hugging Face directory."""
    model.save_pretrained(directory, state_dict=merged_weights(model))
    tokenizer.save_pretrained(directory)
