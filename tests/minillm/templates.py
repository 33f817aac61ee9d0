"""Small tokenizers with chat templates of the forms in use, written for the tests."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


def chat_tokenizer(template: str, prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer with a chat template; EOS is `</s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made


def save_chat_tokenizer(directory: Path, template: str) -> Path:
    """Write one as the directory of a model whose responses end with `</s>` or `<|end|>`."""
    tokenizer = chat_tokenizer(template)
    tokenizer.save_pretrained(directory)
    ends = tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    return directory
