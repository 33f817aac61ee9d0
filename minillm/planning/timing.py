"""A few steps of everything that repeats, timed one after another (see speed)."""

import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from minillm.evaluation.likelihood import likelihoods
from minillm.generation.answering import make_sampler
from minillm.generation.slots import Request
from minillm.metrics.rouge import rouge_l
from minillm.models.causal_lm import build_model, save_model
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages import Job, Speed, Train
from minillm.streams import Purpose, stream
from minillm.training.engine import micro_batch_size
from minillm.training.on_policy import Rollouts
from minillm.training.trainer import make_trainer
from minillm.worker.processes import peak_bytes, process_group, rank

MEASURED_SECONDS = 0.7
"""Each kind of step is repeated for about as long, after one that is not counted."""
FEWEST = 3
ROUGE_PAIRS = 200
LIKELIHOOD_BATCHES = 4


def time_everything(job: Job, settings: Speed) -> dict[str, Any]:
    """Seconds of each training's steps, of generating and scoring by each model, and of Rouge-L."""
    with process_group():
        examples = pd.read_parquet(job.inputs["examples"] / "train.parquet")
        inputs = job.inputs | {name: _initialise(job, settings, name) for name in settings.architectures}
        job = job.model_copy(update={"inputs": inputs})
        return {
            "trainings": {shape: _time_training(job, train, shape) for shape, train in settings.trainings.items()},
            "models": {name: _time_model(job, settings, examples, name) for name in ("teacher", "student")},
            "rouge_seconds": _time_rouge(examples["response"].tolist()[:ROUGE_PAIRS]),
            "peak_memory": peak_bytes(),
        }


def _initialise(job: Job, settings: Speed, name: str) -> Path:
    """A model of random weights, as a directory."""
    folder = job.work / name
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    if rank() == 0 and not folder.exists():
        save_model(build_model(settings.architectures[name], shared.tokenizer, seed=1), shared, folder)
    torch.distributed.barrier()
    return folder


def _time_training(job: Job, train: Train, shape: str) -> dict[str, float]:
    names = ["tokenizer", "examples"]
    names += ["teacher"] if train.method.divergence != "cross_entropy" else []
    names += ["plain_text"] if train.method.policy and train.method.policy.plain_text_coefficient else []
    inputs = {name: job.inputs[name] for name in names}
    if train.architecture is None:
        inputs["weights"] = job.inputs["teacher" if train.role == "teacher" else "student"]
    work = job.work / shape[:16]
    job = job.model_copy(update={"kind": train.kind, "settings": train, "inputs": inputs, "work": work, "output": work})
    work.mkdir(exist_ok=True)
    trainer = make_trainer(job, train)
    examples, length = _typical(trainer.validation.examples)
    trainer.validation = dataclasses.replace(trainer.validation, examples=examples, max_tokens=length)
    facts: dict[str, float] = {}
    first, steps = 0, trainer.total_steps
    if isinstance(trainer.feed, Rollouts):
        examples, length = _typical(trainer.feed.examples)
        trainer.feed = feed = dataclasses.replace(trainer.feed, examples=examples, max_tokens=length)
        steps = feed.steps_per_round
        micro = micro_batch_size(train.method.training.batch_size, job.runtime.micro_batch_size)
        facts["round_seconds"] = _seconds(lambda number: feed.prepare(number * steps, micro), fewest=1)
        first = feed.round.index * steps if feed.round else 0
    facts["step_seconds"] = _seconds(lambda number: trainer.step(first + number % steps))
    select_by = train.method.training.select_by
    facts["validation_seconds"] = _seconds(lambda _: trainer.validation.measure(select_by), fewest=1)
    facts["checkpoint_seconds"] = _seconds(lambda number: trainer.checkpoint(number + 1), fewest=1)
    gc.collect()  # of the training before: engines hold themselves
    return facts


def _typical(examples: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Examples whose prompts all have the mean length, and how long one is with a response of mean length."""
    prompt, response = _mean_length(examples["prompt_ids"]), _mean_length(examples["response_ids"])
    return examples.assign(prompt_ids=[_stretched(ids, prompt) for ids in examples["prompt_ids"]]), prompt + response


def _stretched(ids: Any, length: int) -> list[int]:
    ids = [int(token) for token in ids]
    return (ids * -(-length // len(ids)))[:length]


def _mean_length(column: Any) -> int:
    return max(1, round(column.map(len).mean()))


def _time_model(job: Job, settings: Speed, examples: pd.DataFrame, name: str) -> dict[str, float]:
    """Tokens per second that a model generates, and tokens per second that it scores, in one process."""
    tokenizer = load_shared_tokenizer(job.inputs["tokenizer"])
    prompt, response = _mean_length(examples["prompt_ids"]), _mean_length(examples["response_ids"])
    rows = examples.head(min(settings.responses, job.runtime.generation_batch_size))
    prompts = [_stretched(ids, prompt) for ids in rows["prompt_ids"]]
    sampler = make_sampler(job.inputs[name], tokenizer, settings.generate, job.runtime)
    requests = [Request(ids, response, stream(Purpose.SPEED, 0, number)) for number, ids in enumerate(prompts)]
    generating = _seconds(lambda _: sampler.sample(requests), fewest=1)
    rows = examples.head(LIKELIHOOD_BATCHES * job.runtime.micro_batch_size)
    pairs = [
        (_stretched(before, prompt), _stretched(after, response))
        for before, after in zip(rows["prompt_ids"], rows["response_ids"], strict=True)
    ]
    scoring = _seconds(
        lambda _: likelihoods(sampler.model, tokenizer.entries, pairs, job.runtime.micro_batch_size), fewest=1
    )
    return {
        "generated_per_second": len(requests) * response / generating,
        "scored_per_second": len(pairs) * (prompt + response) / scoring,
    }


def _time_rouge(texts: list[str]) -> float:
    """Seconds for one response against one reference."""
    before = time.perf_counter()
    for text, other in zip(texts, [*texts[1:], texts[0]], strict=True):
        rouge_l(text, [other])
    return (time.perf_counter() - before) / len(texts)


def _seconds(action: Callable[[int], object], fewest: int = FEWEST) -> float:
    """Of one call, the mean of several; the first, which warms up, counts only where it took very long."""
    number, began = 0, time.perf_counter()
    action(number)
    spent = time.perf_counter() - began
    if spent > 20 * MEASURED_SECONDS:
        return spent
    counted, began = 0, time.perf_counter()
    while counted < fewest or time.perf_counter() - began < MEASURED_SECONDS:
        counted += 1
        action(counted)
    return (time.perf_counter() - began) / counted
