"""Tasks that measure a model: responses, generated once and stored, and what is measured on them without it."""

from collections.abc import Mapping
from typing import Any

from prefect import State
from prefect.futures import PrefectFuture

from minillm.artifacts import Artifact
from minillm.config import Config
from minillm.stages import Calibration, Diversity, Generate, HeldOut, Score
from tasks.stage import Input, compute, stage_task


def evaluate(
    config: Config, models: Mapping[str, Any], prepared: Any, benchmarks: Any, questions: Any, texts: Any
) -> dict[str, PrefectFuture[Any]]:
    """Start every measurement of every model.

    Args:
        config: What is measured.
        models: By the rows of the table, the teacher first; results or futures of tasks, as the others.
        prepared: The tokenizer.
        benchmarks: In their one format.
        questions: Multiple-choice sets; read where the configuration has some.
        texts: Held-out texts; read where the configuration has some.

    Returns:
        Futures of artifacts by the names of the report's inputs, e.g. score/minillm.
    """
    measured: dict[str, PrefectFuture[Any]] = {}
    for role, model in models.items():
        responses = measured[f"responses/{role}"] = generate.submit(config, role, model, prepared, benchmarks)
        measured[f"score/{role}"] = score.submit(config, role, responses, prepared, benchmarks)
        measured[f"diversity/{role}"] = measure_diversity.submit(config, role, responses)
        if config.evaluation.calibration:
            measured[f"calibration/{role}"] = measure_calibration.submit(config, role, model, prepared, questions)
        if config.evaluation.held_out:
            measured[f"held_out/{role}"] = measure_held_out.submit(config, role, model, prepared, benchmarks, texts)
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


@stage_task("calibration {role}")
def measure_calibration(
    config: Config, role: str, model: Input, prepared: Artifact, questions: Artifact
) -> Artifact | State:
    """Accuracy and calibration on multiple-choice sets."""
    evaluation = config.evaluation
    stage = Calibration(role=role, sets=tuple(evaluation.calibration), precision=evaluation.precision)
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared, "questions": questions}
    return compute(stage, inputs, config, f"calibration {role}")


@stage_task("held-out loss {role}")
def measure_held_out(
    config: Config, role: str, model: Input, prepared: Artifact, benchmarks: Artifact, texts: Artifact
) -> Artifact | State:
    """Loss and calibration of the next token on text that no model trained on."""
    evaluation = config.evaluation
    stage = HeldOut(
        role=role,
        template=config.data.template,
        benchmarks=tuple(evaluation.benchmarks),
        texts=tuple(evaluation.held_out),
        precision=evaluation.precision,
        max_prompt_tokens=evaluation.max_prompt_tokens or config.data.max_prompt_tokens,
        long_prompts=evaluation.long_prompts,
        max_tokens=generation_tokens(config),
        block_tokens=config.data.max_tokens,
    )
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared, "benchmarks": benchmarks, "texts": texts}
    return compute(stage, inputs, config, f"held-out loss {role}")


def generation_tokens(config: Config) -> int:
    """Longest benchmark prompt with its response, tokens: a longer prompt leaves as much room for the response."""
    room = config.data.max_tokens - config.data.max_prompt_tokens
    return (config.evaluation.max_prompt_tokens or config.data.max_prompt_tokens) + room
