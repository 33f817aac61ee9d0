"""Stage `held_out`: loss of a model on text that it was not trained on, and its calibration there (method.md §7).

That text is the first reference of every benchmark prompt, EOS included, given the prompt, and blocks of plain text,
all but their first token, which nothing precedes. The loss is a mean over tokens; per byte of the text that these
tokens stand for, it compares models of different tokenizers. Calibration is that of the likeliest next token.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.data.benchmark_prompts import load_prompts
from minillm.data.benchmarks import load_benchmarks
from minillm.data.plain_text import PlainText
from minillm.data.prompts import encode_texts
from minillm.data.token_bytes import spelled_bytes, written_bytes
from minillm.durable import write_atomically
from minillm.evaluation.likelihood import Likelihood, Pair, likelihoods
from minillm.evaluation.reliability import binned, reliability
from minillm.evaluation.uncertainty import ratio_of_sums
from minillm.models.causal_lm import DTYPES, load_model
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.stages import HeldOut, Job, Summary
from minillm.worker.processes import device, process_group, rank
from minillm.worker.progress import Progress


def run(job: Job[HeldOut]) -> Summary:
    """Write held_out.json, what is measured on each benchmark and each text; the summary has its numbers."""
    settings = job.settings
    with process_group():
        measured = _score(job, settings)
    if not measured:
        return {}
    sets = {
        "benchmarks": {name: measured[name] for name in settings.benchmarks},
        "texts": {name: measured[name] for name in settings.texts},
    }
    write_atomically(job.output / "held_out.json", json.dumps(sets, indent=2))
    summary: Summary = {}
    for name, found in measured.items():
        loss = found["loss"]["value"]
        summary |= {f"held_out_loss/{name}": loss, f"perplexity/{name}": math.exp(loss)}
        summary[f"bits_per_byte/{name}"] = found["bits_per_byte"]["value"]
        summary[f"next_token_ece/{name}"] = found["ece"]["value"]
    return summary


def _score(job: Job[HeldOut], settings: HeldOut) -> dict[str, dict[str, Any]]:
    """What is measured on each benchmark and text; only the first process of the group has it."""
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    rows, prompts = load_benchmarks(job.inputs["benchmarks"]), load_prompts(job.inputs["prompts"])
    spelled = spelled_bytes(shared.tokenizer)
    sets = {name: answers(rows[name], prompts[name], shared, spelled, settings) for name in settings.benchmarks}
    sets |= {name: blocks(job.inputs["texts"] / name, spelled, settings.block_tokens) for name in settings.texts}
    model = load_model(job.inputs["model"], DTYPES[settings.precision]).to(device()).eval()  # type: ignore[arg-type]
    progress, done = Progress(job.output, sum(len(of_set.pairs) for of_set in sets.values()), "sequences"), 0
    measured = {}
    for name, of_set in sets.items():
        found = likelihoods(
            model,
            shared.entries,
            of_set.pairs,
            job.runtime.micro_batch_size,
            lambda ready, before=done: progress.log(before + ready),
        )
        if rank() == 0:
            measured[name] = measure(found, of_set.text_bytes)
        done += len(of_set.pairs)
    return measured


@dataclass(frozen=True)
class TextSet:
    """What is measured together: texts to predict, each given a prompt, and how many bytes each text has."""

    pairs: list[Pair]
    text_bytes: list[float]


def answers(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    shared: SharedTokenizer,
    spelled: NDArray[np.int64],
    settings: HeldOut,
) -> TextSet:
    """Prompts of a benchmark, each with its first reference and EOS, cut where a response would be."""
    references = [row["references"][0] for row in rows]
    pairs: list[Pair] = []
    text_bytes: list[float] = []
    for prompt, text, ids in zip(prompts, references, encode_texts(shared.tokenizer, references), strict=True):
        kept = [*ids, shared.eos][: settings.max_tokens - len(prompt)]
        pairs.append((prompt, kept))
        text_bytes.append(written_bytes(kept, spelled, len(text.encode()), int(spelled[ids].sum())))
    return TextSet(pairs, text_bytes)


def blocks(packed: Path, spelled: NDArray[np.int64], block_tokens: int) -> TextSet:
    """Blocks of a packed text, the first token of each as the prompt."""
    text = PlainText(packed, block_tokens)
    meta = json.loads((packed / "meta.json").read_text(encoding="utf-8"))
    tokens = (text.block(number).tolist() for number in range(len(text)))
    pairs: list[Pair] = [(block[:1], block[1:]) for block in tokens]
    whole = meta["text_bytes"], meta["text_spelled"]
    return TextSet(pairs, [written_bytes(predicted, spelled, *whole) for _, predicted in pairs])


def measure(found: Sequence[Likelihood], text_bytes: Sequence[float]) -> dict[str, Any]:
    """Loss and calibration error of the next token, with 95 % intervals over prompts or blocks.

    Args:
        found: Of each prompt or block.
        text_bytes: Of the text that its tokens stand for; EOS stands for nothing, though its loss counts.
    """
    nats = [-of.log_prob.sum() for of in found]
    tokens = [len(of.log_prob) for of in found]
    return {
        "tokens": sum(tokens),
        "bytes": round(sum(text_bytes)),
        "loss": _ratio(nats, tokens),
        "bits_per_byte": _ratio([of / math.log(2) for of in nats], text_bytes),
        **reliability(np.stack([binned(of.confidence, of.correct) for of in found])),
    }


def _ratio(parts: Sequence[float], wholes: Sequence[float]) -> dict[str, Any]:
    found = ratio_of_sums([np.array([parts, wholes], dtype=float)])
    return {"value": found.value, "interval": [found.low, found.high]}
