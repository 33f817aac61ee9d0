"""Rouge-L of words and of characters, and exact match, of a response against its references (method.md §7).

Rouge-L is the F-measure of the longest common subsequence of Porter-stemmed words, equal to the `rouge-score`
package (its own tokenisation is used), computed with a bit-parallel subsequence instead of its quadratic table.
"""

import functools
import string
import unicodedata
from collections.abc import Sequence
from types import SimpleNamespace

from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

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
    found = words(response)
    return max(_f_measure(found, _reference_words(reference)) for reference in references)


def rouge_l_characters(response: str, references: Sequence[str]) -> float:
    """Rouge-L F-measure over characters, the best over the references: for scripts that rouge-score has no words of.

    Its tokens are the letters, digits and vowel signs of any script, after NFKC and case folding; as for words, what
    stands between them does not count.

    Returns:
        Between 0 and 1; 0 where response or reference has no such character.

    Raises:
        ValueError: `references` is empty.
    """
    found = characters(response)
    return max(_f_measure(found, _reference_characters(reference)) for reference in references)


def exact_match(response: str, references: Sequence[str]) -> float:
    """1 if the response equals any reference after normalisation, else 0.

    Normalisation is that of the reference code and of Super-NaturalInstructions: lower case, ASCII punctuation
    removed, runs of white space folded into one space.

    Raises:
        ValueError: `references` is empty.
    """
    found = normalised(response)
    return max(float(found == normalised(reference)) for reference in references)


def characters(text: str) -> str:
    """Letters, digits and the signs upon them, of any script."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LNM")


def words(text: str) -> list[str]:
    """Stemmed words of a–z and digits, as rouge-score has them."""
    return tokenize(text, _stemmer())


def has_words(text: str) -> bool:
    """Whether rouge-score finds a word in a text, which no stemming changes."""
    return bool(tokenize(text, None))


@functools.cache
def _stemmer() -> SimpleNamespace:
    """Porter's, with a memory: nearly all the time of Rouge-L is stemming, and texts repeat their words."""
    from nltk.stem.porter import PorterStemmer  # brings scipy and scikit-learn, which those who only look do without

    return SimpleNamespace(stem=functools.lru_cache(maxsize=1 << 18)(PorterStemmer().stem))


def normalised(text: str) -> str:
    """What exact match compares."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


_reference_characters = functools.lru_cache(maxsize=1 << 14)(characters)


@functools.lru_cache(maxsize=1 << 14)
def _reference_words(reference: str) -> tuple[str, ...]:
    """Kept, because every seed and method meets the same references."""
    return tuple(words(reference))


def _f_measure(tokens: Sequence[str], reference_tokens: Sequence[str]) -> float:
    if not tokens or not reference_tokens:
        return 0.0
    # 2PR / (P + R) with P = lcs / |tokens| and R = lcs / |reference tokens|
    return 2 * LCSseq.similarity(tokens, reference_tokens) / (len(tokens) + len(reference_tokens))
