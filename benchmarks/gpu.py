"""Steps, rollouts and generation on one GPU at the sizes of real pairs: `make bench-gpu`, `python -m benchmarks.gpu`.

Weights are random. Each measurement is a process of its own and begins only while there is time; what did not fit is
named in the table.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.__main__ import machine
from benchmarks.comparisons import interpreter
from benchmarks.page import profile_table
from benchmarks.protocol import ROOT, Contender, alternate

QWEN3 = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
QWEN3_SMALL = QWEN3 | {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
}
QWEN3_LARGE = QWEN3 | {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "intermediate_size": 9728,
}
PAIRS: dict[str, dict[str, Any]] = {
    "GPT-2 XL → GPT-2": {"student": [768, 12], "teacher": [1600, 48], "vocabulary": 50257},
    "4 B → 0.6 B": {"student": QWEN3_SMALL, "teacher": QWEN3_LARGE, "vocabulary": 151936},
}
"""GPT-2's sizes, and those of Qwen3."""
LENGTHS = (512, 2048)
"""Tokens of a prompt with its response; the prompt is a quarter of it."""
STEP = {"batch_size": 16, "micro_batch_size": 4, "teacher_mix": 0.2, "inner_epochs": 1, "dtype": "bfloat16"}
TINY: dict[str, dict[str, Any]] = {
    "GPT-2 XL → GPT-2": {"student": [64, 1], "teacher": [64, 2], "vocabulary": 300},
    "4 B → 0.6 B": {
        name: QWEN3
        | {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 8, "head_dim": 8, "intermediate_size": 48}
        for name in ("student", "teacher")
    }
    | {"vocabulary": 400},
}
TINY_LENGTHS = (12, 20)
STEPS = 2
"""Measured steps, after one that warms up."""
CONTENDERS = {
    "MiniLLM step": ("minillm_step", {}),
    "MiniLLM step without mixing": ("minillm_step", {"teacher_mix": 0.0}),
    "generation": ("generation", {"by": "engine"}),
    "generation by transformers": ("generation", {"by": "generate"}),
    "TRL MiniLLM, no mixing": ("trl_minillm", {}),
    "TRL DistillationTrainer": ("trl_distillation", {}),
}
"""Measurements in the order in which time is spent on them, each at all pairs and lengths."""
PROFILE = "profile"


@dataclass(frozen=True)
class Measurement:
    """One row of the table."""

    what: str
    pair: str
    length: int
    module: str
    settings: Mapping[str, Any]


def measurements(
    pairs: Mapping[str, dict[str, Any]], lengths: tuple[int, ...], device: str, folder: Path
) -> Iterator[Measurement]:
    """Yield all of them, the most telling first."""
    for what, (module, own) in CONTENDERS.items():
        for pair, sizes in pairs.items():
            for length in lengths:
                prompt = length // 4
                settings = {**STEP, **sizes, **own, "prompt_tokens": prompt, "new_tokens": length - prompt}
                if module == "generation":
                    rows = folder / f"{length}.json"
                    # Twice as many prompts as rows at once, whose responses are of any length up to the limit.
                    rows.write_text(json.dumps([[prompt, 1 + (7 * i) % (length - prompt)] for i in range(32)]))
                    settings["lengths"] = str(rows)
                yield Measurement(what, pair, length, module, settings | {"device": device, "threads": 4})


def measure(of: Measurement, seconds_left: float) -> dict[str, Any]:
    """Return medians of a measurement's steps, or what kept it from them."""
    facts: dict[str, Any] = {"what": of.what, "pair": of.pair, "tokens": of.length}
    python = interpreter(of.module)
    if python is None:
        return facts | {"left out": "make bench makes its environment"}
    if seconds_left <= 0:
        return facts | {"left out": "no time left"}
    began = time.monotonic()
    try:
        with Contender(of.module, dict(of.settings), python, seconds_left) as contender:
            (steps,) = alternate([contender], STEPS)
    except RuntimeError as error:
        late = time.monotonic() - began >= seconds_left
        return facts | {"left out": "did not end in time" if late else str(error)}
    median = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    if of.module == PROFILE:
        return facts | {"every": median}
    return facts | _row(of, median)


def _row(of: Measurement, median: Mapping[str, float]) -> dict[str, float | None]:
    """Return the columns of one row."""
    drawn = median.get("tokens", of.settings["batch_size"] * of.settings["new_tokens"])
    seconds = median.get("round_seconds", median["seconds"])
    return {
        "seconds": median["seconds"],
        "of them rollouts": median.get("round_seconds"),
        "tokens drawn per second": drawn / seconds,
        "GiB": median["peak_gib"],
        "% of the product's rate": 100 * median["share"] if "share" in median else None,
    }


def page(record: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = pd.DataFrame(record["rows"]).drop(columns="every", errors="ignore").dropna(axis="columns", how="all")
    shown = rows.astype(object).where(rows.notna(), "")
    profiled = record["profile"]
    profile = ""
    if profiled:
        parts, operations = (profile_table({"bfloat16": profiled["every"]}, kind, 12) for kind in ("part", "operation"))
        profile = f"\n## The slowest step: {profiled['pair']}, {profiled['tokens']} tokens\n\n{parts}\n\n{operations}\n"
    return (
        f"# On one {record['device']}\n\n`{record['command']}`: medians of {STEPS} steps, bfloat16, "
        f"{STEP['batch_size']} rows a step in micro-batches of {STEP['micro_batch_size']}.\n\n"
        f"{shown.to_markdown(index=False, floatfmt='.3g')}\n{profile}"
    )


def main() -> None:
    """Measure within the given minutes, print each row as it arrives, and write gpu.json and gpu.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="time to measure in (default: 5)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu goes with --tiny")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it works")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch can use; --device cpu --tiny shows that the script works")
    ends = time.monotonic() + 60 * options.minutes
    pairs, lengths = (TINY, TINY_LENGTHS) if options.tiny else (PAIRS, LENGTHS)

    def told(of: Measurement) -> dict[str, Any]:
        row = measure(of, ends - time.monotonic())
        print({name: value for name, value in row.items() if name != "every"}, flush=True)
        return row

    with tempfile.TemporaryDirectory() as folder:
        planned = list(measurements(pairs, lengths, options.device, Path(folder)))
        first = len(pairs) * len(lengths)  # our own steps, whose slowest is looked into before others have their turn
        rows = [told(of) for of in planned[:first]]
        slowest = planned[max(range(first), key=lambda number: rows[number].get("seconds", 0.0))]
        profiled = told(replace(slowest, what=PROFILE, module=PROFILE))
        rows += [told(of) for of in planned[first:]]
    record = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else machine()["processor"],
        "machine": machine(),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "rows": rows,
        "profile": profiled if "every" in profiled else None,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.output / "gpu.md").write_text(page(record), encoding="utf-8")
    print(f"written to {options.output}/gpu.md")


if __name__ == "__main__":
    main()
