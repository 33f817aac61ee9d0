"""Stage `cost`: speed of generation (tokens per second) and peak memory, one model after another.

Each model answers the same prompts several times in a process of its own, so that no model's memory counts towards
another's. The flow starts this stage after all others that measure; other programs on the machine may still disturb it.
"""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from minillm.data.encoding import load_prompts
from minillm.files import write_json
from minillm.generation.answering import make_requests, make_sampler
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Cost
from minillm.worker.processes import peak_bytes
from minillm.worker.progress import Progress


def run(job: Job[Cost]) -> Summary:
    """Write cost.json; return each model's tokens per second and peak memory (GiB)."""
    settings = job.settings
    progress = Progress(job.output, len(settings.roles), "models")
    fork = multiprocessing.get_context("fork")  # this process has imported everything and started nothing
    measured = {}
    for done, role in enumerate(settings.roles, start=1):
        with ProcessPoolExecutor(1, mp_context=fork) as alone:
            measured[role] = alone.submit(measure, job, settings, role).result()
        progress.log(done)
    facts = {
        "benchmark": settings.benchmark,
        "rounds": Cost.rounds,
        "at_once": min(Cost.prompts, job.runtime.generation_batch_size),
        "models": measured,
    }
    write_json(job.output / "cost.json", facts)
    return {
        f"{quantity}/{role}": found[quantity]
        for quantity in ("tokens_per_second", "peak_memory_gib")
        for role, found in measured.items()
    }


def measure(job: Job[Cost], settings: Cost, role: str) -> dict[str, Any]:
    """Measure one model: tokens per second (median, slowest and fastest round) and peak memory.

    Memory is that of the accelerator or, without one, all of the process's memory, libraries included.
    """
    tokenizer = load_shared_tokenizer(job.inputs[f"tokenizer/{role}"])
    prompts = load_prompts(job.inputs[f"prompts/{role}"])[settings.benchmark][: Cost.prompts]
    one_seed = settings.generate.model_copy(update={"seeds": settings.generate.seeds[:1]})
    requests = make_requests(prompts, one_seed, 0)
    sampler = make_sampler(job.inputs[f"model/{role}"], tokenizer, one_seed, job.runtime)
    tokens = sum(len(response.tokens) for response in sampler.sample(requests))
    speeds = []
    for _ in range(Cost.rounds):
        before = time.perf_counter()
        sampler.sample(requests)
        speeds.append(tokens / (time.perf_counter() - before))
    return {
        "responses": len(requests),
        "tokens": tokens,
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "peak_memory_gib": peak_bytes() / 2**30,
    }
