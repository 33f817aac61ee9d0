"""Stage `corpus`: text that a model writes by itself, in sequences like blocks of packed plain text.

All have the same length, and where a document ends within one, the next begins: no token is padding, and a share of the
sequences is the same share of the tokens. As a block may begin anywhere in a document, so does a sequence: its first
token is drawn from text that the model wrote from the beginning of a document on, and that is not kept.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from minillm.data.encoding import opening_tokens
from minillm.durable import move, sync
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.pretraining.text_rows import as_rows
from minillm.stages.base import Job, Summary
from minillm.stages.pretraining import SampleCorpus
from minillm.streams import Purpose, generator, stream
from minillm.worker.processes import gather_lists, process_group, rank, world_size
from minillm.worker.progress import Progress

PART = 256
"""Sequences that are stored together: a killed stage loses at most those under way."""
BEGINNINGS = 256
"""Most sequences that the first tokens of the others are drawn from."""


@process_group()
def run(job: Job[SampleCorpus]) -> Summary:
    """Write part by part; skip those that an earlier attempt finished."""
    settings, shared = job.settings, load_shared_tokenizer(job.inputs["tokenizer"])
    count = settings.sequences + settings.validation_size
    writer = Writer(job, shared.entries, min(BEGINNINGS, count) + count)
    opening = opening_tokens(shared.tokenizer) or [shared.eos]
    begun = writer.write([opening] * min(BEGINNINGS, count))
    first = generator(stream(Purpose.CORPUS_BEGINNINGS, settings.seed)).choice(np.concatenate(begun), count)
    prompts, sequences = first[:, None].tolist(), []
    for start in range(0, count, PART):
        sequences += writer.write(prompts[start : start + PART])
    if rank() == 0:
        texts = shared.tokenizer.batch_decode([prompt + of for prompt, of in zip(prompts, sequences, strict=True)])
        rows = as_rows(prompts, sequences, texts)
        rows[: settings.sequences].to_parquet(job.output / "responses.parquet")
        rows[settings.sequences :].to_parquet(job.output / "validation.parquet")
    return {"sequences": float(settings.sequences), "tokens": float(settings.sequences * (settings.max_tokens - 1))}


class Writer:
    """The model, and how far it has written."""

    def __init__(self, job: Job[SampleCorpus], vocabulary: int, total: int) -> None:
        self.work, self.settings = job.work, job.settings
        model = load_frozen(job.inputs["model"], dtype_of(self.settings.precision), job.runtime)
        decoding = Decoding(temperature=self.settings.temperature)
        # Nothing ends a sequence but its length.
        self.sampler = Sampler(model, (), vocabulary, decoding, job.runtime.generation_batch_size)
        self.progress = Progress(job.output, total, "sequences")
        self.done = 0
        """Sequences behind us, which also number the random streams."""

    def write(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Write on from some prompts to the length of a sequence; every process writes a share and gets all."""
        part, settings = self.work / f"sequences-{self.done:08}.parquet", self.settings
        if part.exists():
            written = [tokens.tolist() for tokens in pd.read_parquet(part)["tokens"]]
        else:
            requests = [
                Request(prompt, settings.max_tokens - len(prompt), stream(Purpose.CORPUS, settings.seed, number))
                for number, prompt in enumerate(prompts, self.done)
            ]
            mine = self.sampler.sample(
                requests[rank() :: world_size()], lambda ready: self.progress.log(self.done + ready * world_size())
            )
            written = gather_lists([response.tokens for response in mine])
            if rank() == 0:
                unfinished = part.with_suffix(".tmp")
                pd.DataFrame({"tokens": written}).to_parquet(unfinished)
                sync(unfinished)
                move(unfinished, part)
        self.done += len(prompts)
        self.progress.log(self.done)
        return written
