"""Rouge-L of many pairs: our code against the rouge-score package, with equal values."""

import random
import statistics
import time
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from benchmarks.protocol import ROOT
from minillm.data.tables import read_records
from minillm.metrics.rouge import rouge_l

NAME = "rouge-score"


def pairs_of_texts(pairs: int) -> list[tuple[str, list[str]]]:
    """Return texts with several references: S-NI's if the real file is there, else the embedded corpus's."""
    real = ROOT / "../shared/data/sni/test.jsonl"
    source = real if real.exists() else ROOT / "data/embedded/dolly.jsonl"
    rows = [record.value for record in read_records(source)]
    answers = [row.get("output", row.get("response")) for row in rows]
    references = [answer if isinstance(answer, list) else [answer] for answer in answers]
    chosen = random.Random(0)
    found = []
    for i in range(pairs):
        # A plausible response: another answer's words mixed into this one's.
        own, other = references[i % len(references)], chosen.choice(references)[0]
        words = (own[0] + " " + other).split()
        chosen.shuffle(words)
        found.append((" ".join(words), [*own, other]))
    return found


def measure(pairs: int) -> dict[str, Any]:
    """Time both on one core.

    Raises:
        AssertionError: If the values differ.
    """
    texts = pairs_of_texts(pairs)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    ours: list[float] = []
    theirs: list[float] = []
    seconds: list[list[float]] = [[], []]
    for _ in range(1 if pairs > 1000 else 3):
        before = time.perf_counter()
        ours = [rouge_l(response, references) for response, references in texts]
        between = time.perf_counter()
        theirs = [
            max(scorer.score(r, response)["rougeL"].fmeasure for r in references) for response, references in texts
        ]
        seconds[0].append(between - before)
        seconds[1].append(time.perf_counter() - between)
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    assert worst < 1e-12, f"values differ by {worst}"
    medians = [statistics.median(side) for side in seconds]
    return {
        "name": f"{NAME}, {pairs:,} pairs",
        "seconds": seconds,
        "medians": medians,
        "faster": medians[1] / medians[0],
        "faster_wanted": 20,
    }
