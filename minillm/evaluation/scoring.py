"""Stage score: turn stored responses into scores per prompt and seed, and a table; no model is needed.

All figures of a table are on 0–100. A benchmark's score is its `metric`; those always measured are given too. Its row
covers its headline prompts, those whose first reference has at least `min_reference_tokens` tokens: the mean over
prompts for each seed, then mean and spread over seeds, and the interval over prompts.
"""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minillm.config import Benchmark
from minillm.data.encoding import encode_texts
from minillm.errors import StageError
from minillm.evaluation.responses import read_rows
from minillm.evaluation.uncertainty import Values, estimate, prompt_values
from minillm.files import write_json
from minillm.metrics.by_name import METRICS_BY_NAME, further
from minillm.patterns import without
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Score
from minillm.words import few, score

LENGTH_SUBSETS = {"0-5": (0, 5), "6-10": (6, 10), "11-up": (11, sys.maxsize)}
"""Subsets by the tokens of the first reference, both ends included (method.md §7: [0,5], [6,10], [11,∞))."""


def run(job: Job[Score]) -> Summary:
    """Write scores.parquet and table.json, and return the table's figures by their names in the tracked run."""
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    parts: list[pd.DataFrame] = []
    rows: dict[str, dict[str, Any]] = {}
    for name, benchmark in settings.benchmarks.items():
        prompts = pd.DataFrame(read_rows(job.inputs["benchmarks"], name))
        responses = pd.DataFrame(read_rows(job.inputs["responses"], name))
        check_complete(name, prompts, responses, settings.seeds)
        if settings.strip is not None:
            responses["response"] = strip(f"{settings.role} {name}", settings.strip, list(responses["response"]))
            prompts["references"] = [[without(settings.strip, one) for one in of] for of in prompts["references"]]
        prompts = prompts.loc[prompts["references"].map(len) > 0]
        responses = responses.loc[responses["index"].isin(list(prompts["index"]))]
        scores = score_benchmark(name, benchmark, prompts, responses, tokenizer)
        scores["score"] = scores[benchmark.metric]
        scores["headline"] = scores["reference_tokens"] >= benchmark.min_reference_tokens
        rows[name] = summarise(name, benchmark, scores)
        parts.append(scores)
        print(f"{settings.role} {name}: {benchmark.metric} {score(rows[name]['score'])}", flush=True)
    scores = pd.concat(parts, ignore_index=True)
    common = [metric for metric in METRICS_BY_NAME if all(metric in row for row in rows.values())]
    means = {metric: _mean_over_benchmarks(rows, metric) for metric in ("score", *common)}
    by_prompt = prompt_values(scores)
    means["score"]["interval"] = _interval(list(by_prompt.values()))
    for name, row in rows.items():
        row["score"]["interval"] = _interval([by_prompt[name]])
    table = {"role": settings.role, "seeds": list(settings.seeds), "benchmarks": rows, "mean": means}
    table["strip"] = settings.strip
    scores.to_parquet(job.output / "scores.parquet")
    write_json(job.output / "table.json", table)
    return _flat(table)


def strip(what: str, pattern: str, responses: Sequence[str]) -> list[str]:
    """Return responses without all that a pattern matches, and tell how many of them it changes and empties."""
    kept = [without(pattern, text) for text in responses]
    changed = [(after, before) for after, before in zip(kept, responses, strict=True) if after != before]
    print(
        f"{what}: evaluation.strip takes something out of {len(changed)} of {len(responses)} responses, and leaves "
        f"nothing of {sum(not after.strip() for after, _ in changed)}",
        flush=True,
    )
    return kept


def check_complete(benchmark: str, prompts: pd.DataFrame, responses: pd.DataFrame, seeds: Sequence[int]) -> None:
    """Check that every prompt is answered exactly once for every seed, and nothing else is.

    Raises:
        StageError: Prompts are missing, answered twice or unknown; it names them.
    """
    if responses.empty:
        raise StageError(f"benchmark {benchmark}: there are no responses; generate them again")
    strange = sorted(set(responses["seed"]) - set(seeds))
    if strange:
        raise StageError(
            f"benchmark {benchmark}: responses of seeds {strange}, but the evaluation has {list(seeds)}; "
            "generate them again with these seeds"
        )
    for seed in seeds:
        answered = responses.loc[responses["seed"] == seed, "index"]
        problems = {
            "missing": set(prompts["index"]) - set(answered),
            "answered more than once": set(answered[answered.duplicated()]),
            "not in the benchmark": set(answered) - set(prompts["index"]),
        }
        for problem, indices in problems.items():
            if indices:
                raise StageError(
                    f"benchmark {benchmark}, seed {seed}: {len(indices)} of {len(prompts)} prompts {problem}: "
                    f"{few(sorted(indices), 10)}; generate the responses again"
                )


