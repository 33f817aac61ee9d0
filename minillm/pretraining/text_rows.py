"""Stage `text_rows`: blocks of plain text as rows, the first token as the prompt and the others as the response."""

from collections.abc import Sequence

import pandas as pd
from transformers import AutoTokenizer

from minillm.data.learnt_turns import answered
from minillm.data.packing import megabytes, pack
from minillm.data.plain_text import PlainText
from minillm.errors import StageError
from minillm.stages.base import Job, Summary
from minillm.stages.pretraining import TextRows
from minillm.worker.progress import Progress


def run(job: Job[TextRows]) -> Summary:
    """Pack the text, and write its blocks as training and validation rows.

    Raises:
        StageError: The text cannot be read, or nothing is left to train on.
    """
    settings, corpus = job.settings, job.inputs["plain_text"]
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    progress = Progress(job.output, megabytes(corpus), "MB of plain text")
    pack(corpus, tokenizer, settings.block_tokens, job.work / "tokens.bin", job.work, progress)
    packed = PlainText(job.work, settings.block_tokens)
    left = len(packed) - settings.validation_size
    if left < 1:
        raise StageError(
            f"data.plain_text {corpus} has {len(packed)} blocks of {settings.block_tokens} tokens, and "
            f"data.validation_size takes {settings.validation_size}; give a longer text, or lower it or data.max_tokens"
        )
    blocks = [packed.block(number).tolist() for number in range(len(packed))]
    rows = as_rows([block[:1] for block in blocks], [block[1:] for block in blocks], [""] * len(blocks))
    rows[:left].to_parquet(job.output / "train.parquet")
    rows[left:].to_parquet(job.output / "validation.parquet")
    return {"rows": float(left), "tokens": float(left * (settings.block_tokens - 1))}


def as_rows(prompts: Sequence[list[int]], responses: Sequence[list[int]], texts: Sequence[str]) -> pd.DataFrame:
    """Return rows as trainings read them, numbered from 0, of which each response is learnt as a whole."""
    numbered = pd.DataFrame({"row": range(len(prompts)), "category": "", "prompt_ids": prompts})
    return answered(numbered, responses, texts)
