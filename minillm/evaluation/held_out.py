"""Stage `held_out`: loss and calibration of a model on text that it was not trained on (method.md §7).

The text is of two kinds: the first reference of every benchmark prompt (EOS included, given the prompt), and blocks of
plain text (without their first token, which nothing precedes). The loss is a mean over tokens. Per byte of the text
that these tokens stand for, it is comparable between models of different tokenizers. Calibration is measured on the
likeliest next token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.data.benchmarks import load_benchmarks
from minillm.data.encoding import encode_texts, load_prompts
from minillm.data.plain_text import PlainText
from minillm.data.token_bytes import spelled_bytes, written_bytes
from minillm.evaluation.likelihood import Likelihood, Pair, likelihoods
from minillm.evaluation.reliability import binned, reliability
from minillm.evaluation.uncertainty import ratio_of_sums
from minillm.files import read_json, write_json
from minillm.models.batches import Limit
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import HeldOut
from minillm.worker.processes import process_group, rank
from minillm.worker.progress import Progress


@process_group()
def run(job: Job[HeldOut]) -> Summary:
    """Write held_out.json with the measures of each benchmark and each text; the summary has the same numbers."""
    settings = job.settings
    measured = _score(job, settings)
    if not measured:
        return {}
    sets = {
        "benchmarks": {name: measured[name] for name in settings.benchmarks},
        "texts": {name: measured[name] for name in settings.texts},
    }
    write_json(job.output / "held_out.json", sets)
    summary: Summary = {}
    for name, found in measured.items():
        loss = found["loss"]["value"]
        summary |= {f"held_out_loss/{name}": loss, f"perplexity/{name}": math.exp(loss)}
        summary[f"bits_per_byte/{name}"] = found["bits_per_byte"]["value"]
        summary[f"next_token_ece/{name}"] = found["ece"]["value"]
    return summary


def _score(job: Job[HeldOut], settings: HeldOut) -> dict[str, dict[str, Any]]:
    """Measure each benchmark and text; the result is empty on all but the first process of the group."""
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    spelled = spelled_bytes(shared.tokenizer)
    sets: dict[str, TextSet] = {}
    if settings.benchmarks:
        rows, prompts = load_benchmarks(job.inputs["benchmarks"]), load_prompts(job.inputs["prompts"])
        sets = {name: answers(rows[name], prompts[name], shared, spelled, settings) for name in settings.benchmarks}
    sets |= {name: blocks(job.inputs["texts"] / name, spelled, settings.block_tokens) for name in settings.texts}
    model = load_frozen(job.inputs["model"], dtype_of(settings.precision), job.runtime)
    progress, done = Progress(job.output, sum(len(text_set.pairs) for text_set in sets.values()), "sequences"), 0
    measured = {}
    for name, text_set in sets.items():
        found = likelihoods(
            model,
            shared.entries,
            text_set.pairs,
            Limit.of(job.runtime),
            lambda ready, before=done: progress.log(before + ready),
        )
        if rank() == 0:
            measured[name] = measure(found, text_set.text_bytes)
        done += len(text_set.pairs)
    return measured


@dataclass(frozen=True)
class TextSet:
    """Texts that are measured together: each with the prompt that it follows and its length in bytes."""

    pairs: list[Pair]
    text_bytes: list[float]


def answers(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    shared: SharedTokenizer,
    spelled: NDArray[np.int64],
    settings: HeldOut,
) -> TextSet:
    """Return the prompts of a benchmark, each with its first reference and EOS, cut where a response would be cut."""
    scored = [(row["references"][0], prompt) for row, prompt in zip(rows, prompts, strict=True) if row["references"]]
    references = [text for text, _ in scored]
    pairs: list[Pair] = []
    text_bytes: list[float] = []
    for (text, prompt), ids in zip(scored, encode_texts(shared.tokenizer, references), strict=True):
        kept = [*ids, shared.eos][: settings.max_tokens - len(prompt)]
        pairs.append((prompt, kept))
        text_bytes.append(written_bytes(kept, spelled, len(text.encode()), int(spelled[ids].sum())))
    return TextSet(pairs, text_bytes)


def blocks(packed: Path, spelled: NDArray[np.int64], block_tokens: int) -> TextSet:
    """Return the blocks of a packed text, each with its first token as the prompt."""
    text = PlainText(packed, block_tokens)
    meta = read_json(packed / "meta.json")
    tokens = (text.block(number).tolist() for number in range(len(text)))
    pairs: list[Pair] = [(block[:1], block[1:]) for block in tokens]
    whole = meta["text_bytes"], meta["text_spelled"]
    return TextSet(pairs, [written_bytes(predicted, spelled, *whole) for _, predicted in pairs])


def measure(found: Sequence[Likelihood], text_bytes: Sequence[float]) -> dict[str, Any]:
    """Return loss and calibration error of the next token, with 95 % intervals over prompts or blocks.

    Args:
        found: Likelihood of each prompt's or block's tokens.
        text_bytes: Bytes of the text that these tokens stand for. EOS stands for no bytes, though its loss counts.
    """
    nats = [-likelihood.log_prob.sum() for likelihood in found]
    tokens = [len(likelihood.log_prob) for likelihood in found]
    return {
        "tokens": sum(tokens),
        "bytes": round(sum(text_bytes)),
        "loss": _ratio(nats, tokens),
        "bits_per_byte": _ratio([nat / math.log(2) for nat in nats], text_bytes),
        **reliability(np.stack([binned(likelihood.confidence, likelihood.correct) for likelihood in found])),
    }


def _ratio(parts: Sequence[float], wholes: Sequence[float]) -> dict[str, Any]:
    found = ratio_of_sums([np.array([parts, wholes], dtype=float)])
    return {"value": found.value, "interval": [found.low, found.high]}