def score_benchmark(
    name: str,
    benchmark: Benchmark,
    prompts: pd.DataFrame,
    responses: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
) -> pd.DataFrame:
    """Score each response.

    Returns:
        One row per prompt and seed: benchmark, index, conversation (index if it is none), seed, its metrics (0 to 1),
        reference_tokens (length of the first reference without EOS), response_tokens, finished.
    """
    first = [references[0] for references in prompts["references"]]
    lengths = [len(ids) for ids in encode_texts(tokenizer, first)]
    asked = prompts.set_index("index").to_dict(orient="index")
    reference_tokens = dict(zip(prompts["index"], lengths, strict=True))
    pairs = [(text, asked[index]) for index, text in zip(responses["index"], responses["response"], strict=True)]
    given = benchmark.model_dump()
    return pd.DataFrame(
        {
            "benchmark": name,
            "index": responses["index"],
            "conversation": [asked[index].get("conversation", index) for index in responses["index"]],
            "seed": responses["seed"],
            **{
                metric: [
                    METRICS_BY_NAME[metric].compare(text, row["references"], *further(metric, row, given))
                    for text, row in pairs
                ]
                for metric in benchmark.metrics
            },
            "reference_tokens": [reference_tokens[index] for index in responses["index"]],
            "response_tokens": responses["tokens"],
            "finished": responses["finished"],
        }
    )


def summarise(name: str, benchmark: Benchmark, scores: pd.DataFrame) -> dict[str, Any]:
    """Return one benchmark's row of the table, from its scores.

    Raises:
        StageError: If no prompt has a first reference of `min_reference_tokens` tokens.
    """
    headline = scores.query("headline")
    if headline.empty:
        raise StageError(
            f"evaluation.benchmarks.{name}.min_reference_tokens is {benchmark.min_reference_tokens}, but the "
            f"longest first reference has {scores['reference_tokens'].max()} tokens, so no prompt counts; "
            "lower it or give other data"
        )
    row: dict[str, Any] = {
        "prompts": headline["index"].nunique(),
        "all_prompts": scores["index"].nunique(),
        "metric": benchmark.metric,
        **{metric: _over_seeds(headline, metric) for metric in ("score", *benchmark.metrics)},
        "response_tokens": statistics.fmean(headline["response_tokens"]),
        "finished": 100 * statistics.fmean(headline["finished"]),
    }
    if benchmark.length_subsets:
        subsets = {
            label: scores.query(f"{low} <= reference_tokens <= {high}") for label, (low, high) in LENGTH_SUBSETS.items()
        }
        row["score_by_length"] = {
            label: {"prompts": subset["index"].nunique(), **_over_seeds(subset, "score")}
            for label, subset in subsets.items()
            if not subset.empty
        }
    return row


def _interval(values: Values) -> list[float | None]:
    found = estimate(values)
    return [found.low, found.high]


def _over_seeds(scores: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return the statistic of the means over conversations, each of which is the mean over its turns."""
    return _statistic(
        {
            str(seed): 100 * statistics.fmean(part.pivot_table(values=metric, index="conversation")[metric])
            for seed, part in scores.groupby("seed")
        }
    )


def _mean_over_benchmarks(rows: dict[str, dict[str, Any]], metric: str) -> dict[str, Any]:
    per_seed = [row[metric]["per_seed"] for row in rows.values()]
    return _statistic({seed: statistics.fmean(values[seed] for values in per_seed) for seed in per_seed[0]})


def _statistic(per_seed: dict[str, float]) -> dict[str, Any]:
    """Return mean and sample standard deviation (0 with one seed) of one value per seed."""
    values = list(per_seed.values())
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "spread": spread, "per_seed": per_seed}


def _flat(table: dict[str, Any]) -> Summary:
    summary: Summary = {}
    for name, row in {**table["benchmarks"], "mean": table["mean"]}.items():
        for metric in filter(row.__contains__, METRICS_BY_NAME):
            summary[f"{metric}/{name}"] = row[metric]["mean"]
            summary[f"{metric}/{name}_spread"] = row[metric]["spread"]
        for subset, statistic in row.get("score_by_length", {}).items():
            summary[f"{row['metric']}/{name}/{subset}"] = statistic["mean"]
    for name, row in table["benchmarks"].items():
        summary[f"response_tokens/{name}"] = row["response_tokens"]
        summary[f"finished/{name}"] = row["finished"]
    return summary
