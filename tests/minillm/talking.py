"""Small models that can be talked to, one of them with every word of its answers laid down."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minillm.models.causal_lm import build_model, save_model
from minillm.models.shared_tokenizer import share
from tests.minillm.templates import chat_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


def random_model(directory: Path, template: str, positions: int = 1024) -> Path:
    """Write a random model with a chat template; its responses end with `</s>` or `<|end|>`."""
    tokenizer = chat_tokenizer(template)
    architecture = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    save_model(build_model(architecture, tokenizer, seed=1), share(tokenizer, [end(tokenizer)]), directory)
    return directory


def scripted_model(directory: Path, template: str, *answers: str, positions: int = 128) -> Path:
    """Write a model whose likeliest answers to "Hello", message after message, are given texts and `<|end|>`."""
    tokenizer, said = chat_tokenizer(template), list[dict[str, str]]()
    script: dict[int, int] = {}
    for answer in answers:
        said += HELLO
        prompt = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        assert isinstance(prompt, list)
        tokens = [*tokenizer(answer, add_special_tokens=False)["input_ids"], end(tokenizer)]
        script |= {len(prompt) - 1 + place: token for place, token in enumerate(tokens)}
        said.append({"role": "assistant", "content": answer})
    save_model(_by_position(script, positions, tokenizer), share(tokenizer, [end(tokenizer)]), directory)
    return directory


def end(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of `<|end|>`."""
    found = tokenizer.convert_tokens_to_ids("<|end|>")
    assert isinstance(found, int)
    return found


def _by_position(script: Mapping[int, int], positions: int, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Return a model that predicts the token of each position, whatever it has read."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=positions, n_positions=positions, n_layer=1, n_head=1,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(positions))
        nn.init.ones_(model.transformer.ln_f.weight)
        for position, token in script.items():
            model.lm_head.weight[token, position] = 9.0
    return model
