"""The metrics by name, and whether they see what they are to compare: some scripts mean nothing to some of them."""

import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from minillm.config import Metric
from minillm.errors import StageError
from minillm.metrics.rouge import characters, exact_match, has_words, normalised, rouge_l, rouge_l_characters

METRICS_BY_NAME: Mapping[Metric, Callable[[str, Sequence[str]], float]] = {
    "rouge_l": rouge_l,
    "rouge_l_characters": rouge_l_characters,
    "exact_match": exact_match,
}
"""Of a response against its references, 0 to 1; each benchmark names the one that is its score."""
UNSEEN_SHARE = 0.01
"""Of the references, at most: every set has a few that are an emoji or a pair of brackets."""
QUOTED = 40
"""Characters of a reference in a message."""


def sees(metric: Metric, text: str) -> bool:
    """Whether a metric can tell a text from others.

    Rouge-L of words needs a word of a–z and digits, and most letters Latin: of 東京 2020 it sees 2020, of any other
    city too.
    """
    if metric == "rouge_l":
        letters = [character for character in text if character.isalpha()]
        return has_words(text) and 2 * sum(map(_latin, letters)) >= len(letters)
    return bool(characters(text) if metric == "rouge_l_characters" else normalised(text))


def require_seen(what: str, references: Sequence[Sequence[str]], metric: Metric, remedy: str) -> None:
    """Refuse references that a metric cannot see; a few of them are told.

    Args:
        what: They belong to, in words.
        references: Of each prompt; one that is seen is enough.
        metric: That compares with them.
        remedy: What to change, in words.

    Raises:
        StageError: More than `UNSEEN_SHARE` of the prompts have none; with their number and the first.
    """
    unseen = [place for place, texts in enumerate(references) if not any(sees(metric, text) for text in texts)]
    if not unseen:
        return
    first = references[unseen[0]][0]
    quoted = first[:QUOTED] + ("…" if len(first) > QUOTED else "")
    told = (
        f"{what}: {metric} sees nothing of {len(unseen)} of {len(references)} references, the first is number "
        f"{unseen[0]}, counted from 0: {quoted!r}"
    )
    if len(unseen) <= UNSEEN_SHARE * len(references):
        print(f"{told}; they score 0 whatever is answered", flush=True)
        return
    others = [
        name for name in METRICS_BY_NAME if all(sees(name, text) for place in unseen for text in references[place])
    ]
    fit = f" ({' or '.join(others)})" if others else ""
    raise StageError(
        f"{told}. A perfect answer would score 0, and one that only shares a number would score 1; {remedy}{fit}"
    )


@functools.cache
def _latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")
