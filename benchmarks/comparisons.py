"""The comparisons: the work and size of each side, and how much faster or smaller ours should be."""

import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer

from benchmarks.protocol import ROOT, Contender, alternate

TRL_ENVIRONMENTS = {"trl_minillm": "trl-1.14.2", "trl_gkd": "trl-1.16.0", "trl_distillation": "trl-1.16.0"}
"""Folder below benchmarks/environments for each contender that needs its own packages."""


@dataclass(frozen=True)
class Comparison:
    """Our code against another's, on the same work."""

    name: str
    ours: tuple[str, dict[str, Any]]
    """Module and settings of our contender."""
    other: tuple[str, dict[str, Any]]
    faster: float
    """Factor by which ours should be faster."""
    smaller: float | None = None
    """Factor by which ours should need less memory."""


STEP = {
    "student": [128, 4],
    "teacher": [256, 6],
    "batch_size": 16,
    "prompt_tokens": 64,
    "new_tokens": 128,
    "vocabulary": 50257,
    "dtype": "float32",
    "teacher_mix": 0.0,
    "inner_epochs": 1,
    "threads": 2,
}
"""Settings of a step: student of 4 layers × 128, teacher of 6 × 256, 16 prompts of 64 tokens, 128 new tokens each."""
GENERATION = {"student": [256, 4], "vocabulary": 50257, "batch_size": 32, "dtype": "float32", "threads": 2}
TEXT = {"student": [256, 8], "vocabulary": 8192, "batch_size": 64, "threads": 1}
"""Settings of fine-tuning in micro-batches of rows or of tokens."""
HEAD = {"width": 768, "teacher_width": 1024, "tokens": 512, "vocabulary": 50257, "dtype": "float32", "threads": 1}
TINY = {
    "student": [32, 1],
    "teacher": [32, 1],
    "batch_size": 2,
    "prompt_tokens": 4,
    "new_tokens": 4,
    "vocabulary": 300,
}


def comparisons(lengths: Path, rows: Path, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> list[Comparison]:
    """Return all comparisons, in each precision.

    Args:
        lengths: JSON file of [prompt tokens, response tokens] for the generation.
        rows: The same for fine-tuning.
        dtypes: Precisions to compare in, always the same for both sides.
    """
    found = []
    for dtype in dtypes:
        step = {**STEP, "dtype": dtype}
        small, mixed = {**step, "vocabulary": 8192}, {**step, "teacher_mix": 0.2}
        reference, single_step = {**mixed, "inner_epochs": 4}, {**step, "credit": "none"}
        head = {**HEAD, "dtype": dtype}
        text = {**TEXT, "dtype": dtype, "lengths": str(rows)}
        generation = {**GENERATION, "dtype": dtype, "lengths": str(lengths)}
        found += [
            Comparison(
                f"TRL MiniLLM, vocabulary 8,192, {dtype}", ("minillm_step", small), ("trl_minillm", small), 3, 2.5
            ),
            Comparison(f"TRL MiniLLM, vocabulary 50,257, {dtype}", ("minillm_step", step), ("trl_minillm", step), 5, 5),
            Comparison(
                f"TRL MiniLLM without, ours with mixing, {dtype}", ("minillm_step", mixed), ("trl_minillm", step), 4
            ),
            Comparison(f"reference procedure, {dtype}", ("minillm_step", reference), ("reference_step", reference), 5),
            Comparison(f"TRL GKD, {dtype}", ("minillm_step", single_step), ("trl_gkd", step), 2),
            Comparison(
                f"TRL DistillationTrainer, {dtype}", ("minillm_step", single_step), ("trl_distillation", step), 2
            ),
            Comparison(
                f"transformers generate, {dtype}",
                ("generation", {**generation, "by": "engine"}),
                ("generation", {**generation, "by": "generate"}),
                3,
            ),
            Comparison(
                f"micro-batches of 8 rows, ours of 2,048 tokens, {dtype}",
                ("text_step", {**text, "micro_batch_size": 64, "micro_batch_tokens": 2048}),
                ("text_step", {**text, "micro_batch_size": 8}),
                0.9,
                1.2,
            ),
            *(
                Comparison(
                    f"gradients of the head's loss by {other}, {dtype}",
                    ("head_loss", {**head, "by": "closed form"}),
                    ("head_loss", {**head, "by": other}),
                    1.2,
                )
                for other in ("autograd", "checkpoint")
            ),
        ]
    return found


def interpreter(contender: str) -> Path | None:
    """Return the Python of a contender's environment; None if that does not exist (`make bench` makes it)."""
    if contender not in TRL_ENVIRONMENTS:
        return Path(sys.executable)
    python = ROOT / "benchmarks/environments" / TRL_ENVIRONMENTS[contender] / "bin/python"
    return python if python.exists() else None


def measure(comparison: Comparison, steps: int, tiny: bool) -> dict[str, Any] | None:
    """Measure both sides in turn; return None if the other's environment is missing.

    Returns:
        Seconds of every step and peak memory of both, and the ratios of medians.
    """
    sides: list[tuple[str, dict[str, Any], Path]] = []
    for module, settings in (comparison.ours, comparison.other):
        python = interpreter(module)
        if python is None:
            return None
        sides.append((module, {**settings, **{k: v for k, v in TINY.items() if tiny and k in settings}}, python))
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(*side)) for side in sides]
        ours, other = alternate(contenders, steps)
    seconds = [[step["seconds"] for step in side] for side in (ours, other)]
    medians = [statistics.median(side) for side in seconds]
    peaks = [side[-1]["peak_gib"] for side in (ours, other)]
    return {
        "name": comparison.name,
        "seconds": seconds,
        "medians": medians,
        "peak_gib": peaks,
        "faster": medians[1] / medians[0],
        "smaller": peaks[1] / peaks[0],
        "faster_wanted": comparison.faster,
        "smaller_wanted": comparison.smaller,
    }


def write_lengths(target: Path, count: int) -> Path:
    """Write prompt and response lengths in GPT-2 tokens: DollyEval's if the real file is there, else made-up ones.

    Returns:
        `target`, a JSON list of [prompt tokens, response tokens].
    """
    real = ROOT / "../shared/data"
    rows: list[list[int]] = []
    if (real / "dolly/minillm_test_500.jsonl").exists():
        folder = real / "tokenizers/gpt2"
        tokenizer = ByteLevelBPETokenizer.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        for line in (real / "dolly/minillm_test_500.jsonl").read_text(encoding="utf-8").splitlines()[:count]:
            row = json.loads(line)
            prompt, response = (len(tokenizer.encode(row[field]).ids) for field in ("prompt", "output"))
            rows.append([min(prompt, 256), min(response + 1, 256)])
    else:
        rows = [[8 + i % 24, 4 + (7 * i) % 60] for i in range(count)]
    target.write_text(json.dumps(rows), encoding="utf-8")
    return target
