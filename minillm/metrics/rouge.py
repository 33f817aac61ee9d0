"""Rouge-L of words and of characters, and exact match, of a response against its references (method.md §7).

Rouge-L is the F-measure of the longest common subsequence of Porter-stemmed words. It equals that of the `rouge-score`
package, whose tokenisation it uses; a bit-parallel algorithm replaces the package's quadratic table.
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
        A value between 0 and 1; 0 if response or reference has no word (words are of a–z and digits).

    Raises:
        ValueError: `references` is empty.
    """
    found = words(response)
    return max(_f_measure(found, _reference_words(reference)) for reference in references)


def rouge_l_characters(response: str, references: Sequence[str]) -> float:
    """Rouge-L F-measure over characters, the best over the references, for scripts in which rouge-score finds no words.

    Its tokens are the letters, digits and vowel signs of any script, after NFKC and case folding. As with words,
    anything between them does not count.

    Returns:
        A value between 0 and 1; 0 if response or reference has no such character.

    Raises:
        ValueError: `references` is empty.
    """
    found = characters(response)
    return max(_f_measure(found, _reference_characters(reference)) for reference in references)


def exact_match(response: str, references: Sequence[str]) -> float:
    """Return 1 if the response equals any reference after normalisation, or else 0.

    Normalisation follows the reference code and Super-NaturalInstructions: lower case, ASCII punctuation removed, runs
    of white space folded into one space.

    Raises:
        ValueError: `references` is empty.
    """
    found = normalised(response)
    return max(float(found == normalised(reference)) for reference in references)


def characters(text: str) -> str:
    """Letters and digits of any script, with their combining marks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LNM")


def words(text: str) -> list[str]:
    """Stemmed words of a–z and digits, as in rouge-score."""
    return tokenize(text, _stemmer())


def has_words(text: str) -> bool:
    """Return True if rouge-score finds a word in a text. Stemming, which is slow, does not matter for that."""
    return bool(tokenize(text, None))


@functools.cache
def _stemmer() -> SimpleNamespace:
    """Porter's stemmer with a cache: Rouge-L spends nearly all its time stemming, and texts repeat their words."""
    from nltk.stem.porter import PorterStemmer  # imports scipy and scikit-learn, which `has_words` does without

    return SimpleNamespace(stem=functools.lru_cache(maxsize=1 << 18)(PorterStemmer().stem))


def normalised(text: str) -> str:
    """Text as exact match compares it."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


_reference_characters = functools.lru_cache(maxsize=1 << 14)(characters)


@functools.lru_cache(maxsize=1 << 14)
def _reference_words(reference: str) -> tuple[str, ...]:
    """Words of a reference, cached because every seed and method meets the same references."""
    return tuple(words(reference))


def _f_measure(tokens: Sequence[str], reference_tokens: Sequence[str]) -> float:
    if not tokens or not reference_tokens:
        return 0.0
    # 2PR / (P + R) with P = lcs / |tokens| and R = lcs / |reference tokens|
    return 2 * LCSseq.similarity(tokens, reference_tokens) / (len(tokens) + len(reference_tokens))
