"""Stage `prompts`: tokenises the prompts of every benchmark, and refuses or cuts those that are too long."""

import pandas as pd
from transformers import AutoTokenizer

from minillm.data.benchmarks import load_benchmarks
from minillm.data.prompts import encode_prompts, fit_prompts, opening_tokens
from minillm.files import write_json
from minillm.stages.base import Job, Summary
from minillm.stages.reading import EncodedPrompts


def run(job: Job[EncodedPrompts]) -> Summary:
    """Write NAME.parquet for each benchmark; the summary has how many of its prompts were cut.

    Raises:
        StageError: A prompt is too long and must not be cut.
    """
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    cut = {}
    for name, rows in load_benchmarks(job.inputs["benchmarks"]).items():
        encoded = encode_prompts(tokenizer, settings.template, [(row["instruction"], row["context"]) for row in rows])
        prompts, cut[name] = fit_prompts(f"benchmark {name}", encoded, settings, opening_tokens(tokenizer))
        pd.DataFrame({"prompt_ids": prompts}).to_parquet(job.output / f"{name}.parquet")
    write_json(job.output / "cut_prompts.json", cut)
    return {f"cut_prompts/{name}": float(count) for name, count in cut.items()}
