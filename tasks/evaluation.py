"""Tasks that measure a model: responses, generated once and stored, and what is measured on them without it."""

from collections.abc import Mapping
from typing import Any

from prefect import State
from prefect.futures import PrefectFuture

from minillm.artifacts import Artifact
from minillm.config import BaseConfig
from minillm.stages import Diversity, Generate, Score
from tasks.stage import Input, compute, stage_task


def evaluate(
    config: BaseConfig, models: Mapping[str, Any], prepared: Mapping[str, Any], benchmarks: Any
) -> dict[str, PrefectFuture[Any]]:
    """Start every measurement of every model, once all of them are known to be fit for it.

    Args:
        config: What is measured.
        models: By the rows of the table, the teacher first; results or futures of tasks, as the others.
        prepared: The tokenizer of each model; that of the first counts the lengths of references for all.
        benchmarks: In their one format.

    Returns:
        Futures of artifacts by the names of the report's inputs, e.g. score/minillm.
    """
    measured: dict[str, PrefectFuture[Any]] = {}
    counting = prepared[next(iter(models))]
    for role, model in models.items():
        responses = measured[f"responses/{role}"] = generate.submit(
            config, role, model, prepared[role], benchmarks, wait_for=list(prepared.values())
        )
        measured[f"score/{role}"] = score.submit(config, role, responses, counting, benchmarks)
        measured[f"diversity/{role}"] = measure_diversity.submit(config, role, responses)
    return measured


@stage_task("generate {role}")
def generate(config: BaseConfig, role: str, model: Input, prepared: Artifact, benchmarks: Artifact) -> Artifact | State:
    """Responses of one model to every benchmark, once per seed."""
    evaluation = config.evaluation
    stage = Generate(
        template=config.data.template,
        seeds=evaluation.seeds,
        strategy=evaluation.strategy,
        temperature=evaluation.temperature,
        top_k=evaluation.top_k,
        top_p=evaluation.top_p,
        no_repeat_ngram=evaluation.no_repeat_ngram,
        precision=evaluation.precision,
        max_prompt_tokens=evaluation.max_prompt_tokens or config.data.max_prompt_tokens,
        long_prompts=evaluation.long_prompts,
        max_tokens=generation_tokens(config),
    )
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared, "benchmarks": benchmarks}
    return compute(stage, inputs, config, f"generate {role}")


@stage_task("score {role}")
def score(
    config: BaseConfig, role: str, responses: Artifact, prepared: Artifact, benchmarks: Artifact
) -> Artifact | State:
    """Rouge-L and exact match of stored responses."""
    inputs: dict[str, Input] = {"responses": responses, "tokenizer": prepared, "benchmarks": benchmarks}
    stage = Score(role=role, seeds=config.evaluation.seeds, benchmarks=config.evaluation.benchmarks)
    return compute(stage, inputs, config, f"score {role}")


@stage_task("diversity {role}")
def measure_diversity(config: BaseConfig, role: str, responses: Artifact) -> Artifact | State:
    """Distinct n-grams and self-overlap of stored responses."""
    stage = Diversity(role=role, benchmarks=tuple(config.evaluation.benchmarks))
    return compute(stage, {"responses": responses}, config, f"diversity {role}")


def generation_tokens(config: BaseConfig) -> int:
    """Longest benchmark prompt with its response, tokens: a longer prompt leaves as much room for the response."""
    room = config.data.max_tokens - config.data.max_prompt_tokens
    return (config.evaluation.max_prompt_tokens or config.data.max_prompt_tokens) + room
