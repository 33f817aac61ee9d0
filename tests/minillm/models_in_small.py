"""Small models of every architecture that the published configurations use."""

from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

if TYPE_CHECKING:
    from torch import Tensor

    from minillm.models.batches import Batch

LLAMA_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2", **GPT_LIKE},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "max_position_embeddings": 256,
    },
    "llama": {"model_type": "llama", **LLAMA_LIKE},
    "gptj": {"model_type": "gptj", **GPT_LIKE, "rotary_dim": 8},
    "mistral": {"model_type": "mistral", **LLAMA_LIKE, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", **LLAMA_LIKE, "num_key_value_heads": 1},
}
VARIED = {
    "mistral, all in windows": {"model_type": "mistral", **LLAMA_LIKE, "sliding_window": 4},
    "gemma3, some in windows": {
        "model_type": "gemma3_text",
        **LLAMA_LIKE,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "final_logit_softcapping": 2.0,
    },
    "llama4, some in chunks": {
        "model_type": "llama4_text",
        **LLAMA_LIKE,
        "head_dim": 16,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "attention_chunk_size": 4,
        "no_rope_layers": [1, 0],
    },
    "cohere2, logits multiplied": {"model_type": "cohere2", **LLAMA_LIKE, "sliding_window": 4, "logit_scale": 0.3},
    "granite, logits divided": {"model_type": "granite", **LLAMA_LIKE, "logits_scaling": 3.0},
}
"""Masks that differ by layer, and factors of the logits."""


def small_model(name: str, vocabulary: int = 101, seed: int = 0, spread: float = 0.5) -> PreTrainedModel:
    """Return a random model with token 0 as EOS; `spread` makes its distributions far from uniform."""
    import torch

    config = AutoConfig.for_model(
        **(ARCHITECTURES | VARIED)[name],
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=spread,
        init_std=spread,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def response_logits(model: PreTrainedModel, batch: "Batch", vocabulary: int) -> "Tensor":
    """Return the logits (B, T, V) that predict each response token, from the model's own padded forward pass."""
    positions = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)
    output = model(batch.tokens, attention_mask=batch.mask.long(), position_ids=positions, use_cache=False)
    return output.logits[:, batch.prompt_width - 1 : -1, :vocabulary]
