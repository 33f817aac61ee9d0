"""Loading, running and saving causal language models of any Hugging Face architecture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minillm.models.lora import ADAPTER, merged_weights
from minillm.models.model_files import require_weights
from minillm.models.shared_tokenizer import SharedTokenizer, share
from minillm.models.weight_files import require_all_loaded
from minillm.streams import Purpose, stream, torch_seed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

transformers.logging.disable_progress_bar()  # a worker's log is read line by line


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
    return _all_rows_learn(model)


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
    shared = share(tokenizer)
    config = AutoConfig.for_model(**initial_fields(architecture, shared.entries, shared.eos))
    if not dropout:
        _disable_dropout(config)
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(stream(Purpose.INITIAL_WEIGHTS, seed)))
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return _all_rows_learn(model)


def initial_fields(architecture: Mapping[str, Any], entries: int, eos: int) -> dict[str, Any]:
    """Fields of the configuration of a model to initialise: those given, and the tokenizer's.

    There is no padding token: padding is masked, and the defaults of some classes (1 of OPT, 0 of Gemma) are the ids of
    real tokens here, whose embedding would start at zero and never learn.
    """
    special = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None}
    return {"vocab_size": entries, **special, **architecture}


def _all_rows_learn(model: PreTrainedModel) -> PreTrainedModel:
    """Give every row of the embedding its gradient, which PyTorch withholds from the row `padding_idx`.

    Checkpoints name EOS there, or whatever token their tokenizer had to spare. Padding is masked here.
    """
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = None
    return model


def _disable_dropout(config: PretrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name):
            setattr(config, name, 0.0)


def parameter_count(model: nn.Module) -> int:
    """Number of weights without adapters, tied ones counted once; right under ZeRO-3 too."""
    return sum(getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters() if ADAPTER not in name)


def save_model(model: PreTrainedModel, shared: SharedTokenizer, directory: Path) -> None:
    """Write weights (safetensors; adapters merged) and tokenizer as an ordinary Hugging Face directory.

    Its generation settings are this run's. Those of the checkpoint that the model comes from (penalties, forced
    tokens, lengths) say nothing of the trained model.
    """
    model.generation_config = shared.generation_config()
    model.save_pretrained(directory, state_dict=merged_weights(model))
    shared.tokenizer.save_pretrained(directory)
