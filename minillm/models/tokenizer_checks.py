"""Whether a tokenizer serves, and whether models share it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minillm.errors import StageError

PROBE = "Naïve café №3:\n\n### Response:\n  1,234.5 × 10⁶ → 答え \t’tis “so”.\n"
"""Spaces, line ends, digits, accents, punctuation and another script: what pre-tokenisers treat differently."""


def load_tokenizer(directory: Path, owner: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, `owner` naming it in errors; no code from the directory is run.

    Raises:
        StageError: If there is none, or it has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise StageError(
            f"{owner}: {directory} has no tokenizer that transformers can load ({error}); put its tokenizer.json and "
            "tokenizer_config.json there or, to distil, set tokenizer.path to a directory that has them"
        ) from error
    if tokenizer.eos_token_id is None:
        raise StageError(
            f"{owner}: the tokenizer in {directory} has no end-of-sequence token, so no response would ever end; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return tokenizer


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a tokenizer's files."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def require_same_tokenizer(
    ours: PreTrainedTokenizerBase, our_name: str, theirs: PreTrainedTokenizerBase, their_name: str
) -> None:
    """Check that two tokenizers give the same tokens; padding is not compared, it is never looked at.

    Raises:
        StageError: Naming the first token, special token or piece of a probe text that differs.
    """
    difference = _difference(ours, theirs)
    if difference:
        what, here, there = difference
        raise StageError(
            f"{our_name} and {their_name} have different tokenizers: {what} is {here} in {our_name} and {there} in "
            f"{their_name}. Distillation compares distributions over one vocabulary: use two models of one family"
        )


def _difference(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> tuple[str, str, str] | None:
    our_tokens = {index: token for token, index in ours.get_vocab().items()}
    their_tokens = {index: token for token, index in theirs.get_vocab().items()}
    for index in sorted(our_tokens.keys() | their_tokens.keys()):
        here, there = our_tokens.get(index, "absent"), their_tokens.get(index, "absent")
        if here != there:
            return f"token {index}", repr(here), repr(there)
    for name in ("eos_token_id", "bos_token_id"):
        here, there = getattr(ours, name), getattr(theirs, name)
        if here != there:
            return name, str(here), str(there)
    here, there = (tokenizer(PROBE)["input_ids"] for tokenizer in (ours, theirs))
    if here != there:
        return f"the encoding of {PROBE!r}", str(here), str(there)
    return None
