"""Stage `held_out`: loss of a model on text that it was not trained on, and its calibration there (method.md §7).

That text is the first reference of every benchmark prompt, EOS included, given the prompt, and blocks of plain text,
all but their first token, which nothing precedes. The loss is a mean over tokens; per byte of the text, it compares
models of different tokenizers. Calibration is that of the likeliest next token.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minillm.artifacts import write_atomically
from minillm.data.benchmark_prompts import load_prompts
from minillm.data.benchmarks import load_benchmarks
from minillm.data.plain_text import PlainText
from minillm.data.prompts import encode_texts
from minillm.evaluation.likelihood import Likelihood, Pair, likelihoods
from minillm.evaluation.reliability import binned, reliability
from minillm.evaluation.uncertainty import ratio_of_sums
from minillm.models.causal_lm import DTYPES, eos_id, load_model, load_tokenizer
from minillm.processes import device, process_group, rank
from minillm.progress import Progress
from minillm.stages import HeldOut, Job


def run(job: Job) -> dict[str, float | str]:
    """Write held_out.json, what is measured on each benchmark and each text; the summary has its numbers."""
    settings = job.settings
    assert isinstance(settings, HeldOut)
    with process_group():
        measured = _score(job, settings)
    if not measured:
        return {}
    sets = {
        "benchmarks": {name: measured[name] for name in settings.benchmarks},
        "texts": {name: measured[name] for name in settings.texts},
    }
    write_atomically(job.output / "held_out.json", json.dumps(sets, indent=2))
    summary: dict[str, float | str] = {}
    for name, found in measured.items():
        loss = found["loss"]["value"]
        summary |= {f"held_out_loss/{name}": loss, f"perplexity/{name}": math.exp(loss)}
        summary[f"bits_per_byte/{name}"] = found["bits_per_byte"]["value"]
        summary[f"next_token_ece/{name}"] = found["ece"]["value"]
    return summary


def _score(job: Job, settings: HeldOut) -> dict[str, dict[str, Any]]:
    """What is measured on each benchmark and text; only the first process of the group has it."""
    tokenizer = load_tokenizer(job.inputs["tokenizer"])
    rows, prompts = load_benchmarks(job.inputs["benchmarks"]), load_prompts(job.inputs["prompts"])
    pairs = {name: answers(rows[name], prompts[name], tokenizer, settings) for name in settings.benchmarks}
    pairs |= {name: blocks(job.inputs["texts"] / name, settings.block_tokens) for name in settings.texts}
    model = load_model(job.inputs["model"], DTYPES[settings.precision]).to(device()).eval()  # type: ignore[arg-type]
    progress, done = Progress(job.output, sum(map(len, pairs.values())), "sequences"), 0
    measured = {}
    for name, of_set in pairs.items():
        found = likelihoods(
            model,
            len(tokenizer),
            of_set,
            job.runtime.micro_batch_size,
            lambda ready, before=done: progress.log(before + ready),
        )
        if rank() == 0:
            texts = tokenizer.batch_decode(
                [list(text) for _, text in of_set], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            measured[name] = measure(found, [len(text.encode()) for text in texts])
        done += len(of_set)
    return measured


def answers(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    settings: HeldOut,
) -> list[Pair]:
    """Prompts of a benchmark, each with its first reference and EOS, cut where a response would be."""
    references = encode_texts(tokenizer, [row["references"][0] for row in rows])
    return [
        (prompt, [*reference, eos_id(tokenizer)][: settings.max_tokens - len(prompt)])
        for prompt, reference in zip(prompts, references, strict=True)
    ]


def blocks(packed: Path, block_tokens: int) -> list[Pair]:
    """Blocks of a packed text, the first token of each as the prompt."""
    text = PlainText(packed, block_tokens)
    tokens = (text.block(number).tolist() for number in range(len(text)))
    return [(block[:1], block[1:]) for block in tokens]


def measure(found: Sequence[Likelihood], text_bytes: Sequence[int]) -> dict[str, Any]:
    """Loss and calibration error of the next token, with 95 % intervals over prompts or blocks.

    Args:
        found: Of each prompt or block.
        text_bytes: Of the text that its tokens write; EOS writes nothing, though its loss counts.
    """
    nats = [-of.log_prob.sum() for of in found]
    tokens = [len(of.log_prob) for of in found]
    return {
        "tokens": sum(tokens),
        "bytes": sum(text_bytes),
        "loss": _ratio(nats, tokens),
        "bits_per_byte": _ratio([of / math.log(2) for of in nats], text_bytes),
        **reliability(np.stack([binned(of.confidence, of.correct) for of in found])),
    }


def _ratio(parts: Sequence[float], wholes: Sequence[int]) -> dict[str, Any]:
    found = ratio_of_sums([np.array([parts, wholes], dtype=float)])
    return {"value": found.value, "interval": [found.low, found.high]}
