"""Checks that a tokenizer can be used, and that models share it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minillm.errors import StageError, error_words

PROBE = "Naïve café №3:\n\n### Response:\n  1,234.5 × 10⁶ → 答え \t’tis “so”.\n"
"""Text with what pre-tokenisers treat differently: spaces, line ends, digits, accents, punctuation, another script."""

VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken", "tekken.json")
"""Files from which the tokenizers of transformers read their tokens."""


def load_original_tokenizer(directory: Path, owner: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer as its directory has it. No code from the directory is run.

    Args:
        directory: Directory of the tokenizer's files.
        owner: Name of the directory's owner in errors, e.g. teacher.model.

    Raises:
        StageError: There is no tokenizer that transformers can load.
    """
    try:
        return AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # a broken file fails in many ways
        raise StageError(
            f"{owner}: {directory} has no tokenizer that transformers can load ({error_words(error)}); put its "
            "tokenizer.json and tokenizer_config.json there or, to distil, set tokenizer.from to the other model or a "
            "directory that has them"
        ) from error


def require_end(tokenizer: PreTrainedTokenizerBase, directory: Path, owner: str) -> None:
    """Check that a tokenizer has an end-of-sequence token.

    Raises:
        StageError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise StageError(
            f"{owner}: the tokenizer in {directory} has no end-of-sequence token, so no response would ever end; "
            "set `eos_token` in its tokenizer_config.json"
        )


def has_tokenizer(directory: Path) -> bool:
    """Return True if a directory holds a tokenizer's files."""
    return any(next(directory.glob(name), None) for name in VOCABULARY_FILES)


def require_same_tokenizer(
    ours: PreTrainedTokenizerBase, our_name: str, theirs: PreTrainedTokenizerBase, their_name: str
) -> None:
    """Check that two tokenizers have the same tokens under the same ids, and split a text into the same ones.

    The roles of tokens (EOS, BOS, padding) may differ, as between the base and the chat model of one family. One
    tokenizer may also have added tokens that the other lacks.

    Raises:
        StageError: They differ. The message has the first token that differs, or the encodings of a probe text.
    """
    difference = _difference(ours, theirs)
    if difference:
        what, here, there = difference
        raise StageError(
            f"{our_name} and {their_name} have different tokenizers: {what} is {here} in {our_name} and {there} in "
            f"{their_name}. Distillation compares probabilities token by token, so both models must have learnt the "
            "same token ids: take another teacher or student (usually of the same family); no setting makes up for this"
        )


def _difference(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> tuple[str, str, str] | None:
    our_ids, their_ids = ours.get_vocab(), theirs.get_vocab()
    our_tokens = {index: token for token, index in our_ids.items()}
    their_tokens = {index: token for token, index in their_ids.items()}
    for index in sorted(our_tokens.keys() | their_tokens.keys()):
        here, there = our_tokens.get(index), their_tokens.get(index)
        if here == there or (there is None and _only_in(ours, index, here, their_ids)):
            continue
        if here is None and _only_in(theirs, index, there, our_ids):
            continue
        return f"token {index}", _quoted(here), _quoted(there)
    here, there = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (ours, theirs))
    if here != there:
        return f"the encoding of {PROBE!r}", str(here), str(there)
    return None


def _quoted(token: str | None) -> str:
    return "absent" if token is None else repr(token)


def _only_in(tokenizer: PreTrainedTokenizerBase, index: int, token: str | None, other: dict[str, int]) -> bool:
    """Return True if a token was added to a tokenizer's vocabulary and the other tokenizer lacks it."""
    return index in tokenizer.added_tokens_decoder and token not in other
