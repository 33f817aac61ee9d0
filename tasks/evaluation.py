"""Tasks that measure a model: responses, generated once and stored, and what is measured on them without it."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from prefect import State
from prefect.futures import PrefectFuture
from prefect.states import Completed

from minillm.artifacts import Artifact
from minillm.config import Config
from minillm.stages import Diversity, DownstreamScore, DownstreamTasks, Generate, Score
from tasks.stage import Input, compute, stage_task


def evaluate(
    config: Config, models: Mapping[str, Any], prepared: Any, benchmarks: Any, downstream: Any
) -> dict[str, PrefectFuture[Any]]:
    """Start every measurement of every model.

    Args:
        config: What is measured.
        models: By the rows of the table, the teacher first; results or futures of tasks, as the others.
        prepared: The tokenizer.
        benchmarks: In their one format.
        downstream: The harness's tasks, checked.

    Returns:
        Futures of artifacts by the names of the report's inputs, e.g. score/minillm.
    """
    measured: dict[str, PrefectFuture[Any]] = {}
    for role, model in models.items():
        responses = measured[f"responses/{role}"] = generate.submit(config, role, model, prepared, benchmarks)
        measured[f"score/{role}"] = score.submit(config, role, responses, prepared, benchmarks)
        measured[f"diversity/{role}"] = measure_diversity.submit(config, role, responses)
        if config.evaluation.downstream is not None:
            measured[f"downstream/{role}"] = answer_downstream.submit(config, role, model, prepared, downstream)
    return measured


@stage_task("generate {role}")
def generate(config: Config, role: str, model: Input, prepared: Artifact, benchmarks: Artifact) -> Artifact | State:
    """Responses of one model to every benchmark, once per seed."""
    evaluation = config.evaluation
    stage = Generate(
        role=role,
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
def score(config: Config, role: str, responses: Artifact, prepared: Artifact, benchmarks: Artifact) -> Artifact | State:
    """Rouge-L and exact match of stored responses."""
    inputs: dict[str, Input] = {"responses": responses, "tokenizer": prepared, "benchmarks": benchmarks}
    stage = Score(role=role, seeds=config.evaluation.seeds, benchmarks=config.evaluation.benchmarks)
    return compute(stage, inputs, config, f"score {role}")


@stage_task("diversity {role}")
def measure_diversity(config: Config, role: str, responses: Artifact) -> Artifact | State:
    """Distinct n-grams and self-overlap of stored responses."""
    stage = Diversity(role=role, benchmarks=tuple(config.evaluation.benchmarks))
    return compute(stage, {"responses": responses}, config, f"diversity {role}")


@stage_task("check downstream tasks")
def check_downstream(config: Config, *prepared: Artifact) -> Artifact | State:
    """Find lm-evaluation-harness's tasks and their data; nothing to do where none is asked for."""
    downstream = config.evaluation.downstream
    if downstream is None:
        return Completed(name="Skipped", message="no evaluation.downstream", data=None)
    stage = DownstreamTasks(
        harness=importlib.metadata.version("lm_eval"),
        tasks=downstream.tasks,
        few_shot=downstream.few_shot,
        parts={name: local.part for name, local in downstream.local.items() if local.part is not None},
        changes={name: local.changes for name, local in downstream.local.items()},
    )
    inputs: dict[str, Input] = {f"prepared/{number}": artifact for number, artifact in enumerate(prepared)}
    for name, local in downstream.local.items():
        inputs[f"rows/{name}"] = local.source
        if local.examples is not None:
            inputs[f"examples/{name}"] = local.examples
    return compute(stage, inputs, config, "check downstream tasks")


@stage_task("downstream {role}")
def answer_downstream(
    config: Config, role: str, model: Input, prepared: Artifact, downstream: Artifact
) -> Artifact | State:
    """Answer the harness's tasks with one model."""
    evaluation = config.evaluation
    assert evaluation.downstream is not None
    stage = DownstreamScore(role=role, limit=evaluation.downstream.limit, precision=evaluation.precision)
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared, "tasks": downstream}
    return compute(stage, inputs, config, f"downstream {role}")


def generation_tokens(config: Config) -> int:
    """Longest benchmark prompt with its response, tokens: a longer prompt leaves as much room for the response."""
    room = config.data.max_tokens - config.data.max_prompt_tokens
    return (config.evaluation.max_prompt_tokens or config.data.max_prompt_tokens) + room
