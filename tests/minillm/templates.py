"""Small tokenizers with chat templates of the forms in use, written for the tests."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minillm.models.causal_lm import build_model, save_model
from minillm.models.shared_tokenizer import share

SPECIAL = ["<s>", "</s>", "<|start|>", "<|end|>", "[INST]", "[/INST]", "<|tool|>"]
CORPUS = [
    "What is the weather in Rome? It is sunny, and 21 degrees. Thank you! You are welcome. Be brief. assistant user"
]

_TOOLS = "{% if tools %}{{ 'Tools: ' + tools | tojson + '\\n' }}{% endif %}"
_CALLS = (
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ '<|tool|>' + call.function.name + ' ' + call.function.arguments | tojson }}{% endfor %}{% endif %}"
)
TURNS = (
    _TOOLS + "{% for message in messages %}"
    "{{ '<|start|>' + message.role + '\\n' + message.content }}" + _CALLS + "{{ '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
"""A start and an end token around each message (the form of ChatML)."""
MARKED = (
    _TOOLS + "{% for message in messages %}{{ '<|start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{%- generation -%}{{ message.content }}" + _CALLS + "{{ '<|end|>' }}"
    "{%- endgeneration -%}{{ '\\n' }}{% else %}{{ message.content + '<|end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
"""The same, with marks around what the model generates."""
INSTRUCTIONS = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{% elif message.role == 'assistant' %}{{ ' ' + message.content + '</s>' }}"
    "{% else %}{{ raise_exception('only user and assistant, please') }}{% endif %}{% endfor %}"
)
"""Brackets around the user's messages, no generation prompt, no system (the form of Mistral's)."""
THINKING = (
    "{% set last = messages | length - 1 %}{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' and loop.index0 < last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|start|>' + message.role + '\\n' + content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""Thoughts in the last answer alone (the form of Qwen 3)."""
OPEN = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""No end token at all."""


def chat_tokenizer(template: str | None, prefix_space: bool = False, **roles: Any) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer with a chat template; EOS is `</s>` unless `roles` say otherwise."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    usual = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": SPECIAL[2:]}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **(usual | roles))
    made.chat_template = template
    return made


def save_chat_tokenizer(directory: Path, template: str) -> Path:
    """Write one as the directory of a model whose responses end with `</s>` or `<|end|>`."""
    tokenizer = chat_tokenizer(template)
    tokenizer.save_pretrained(directory)
    ends = tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    return directory


def save_family(folder: Path) -> dict[str, Path]:
    """Write a base and a chat model of one family: the same ids, but other roles, templates and generation settings."""
    roles = {"additional_special_tokens": [], "bos_token": None, "pad_token": "[INST]"}
    base, chat = chat_tokenizer(None, **roles), chat_tokenizer(TURNS, eos_token="<|end|>")
    ends = {"base": ["</s>"], "chat": ["<|end|>", "<s>"]}
    architecture = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 256}
    for name, tokenizer in (("base", base), ("chat", chat)):
        save_model(build_model(architecture, tokenizer, seed=len(name)), share(tokenizer), folder / name)
        settings = {"eos_token_id": base.convert_tokens_to_ids(ends[name]), "repetition_penalty": 1.3}
        (folder / name / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return {name: folder / name for name in ends}
