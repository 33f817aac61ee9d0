"""Tokenizer with one word per token, for contenders that take text."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmarks.contenders.models import prompts


def tokenizer_of_words(settings: dict[str, Any]) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Return the tokenizer, whose words are w0, w1, …, and the shared prompts as text."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(settings["vocabulary"])}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w0", padding_side="left")
    return tokenizer, [" ".join(f"w{token}" for token in prompt) for prompt in prompts(settings)]
