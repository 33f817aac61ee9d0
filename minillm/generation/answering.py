"""Responses of one model to every benchmark, generated once per seed and stored (stage `generate`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.artifacts import write_atomically
from minillm.data.benchmarks import load_benchmarks
from minillm.data.prompts import encode_prompts, fit_prompts, opening_tokens, render
from minillm.generation.cost import Cost
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import DTYPES, eos_id, load_model, load_tokenizer, parameter_count
from minillm.processes import device, gather_lists, process_group, rank, world_size
from minillm.progress import Progress
from minillm.stages import Generate, Job


def run(job: Job) -> dict[str, float | str]:
    """Generate benchmark by benchmark; those finished before a failure are not generated again."""
    settings = job.settings
    assert isinstance(settings, Generate)
    with process_group():
        return _run(job, settings)


def _run(job: Job, settings: Generate) -> dict[str, float | str]:
    tokenizer = load_tokenizer(job.inputs["tokenizer"])
    benchmarks = load_benchmarks(job.inputs["benchmarks"])
    prompts, cut = {}, {}
    for name, rows in benchmarks.items():
        encoded = encode_prompts(tokenizer, [render(settings.template, r["instruction"], r["context"]) for r in rows])
        prompts[name], cut[name] = fit_prompts(f"benchmark {name}", encoded, settings, opening_tokens(tokenizer))
    model = load_model(job.inputs["model"], DTYPES[settings.precision]).to(device()).eval()  # type: ignore[arg-type]
    decoding = Decoding(
        settings.strategy, settings.temperature, settings.top_k, settings.top_p, settings.no_repeat_ngram
    )
    sampler = Sampler(model, eos_id(tokenizer), len(tokenizer), decoding, job.runtime.generation_batch_size)
    total = sum(len(rows) for rows in benchmarks.values()) * len(settings.seeds)
    progress = Progress(job.output, total, "responses")
    done, cost = 0, Cost()
    for number, name in enumerate(benchmarks):
        count = len(prompts[name]) * len(settings.seeds)
        target = job.output / f"{name}.jsonl"
        if not target.exists():
            requests = _requests(prompts[name], settings, number)
            with cost.timed():
                mine = sampler.sample(
                    requests[rank() :: world_size()],
                    lambda ready, before=done: progress.log(before + ready * world_size()),
                )
            cost.tokens += sum(len(response.tokens) for response in mine)
            responses = gather_lists([(r.tokens, r.finished) for r in mine])
            texts = tokenizer.batch_decode([tokens for tokens, _ in responses], skip_special_tokens=True)
            if rank() == 0:
                _write(target, requests, texts, responses)
        done += count
        progress.log(done)
    if rank() == 0:
        write_atomically(job.output / "cut_prompts.json", json.dumps(cut))
    facts = {"responses": total, "cut_prompts": sum(cut.values()), "parameters": parameter_count(model)}
    return facts | cost.summary()


def _requests(prompts: Sequence[list[int]], settings: Generate, benchmark: int) -> list[Request]:
    return [
        Request(prompt, settings.max_tokens - len(prompt), (seed, benchmark, i))
        for seed in settings.seeds
        for i, prompt in enumerate(prompts)
    ]


def _write(target: Path, requests: Sequence[Request], texts: Sequence[str], responses: Sequence[Any]) -> None:
    """Store the texts, and beside them the token ids that a model can be run on again.

    The texts come last: where they are, the benchmark is finished.
    """
    ids = {
        "index": [r.stream[2] for r in requests],
        "seed": [r.stream[0] for r in requests],
        "prompt_ids": [r.prompt for r in requests],
        "response_ids": [tokens for tokens, _ in responses],
    }
    pd.DataFrame(ids).to_parquet(target.with_suffix(".parquet"))
    lines = [
        {"index": r.stream[2], "seed": r.stream[0], "response": text, "tokens": len(tokens), "finished": finished}
        for r, text, (tokens, finished) in zip(requests, texts, responses, strict=True)
    ]
    write_atomically(target, "".join(json.dumps(line) + "\n" for line in lines))
