"""Tasks that measure a model: its responses, generated once and stored, and every measurement."""

from collections.abc import Mapping
from typing import Any

from prefect.futures import PrefectFuture

from minillm.config import BaseConfig, Source
from minillm.stages.measuring import (
    Calibration,
    Cost,
    Diversity,
    DownstreamScore,
    Exposure,
    HeldOut,
    Judging,
    Preference,
    Score,
)
from minillm.stages.reading import TOKENIZER
from minillm.store.manifest import Artifact
from tasks.evaluation_sets import EvaluationSets, generation, generation_tokens
from tasks.running.computation import Input
from tasks.running.stage import Work, stage_task
from tasks.served import ask_answers


def evaluate(
    config: BaseConfig,
    models: Mapping[str, Any],
    sets: EvaluationSets,
) -> dict[str, PrefectFuture[Any]]:
    """Start every measurement of every model, after all of the evaluation sets have been read and checked.

    Args:
        config: Configuration that says what is measured.
        models: Results or futures of tasks, by row of the table. The others are measured against the first, and its
            tokenizer counts the lengths of references for all.
        sets: Sets that they are measured on.

    Returns:
        Futures of artifacts by the names of the report's inputs, e.g. score/minillm.
    """
    measured: dict[str, PrefectFuture[Any]] = {}
    benchmarks, counting = sets.benchmarks, sets.tokenizers[next(iter(models))]
    for role, model in models.items():
        tokenizer, prompts = sets.tokenizers[role], sets.prompts[role]
        if role in config.served:
            responses = ask_answers.submit(config, role, model, tokenizer, prompts, benchmarks, wait_for=sets.all)
        else:
            responses = generate.submit(config, role, model, tokenizer, prompts, wait_for=sets.all)
        measured[f"responses/{role}"] = responses
        measured[f"score/{role}"] = score.submit(config, role, responses, counting, benchmarks)
        measured[f"diversity/{role}"] = measure_diversity.submit(config, role, responses)
        if config.evaluation.judge is not None:
            measured[f"judge/{role}"] = judge_responses.submit(config, role, responses, benchmarks)
        if role in config.served:
            continue  # what follows reads weights
        if config.evaluation.downstream is not None:
            measured[f"downstream/{role}"] = answer_downstream.submit(config, role, model, tokenizer, sets.downstream)
        if config.evaluation.calibration:
            measured[f"calibration/{role}"] = measure_calibration.submit(
                config, role, model, tokenizer, sets.questions[role]
            )
        if config.evaluation.held_out:
            measured[f"held_out/{role}"] = measure_held_out.submit(
                config, role, model, tokenizer, benchmarks, prompts, sets.texts[role]
            )
    if config.evaluation.preference is not None:
        answers = {name: responses for name, responses in measured.items() if name.startswith("responses/")}
        measured["preference"] = count_preferences.submit(config, config.evaluation.preference, answers)
    if config.evaluation.exposure_bias is not None:
        teacher, *students = models
        compared = {"teacher": models[teacher], "teacher_responses": measured[f"responses/{teacher}"]}
        for role in students:
            measured[f"exposure/{role}"] = measure_exposure.submit(
                config, role, models[role], measured[f"responses/{role}"], sets.tokenizers[role], **compared
            )
    # The cost is measured alone, so that nothing else in this run slows it down, and of what one process holds whole.
    not_whole = {"teacher"} if config.runtime.teacher_zero_stage else config.served
    measured["cost"] = measure_cost.submit(
        config,
        {role: model for role, model in models.items() if role not in not_whole},
        sets.tokenizers,
        sets.prompts,
        wait_for=list(measured.values()),
    )
    return measured


@stage_task("generate {role}")
def generate(config: BaseConfig, role: str, model: Input, prepared: Artifact, prompts: Artifact) -> Work:
    """Generate responses of one model to every benchmark, once per seed."""
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared.part(TOKENIZER), "prompts": prompts}
    return generation(config), inputs


@stage_task("generation cost")
def measure_cost(
    config: BaseConfig,
    models: Mapping[str, Input],
    tokenizers: Mapping[str, Artifact],
    prompts: Mapping[str, Artifact],
) -> Work:
    """Measure tokens per second and memory of every model, one after another."""
    stage = Cost(roles=tuple(models), benchmark=next(iter(config.evaluation.benchmarks)), generate=generation(config))
    inputs: dict[str, Input] = {}
    for role, model in models.items():
        inputs |= {
            f"model/{role}": model,
            f"tokenizer/{role}": tokenizers[role].part(TOKENIZER),
            f"prompts/{role}": prompts[role],
        }
    return stage, inputs


