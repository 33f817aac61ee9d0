"""Stage `generate`: one model's responses to every benchmark, generated once per seed and stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import Runtime, Sampling
from minillm.data.encoding import load_prompts
from minillm.durable import sync
from minillm.files import write_json_lines
from minillm.generation.conversing import load_conversations
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import dtype_of, load_frozen, parameter_count
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Generate
from minillm.streams import Purpose, stream
from minillm.worker.processes import gather_lists, process_group, rank, world_size
from minillm.worker.progress import Progress


@process_group()
def run(job: Job[Generate]) -> Summary:
    """Generate benchmark by benchmark; skip those that an earlier attempt finished."""
    settings = job.settings
    tokenizer = load_shared_tokenizer(job.inputs["tokenizer"])
    prompts = load_prompts(job.inputs["prompts"])
    conversations = load_conversations(job.inputs["prompts"], tokenizer)
    sampler = make_sampler(job.inputs["model"], tokenizer, settings, job.runtime)
    total = sum(map(len, prompts.values())) * len(settings.seeds)
    progress, done = Progress(job.output, total, "responses"), 0
    for number, name in enumerate(prompts):
        target = job.output / f"{name}.jsonl"
        requests = make_requests(prompts[name], settings, number)
        if not target.exists():

            def sample(asked: Sequence[Request], before: int = done) -> list[Any]:
                mine = sampler.sample(
                    asked[rank() :: world_size()], lambda ready: progress.log(before + ready * world_size())
                )
                return gather_lists([(r.tokens, r.finished) for r in mine])

            turns = [0] * len(prompts[name])
            if name in conversations:
                turns = [row["turn"] for row in conversations[name].rows]
                requests, responses = conversations[name].answer(requests, sample)
            else:
                responses = sample(requests)
            texts = tokenizer.texts([tokens for tokens, _ in responses])
            if rank() == 0:
                write_answers(target, requests, texts, responses, turns)
        done += len(requests)
        progress.log(done)
    return {"responses": total, "parameters": parameter_count(sampler.model)}


def make_sampler(model: Path, tokenizer: SharedTokenizer, settings: Generate, runtime: Runtime) -> Sampler:
    """Load a model onto this process's device, with the decoding of a stage `generate`."""
    decoding = Decoding(**settings.model_dump(include=set(Sampling.model_fields)))
    loaded = load_frozen(model, dtype_of(settings.precision), runtime)
    return Sampler(loaded, tokenizer.ends, tokenizer.entries, decoding, runtime.generation_batch_size)


def make_requests(prompts: Sequence[list[int]], settings: Generate, benchmark: int) -> list[Request]:
    """Return a request for every prompt and seed of a benchmark.

    Args:
        prompts: Token ids.
        settings: Seeds and length limits.
        benchmark: Number of the benchmark, part of the name of each response's random stream.
    """
    longest = settings.max_response_tokens or settings.max_tokens
    return [
        Request(prompt, min(longest, settings.max_tokens - len(prompt)), stream(Purpose.ANSWERS, seed, benchmark, i))
        for seed in settings.seeds
        for i, prompt in enumerate(prompts)
    ]


def write_answers(
    target: Path, requests: Sequence[Request], texts: Sequence[str], responses: Sequence[Any], turns: Sequence[int]
) -> None:
    """Store the texts and, for stages that run a model on them, their token ids and the turn of each prompt.

    The texts are written last, so a benchmark that has them is complete.
    """
    ids = {
        "index": [r.stream[2] for r in requests],
        "seed": [r.stream[0] for r in requests],
        "turn": [turns[r.stream[2]] for r in requests],
        "prompt_ids": [r.prompt for r in requests],
        "response_ids": [tokens for tokens, _ in responses],
    }
    pd.DataFrame(ids).to_parquet(target.with_suffix(".parquet"))
    sync(target.with_suffix(".parquet"))
    lines = [
        {"index": r.stream[2], "seed": r.stream[0], "response": text, "tokens": len(tokens), "finished": finished}
        for r, text, (tokens, finished) in zip(requests, texts, responses, strict=True)
    ]
    write_json_lines(target, lines)
