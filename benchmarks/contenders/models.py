"""Models that contenders share: GPT-2's architecture from a configuration, with the same weights for everyone."""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel


def gpt2(
    width: int, layers: int, vocabulary: int, positions: int, seed: int, dtype: str = "float32"
) -> PreTrainedModel:
    """Return a randomly initialised model without dropout, in evaluation mode; no token ends its responses."""
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=max(1, width // 64),
        vocab_size=vocabulary,
        n_positions=positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).to(getattr(torch, dtype)).eval()


def student_and_teacher(settings: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return student and teacher of the sizes in the settings."""
    positions = settings["prompt_tokens"] + settings["new_tokens"]
    student, teacher = (
        gpt2(*settings[name], settings["vocabulary"], positions, seed, settings["dtype"])
        for seed, name in enumerate(("student", "teacher"))
    )
    return student, teacher.requires_grad_(False)


def prompts(settings: dict[str, Any]) -> list[list[int]]:
    """Return random prompts of equal length."""
    generator = torch.Generator().manual_seed(0)
    shape = settings["batch_size"], settings["prompt_tokens"]
    return torch.randint(1, settings["vocabulary"], shape, generator=generator).tolist()
