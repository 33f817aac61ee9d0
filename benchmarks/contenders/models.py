"""Models that contenders share: random weights from a configuration, the same for everyone."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

Size = Sequence[int] | Mapping[str, Any]
"""Width and layers of a GPT-2 with heads of 64, or a configuration's fields with its `model_type`."""
SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices with which a device's rate is measured."""


def random_model(
    size: Size, vocabulary: int, positions: int, seed: int, dtype: str = "float32", device: str = "cpu"
) -> PreTrainedModel:
    """Return a randomly initialised model without dropout, in evaluation mode; no token ends its responses."""
    torch.manual_seed(seed)
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    if isinstance(size, Mapping):
        config = AutoConfig.for_model(**size, vocab_size=vocabulary, max_position_embeddings=positions, **tokens)
    else:
        width, layers = size
        config = AutoConfig.for_model(
            "gpt2",
            n_embd=width,
            n_layer=layers,
            n_head=max(1, width // 64),
            vocab_size=vocabulary,
            n_positions=positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **tokens,
        )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def student_and_teacher(settings: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return student and teacher of the sizes in the settings, on the settings' device."""
    positions = settings["prompt_tokens"] + settings["new_tokens"]
    where = settings["dtype"], settings.get("device", "cpu")
    student, teacher = (
        random_model(settings[name], settings["vocabulary"], positions, seed, *where)
        for seed, name in enumerate(("student", "teacher"))
    )
    return student, teacher.requires_grad_(False)


def prompts(settings: dict[str, Any]) -> list[list[int]]:
    """Return random prompts of equal length."""
    generator = torch.Generator().manual_seed(0)
    shape = settings["batch_size"], settings["prompt_tokens"]
    return torch.randint(1, settings["vocabulary"], shape, generator=generator).tolist()


def clock(device: str) -> float:
    """Return the time once the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str) -> dict[str, float]:
    """Return the most memory that tensors held on a GPU; nothing on the CPU, where the whole process is measured."""
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if device == "cuda" else {}


def machine_rate(dtype: str, device: str) -> float:
    """Return operations per second of a linear layer with a large square matrix: the best of three."""
    side = SIDES[device]
    left, right = torch.randn(2, side, side, device=device).to(getattr(torch, dtype))
    seconds = []
    for _ in range(3):
        before = clock(device)
        torch.nn.functional.linear(left, right)
        seconds.append(clock(device) - before)
    return 2 * side**3 / min(seconds)
