"""Stage `prompts`: tokenises the prompts of every benchmark, and refuses or cuts those that are too long."""

import pandas as pd
from transformers import AutoTokenizer

from minillm.data.benchmarks import load_benchmarks
from minillm.data.prompts import fit_prompts, template_of
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
    template, cut = template_of(tokenizer, settings.template), {}
    for name, rows in load_benchmarks(job.inputs["benchmarks"]).items():
        encoded = template.prompts([(row["instruction"], row["context"]) for row in rows])
        prompts, cut[name] = fit_prompts(f"benchmark {name}", [ids for _, ids in encoded], settings, template.opening)
        pd.DataFrame({"prompt_ids": prompts}).to_parquet(job.output / f"{name}.parquet")
    write_json(job.output / "cut_prompts.json", cut)
    return {f"cut_prompts/{name}": float(count) for name, count in cut.items()}
