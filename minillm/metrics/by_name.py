"""The metrics by name, and checks that they see what they compare: some ignore whole scripts."""

import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.config import Metric
from minillm.errors import StageError
from minillm.metrics.json_schema import json_schema
from minillm.metrics.regex_group import regex_group
from minillm.metrics.rouge import characters, exact_match, has_words, normalised, rouge_l, rouge_l_characters
from minillm.patterns import QUOTED

UNSEEN_SHARE = 0.01
"""Largest share of unseen references: every set has a few that are an emoji or a pair of brackets."""


@dataclass(frozen=True)
class NamedMetric:
    """A metric, with what pages and checks must know of it."""

    title: str
    """Name on pages."""
    definition: str
    """Phrase in brackets on pages, that says what is measured."""
    hub: str
    """Name of the nearest metric on the hub."""
    compare: Callable[..., float]
    """Value of a response and its references, from 0 to 1; more is better. What `reads` names comes third."""
    sees: Callable[[str], Any] = bool
    """True of a text that the metric can tell from others."""
    reads: str | None = None
    """Field of the benchmark (`minillm.config.Scoring`), or of its rows, that the metric needs."""


def latin_words(text: str) -> bool:
    """Return True if a text has a word of a–z and digits, and at least half of its letters are Latin.

    In 東京 2020, Rouge-L of words sees only 2020, as it would for any other city.
    """
    letters = [character for character in text if character.isalpha()]
    return has_words(text) and 2 * sum(map(_latin, letters)) >= len(letters)


@functools.cache
def _latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")


METRICS_BY_NAME: Mapping[Metric, NamedMetric] = {
    "rouge_l": NamedMetric(
        "Rouge-L",
        "F-measure of the `rouge-score` package with stemming, the best of several references",
        "rouge",
        rouge_l,
        latin_words,
    ),
    "rouge_l_characters": NamedMetric(
        "Rouge-L of characters",
        "the same of the letters and digits of any script",
        "rouge",
        rouge_l_characters,
        characters,
    ),
    "exact_match": NamedMetric(
        "Exact match",
        "equal to a reference after lower-casing and without punctuation",
        "exact_match",
        exact_match,
        normalised,
    ),
    "regex": NamedMetric(
        "Regex match",
        "the group of a regular expression holds what it holds in a reference",
        "exact_match",
        regex_group,
        reads="pattern",
    ),
    "json_schema": NamedMetric(
        "Valid JSON",
        "the whole response is JSON that is valid against the schema",
        "accuracy",
        json_schema,
        reads="json_schema",
    ),
}
"""Each benchmark names the metric that is its score."""


def further(metric: Metric, *sources: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a metric reads beside a response and references, from the first source that has it.

    Args:
        metric: The metric.
        sources: Fields of a row, and of its benchmark.
    """
    name = METRICS_BY_NAME[metric].reads
    return () if name is None else (next(of[name] for of in sources if of.get(name) is not None),)


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
    unseen = [place for place, texts in enumerate(references) if not any(map(METRICS_BY_NAME[metric].sees, texts))]
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
        name
        for name, of in METRICS_BY_NAME.items()
        if of.reads is None and all(of.sees(text) for place in unseen for text in references[place])
    ]
    fit = f" ({' or '.join(others)})" if others else ""
    raise StageError(
        f"{told}. A perfect answer would score 0, and one that only shares a number would score 1; {remedy}{fit}"
    )
