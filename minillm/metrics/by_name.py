"""The metrics by name, and checks that they see what they compare: some ignore whole scripts."""

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
"""Metrics of a response against its references, from 0 to 1; each benchmark names the one that is its score."""
UNSEEN_SHARE = 0.01
"""Largest share of unseen references: every set has a few that are an emoji or a pair of brackets."""
QUOTED = 40
"""Most characters of a reference that a message quotes."""


def sees(metric: Metric, text: str) -> bool:
    """Return True if a metric can tell a text from others.

    Rouge-L of words needs a word of a–z and digits, and at least half of the letters must be Latin: in 東京 2020 it
    sees only 2020, as it would for any other city.
    """
    if metric == "rouge_l":
        letters = [character for character in text if character.isalpha()]
        return has_words(text) and 2 * sum(map(_latin, letters)) >= len(letters)
    return bool(characters(text) if metric == "rouge_l_characters" else normalised(text))


def require_seen(what: str, references: Sequence[Sequence[str]], metric: Metric, remedy: str) -> None:
    """Refuse references that a metric cannot see; only print a warning if they are few.

    Args:
        what: The set that the references belong to, in words.
        references: References of each prompt; it is enough if one of them is seen.
        metric: Metric that compares with them.
        remedy: What to change, in words.

    Raises:
        StageError: More than `UNSEEN_SHARE` of the prompts have no reference that is seen. The message has their number
            and the first of them.
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
