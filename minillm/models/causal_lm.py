"""Loading, running and saving causal language models of any Hugging Face architecture."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minillm.config import Runtime
from minillm.files import read_json
from minillm.models.lora import ADAPTER, merged_weights
from minillm.models.model_files import require_weights
from minillm.models.shared_tokenizer import SharedTokenizer, share
from minillm.models.weight_files import require_all_loaded
from minillm.store.manifest import MANIFEST
from minillm.streams import Purpose, stream, torch_seed
from minillm.worker.processes import device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOW_BFLOAT16 = "bfloat16 takes ten times as long as `precision: float32` or more: this CPU has no instructions for it"

transformers.logging.disable_progress_bar()  # a worker's log is read line by line


def dtype_of(precision: Literal["float32", "bfloat16"]) -> torch.dtype:
    """Return the type of a model's weights in a precision; print a line, once in a process, if it is slow here."""
    if precision == "bfloat16" and bfloat16_is_slow():
        _say_once(SLOW_BFLOAT16)
    return DTYPES[precision]


def bfloat16_is_slow() -> bool:
    """Tell if products in bfloat16 run on a CPU that PyTorch's library (oneDNN) has no kernels for."""
    return not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def _say_once(words: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(words, flush=True)


def model_directory(path: Path) -> Path:
    """Return the folder of an input's model: `model/` in a train artifact, else the directory itself."""
    return path / "model" if (path / "model").is_dir() else path


def load_model(
    path: Path, dtype: torch.dtype | Literal["auto"] = torch.float32, dropout: bool = True
) -> PreTrainedModel:
    """Load all weights of a train artifact or model directory; code in it is never run.

    Args:
        path: Train artifact or model directory.
        dtype: Precision of the weights; `auto` for that in which they are stored.
        dropout: Keep the dropout of the model's configuration; otherwise there is none.

    Raises:
        StageError: A weight is missing, left over or of another shape.
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


def load_frozen(path: Path, dtype: torch.dtype, runtime: Runtime, role: str | None = None) -> PreTrainedModel:
    """Load a model that is only run: the teacher as `runtime.teacher_zero_stage` says, any other whole.

    Args:
        path: Train artifact or model directory.
        dtype: Precision of the weights.
        runtime: Says whether the teacher's weights are shared out, and where the parts are kept.
        role: `teacher` or another; None for that of its training or, without a record of one, the teacher's.
    """
    if runtime.teacher_zero_stage == 3 and is_teacher(path, role):
        from minillm.models.sharding import load_sharded  # DeepSpeed takes seconds

        return load_sharded(path, dtype, runtime.teacher_offload)
    return load_model(path, dtype).to(device()).eval().requires_grad_(False)  # type: ignore[arg-type]


def is_teacher(path: Path, role: str | None = None) -> bool:
    """Tell if a model has the teacher's role, by the role given, else by its training; one without a record has it."""
    if role is None and (record := path / MANIFEST).exists():
        role = read_json(record)["settings"].get("role", "")
    return role in (None, "teacher")


def build_model(
    architecture: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    dtype: torch.dtype = torch.float32,
    dropout: bool = True,
) -> PreTrainedModel:
    """Build a model with random weights.

    Args:
        architecture: Fields of its Hugging Face configuration, `model_type` among them.
        tokenizer: Gives the vocabulary size and the special tokens.
        seed: Seed of the weights; the same seed gives the same weights.
        dtype: Precision of the weights.
        dropout: Keep the dropout of the architecture; otherwise there is none.
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
    """Return the configuration fields of a model to build: those given, completed by the tokenizer's.

    There is no padding token: padding is masked, and the default ids of some classes (OPT 1, Gemma 0) are real tokens
    here, whose embeddings would start at zero and never learn.
    """
    special = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None}
    return {"vocab_size": entries, **special, **architecture}


def _all_rows_learn(model: PreTrainedModel) -> PreTrainedModel:
    """Let every row of the embedding learn: PyTorch gives the row `padding_idx` no gradient.

    Checkpoints name EOS there, or any token their tokenizer had to spare. Padding is masked here.
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
    """Count the weights without adapters, tied ones once; correct under ZeRO-3 too."""
    return sum(getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters() if ADAPTER not in name)


def save_model(
    model: PreTrainedModel, shared: SharedTokenizer, directory: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """Write weights (safetensors; adapters merged) and tokenizer as an ordinary Hugging Face directory.

    `weights` are those to write if the model's are elsewhere.

    Its generation settings are this run's; those of the original checkpoint (penalties, forced tokens, lengths) do not
    apply to the trained model.
    """
    model.generation_config = shared.generation_config()
    model.save_pretrained(directory, state_dict=merged_weights(model) if weights is None else weights)
    shared.tokenizer.save_pretrained(directory)
