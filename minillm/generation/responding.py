"""Stage `respond`: a model's responses to the training prompts, on which SeqKD and DPKD train."""

import pandas as pd

from minillm.data.learnt_turns import answered, prompts_of
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.training import Respond
from minillm.streams import Purpose, stream
from minillm.worker.processes import gather_lists, process_group, rank, world_size
from minillm.worker.progress import Progress


@process_group()
def run(job: Job[Respond]) -> Summary:
    """Sample one response to every training prompt at temperature 1."""
    settings = job.settings
    tokenizer = load_shared_tokenizer(job.inputs["tokenizer"])
    prompts = prompts_of(pd.read_parquet(job.inputs["examples"] / "train.parquet"))
    purpose = {"teacher": Purpose.TEACHER_RESPONSES, "student": Purpose.STUDENT_RESPONSES}[settings.role]
    requests = [
        Request(prompt, settings.max_tokens - len(prompt), stream(purpose, settings.seed, *place))
        for prompt, place in zip(prompts["prompt_ids"], prompts["place"], strict=True)
    ]
    model = load_frozen(job.inputs["model"], dtype_of(settings.precision), job.runtime, settings.role)
    sampler = Sampler(model, tokenizer.ends, tokenizer.entries, batch_size=job.runtime.generation_batch_size)
    progress = Progress(job.output, len(requests), "responses")
    mine = sampler.sample(requests[rank() :: world_size()], lambda done: progress.log(done * world_size()))
    responses = gather_lists([r.tokens for r in mine])
    if rank() == 0:
        answered(prompts, responses, tokenizer.texts(responses)).to_parquet(job.output / "responses.parquet")
    return {"responses": len(requests), "mean_tokens": sum(map(len, responses)) / len(responses)}
