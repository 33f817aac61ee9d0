"""Rouge-L and exact match of a response against its references (method.md §7).

Rouge-L is the F-measure of the longest common subsequence of Porter-stemmed words, equal to the `rouge-score`
package (its own tokenisation is used), computed with a bit-parallel subsequence instead of its quadratic table.
"""

import functools
import string
from collections.abc import Sequence
from types import SimpleNamespace

from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

# Nearly all the time of Rouge-L is stemming, and texts repeat their words.
_STEMMER = SimpleNamespace(stem=functools.lru_cache(maxsize=1 << 18)(PorterStemmer().stem))
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(response: str, references: Sequence[str]) -> float:
    """Rouge-L F-measure of a response, the best over its references.

    Args:
        response: The text to score.
        references: One or more right answers.

    Returns:
        Between 0 and 1; 0 where response or reference has no word (letters a–z and digits make words).

    Raises:
        ValueError: `references` is empty.
    """
    words = tokenize(response, _STEMMER)
    return max(_f_measure(words, _reference_words(reference)) for reference in references)


def exact_match(response: str, references: Sequence[str]) -> float:
    """1 if the response equals any reference after normalisation, else 0.

    Normalisation is that of the reference code and of Super-NaturalInstructions: lower case, ASCII punctuation
    removed, runs of white space folded into one space.

    Raises:
        ValueError: `references` is empty.
    """
    normalised = _normalise(response)
    return max(float(normalised == _normalise(reference)) for reference in references)


@functools.lru_cache(maxsize=1 << 14)
def _reference_words(reference: str) -> tuple[str, ...]:
    """Kept, because every seed and method meets the same references."""
    return tuple(tokenize(reference, _STEMMER))


def _f_measure(words: Sequence[str], reference_words: Sequence[str]) -> float:
    if not words or not reference_words:
        return 0.0
    # 2PR / (P + R) with P = lcs / |words| and R = lcs / |reference words|
    return 2 * LCSseq.similarity(words, reference_words) / (len(words) + len(reference_words))


def _normalise(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
