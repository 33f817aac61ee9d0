"""The tokenizer that the models of a run share, its number of entries, and the tokens that end a response."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from minillm.errors import StageError
from minillm.files import read_json


@dataclass(frozen=True)
class SharedTokenizer:
    """A tokenizer with the facts that generation and losses need."""

    tokenizer: PreTrainedTokenizerBase
    entries: int
    """V, the largest token id + 1."""
    holes: frozenset[int]
    """Ids below V that no token has. Models give them a probability too, so they stay in the softmax of student,
    teacher and mixture alike; one that is drawn writes nothing."""
    ends: tuple[int, ...]
    """Tokens that end a response. The first is the tokenizer's EOS, which training text ends with."""

    @property
    def eos(self) -> int:
        """The token that ends training text."""
        return self.ends[0]

    def texts(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Decode responses to text, without their end tokens and other special tokens."""
        ended = [len(ids) > 0 and ids[-1] in self.ends for ids in responses]
        bodies = [ids[:-1] if end else ids for ids, end in zip(responses, ended, strict=True)]
        bodies = [[token for token in body if token not in self.holes] for body in bodies]
        return self.tokenizer.batch_decode(bodies, skip_special_tokens=True)

    def generation_config(self, **decoding: Any) -> GenerationConfig:
        """Return settings with which `generate` of transformers samples and ends responses as this run does.

        Args:
            decoding: Further fields; without any, plain sampling from the model's distribution.
        """
        tokens = {
            "eos_token_id": list(self.ends),
            "bos_token_id": self.tokenizer.bos_token_id,
            "pad_token_id": self.eos if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
        }
        plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(**tokens, **(decoding or plain))


def share(tokenizer: PreTrainedTokenizerBase, named: Iterable[int] = ()) -> SharedTokenizer:
    """Return a tokenizer with the tokens that end a response: its EOS, and those of `named` that are entries.

    Raises:
        StageError: The tokenizer has no EOS token.
    """
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise StageError("the tokenizer has no EOS token, so no response could end; set its eos_token")
    entries = entries_of(tokenizer)
    holes = frozenset(range(entries)) - set(tokenizer.get_vocab().values())
    others = {token for token in named if 0 <= token < entries} - {eos}
    return SharedTokenizer(tokenizer, entries, holes, (eos, *sorted(others)))


def load_shared_tokenizer(directory: Path) -> SharedTokenizer:
    """Load the tokenizer of a `prepare` artifact or model directory, with the end tokens named there; runs no code."""
    return share(AutoTokenizer.from_pretrained(directory), named_end_tokens(directory))


def entries_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest token id + 1; `len(tokenizer)` is less where ids have holes."""
    return max(tokenizer.get_vocab().values()) + 1


def named_end_tokens(directory: Path) -> list[int]:
    """Read the end tokens of a checkpoint from generation_config.json or, if it has none, config.json.

    These are the tokens at which `generate` of transformers would end.

    Raises:
        StageError: A file names something that is no token id.
    """
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if path.is_file():
            named = _end_tokens(path)
            if named:
                return named
    return []


def _end_tokens(path: Path) -> list[int]:
    try:
        fields = read_json(path)
        value = fields.get("eos_token_id", (fields.get("text_config") or {}).get("eos_token_id"))
    except (ValueError, AttributeError) as error:
        raise StageError(f"{path} cannot be read as a JSON object ({error}); get the file again") from error
    named = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in named):
        raise StageError(f"{path}: eos_token_id is {value!r}; give a token id, or a list of them")
    return named