@stage_task("score {role}")
def score(config: BaseConfig, role: str, responses: Artifact, prepared: Artifact, benchmarks: Artifact) -> Work:
    """Compute the metrics of stored responses."""
    inputs: dict[str, Input] = {"responses": responses, "tokenizer": prepared.part(TOKENIZER), "benchmarks": benchmarks}
    evaluation = config.evaluation
    stage = Score(role=role, seeds=evaluation.seeds, benchmarks=evaluation.benchmarks, strip=evaluation.strip)
    return stage, inputs


@stage_task("diversity {role}")
def measure_diversity(config: BaseConfig, role: str, responses: Artifact) -> Work:
    """Measure distinct n-grams and self-overlap of stored responses."""
    stage = Diversity(role=role, benchmarks=tuple(config.evaluation.benchmarks))
    return stage, {"responses": responses}


@stage_task("judge {role}")
def judge_responses(config: BaseConfig, role: str, responses: Artifact, benchmarks: Artifact) -> Work:
    """Have a strong model rate stored responses."""
    judge = config.evaluation.judge
    assert judge is not None
    seeds = judge.seeds or config.evaluation.seeds[:1]
    stage = Judging(role=role, judge=judge, seeds=seeds, methods=len(config.rows), strip=config.evaluation.strip)
    inputs: dict[str, Input] = {"responses": responses, "benchmarks": benchmarks}
    return stage, inputs


@stage_task("count preferences")
def count_preferences(config: BaseConfig, judgements: Source, responses: Mapping[str, Artifact]) -> Work:
    """Count wins, ties and losses between methods in people's judgements."""
    return Preference(), {"judgements": judgements, **responses}


@stage_task("exposure bias {role}")
def measure_exposure(
    config: BaseConfig,
    role: str,
    student: Input,
    responses: Artifact,
    prepared: Artifact,
    teacher: Input,
    teacher_responses: Artifact,
) -> Work:
    """Measure the excess accumulated error of a student on its own stored responses, against the teacher's."""
    settings = config.evaluation.exposure_bias
    assert settings is not None
    stage = Exposure(
        role=role,
        benchmark=settings.benchmark or next(iter(config.evaluation.benchmarks)),
        max_length=settings.max_length or config.complete_tokens,
        prompts=settings.prompts,
        precision=config.evaluation.precision,
    )
    inputs: dict[str, Input] = {
        "student": student,
        "teacher": teacher,
        "tokenizer": prepared.part(TOKENIZER),
        "responses": responses,
        "teacher_responses": teacher_responses,
    }
    return stage, inputs


@stage_task("calibration {role}")
def measure_calibration(config: BaseConfig, role: str, model: Input, prepared: Artifact, questions: Artifact) -> Work:
    """Measure accuracy and calibration on multiple-choice sets."""
    evaluation = config.evaluation
    stage = Calibration(role=role, sets=tuple(evaluation.calibration), precision=evaluation.precision)
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared.part(TOKENIZER), "questions": questions}
    return stage, inputs


@stage_task("held-out loss {role}")
def measure_held_out(
    config: BaseConfig,
    role: str,
    model: Input,
    prepared: Artifact,
    benchmarks: Artifact,
    prompts: Artifact,
    texts: Artifact,
) -> Work:
    """Measure loss and calibration of the next token on text that no model trained on."""
    evaluation = config.evaluation
    stage = HeldOut(
        role=role,
        benchmarks=tuple(evaluation.benchmarks),
        texts=tuple(evaluation.held_out),
        precision=evaluation.precision,
        max_tokens=generation_tokens(config),
        block_tokens=config.data.max_tokens,
    )
    inputs: dict[str, Input] = {
        "model": model,
        "tokenizer": prepared.part(TOKENIZER),
        "benchmarks": benchmarks,
        "prompts": prompts,
        "texts": texts,
    }
    return stage, inputs


@stage_task("downstream {role}")
def answer_downstream(config: BaseConfig, role: str, model: Input, prepared: Artifact, downstream: Artifact) -> Work:
    """Answer the harness's tasks with one model."""
    evaluation, downstream_config = config.evaluation, config.evaluation.downstream
    assert downstream_config is not None
    stage = DownstreamScore(
        role=role,
        limit=downstream_config.limit,
        template=config.data.template if downstream_config.chat_template else None,
        precision=evaluation.precision,
    )
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared.part(TOKENIZER), "tasks": downstream}
    return stage, inputs
