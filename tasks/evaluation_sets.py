"""Tasks that read what models are measured on, all of it before anything is trained or generated."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect.futures import PrefectFuture

from minillm.config import BaseConfig, Metric
from minillm.stages import Benchmarks, DownstreamTasks, EncodedPrompts, HeldOutTexts, Questions
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.stage import StageTask, Work, nothing, stage_task


@dataclass(frozen=True)
class EvaluationSets:
    """What models are measured on, as futures of artifacts; by row of the table what their tokenizers make of it."""

    benchmarks: PrefectFuture[Any]
    tokenizers: Mapping[str, PrefectFuture[Any]]
    prompts: Mapping[str, PrefectFuture[Any]]
    """Of the benchmarks."""
    questions: Mapping[str, PrefectFuture[Any]]
    """Of multiple-choice sets; nothing where the configuration has none."""
    texts: Mapping[str, PrefectFuture[Any]]
    """Held out; nothing where the configuration has none."""
    downstream: PrefectFuture[Any]
    """The harness's tasks, checked; nothing where the configuration has none."""

    @property
    def all(self) -> list[PrefectFuture[Any]]:
        """To wait for before anything is computed that takes long."""
        return [*self.prompts.values(), *self.questions.values(), *self.texts.values(), self.downstream]


def read_evaluation_sets(config: BaseConfig, tokenizers: Mapping[str, PrefectFuture[Any]]) -> EvaluationSets:
    """Start reading everything, once for each of the tokenizers.

    Args:
        config: What is measured.
        tokenizers: By row of the table; rows may share one.
    """
    different = {id(tokenizer): tokenizer for tokenizer in tokenizers.values()}

    def of_each(task: StageTask, *inputs: Any) -> dict[str, PrefectFuture[Any]]:
        read = {identity: task.submit(config, tokenizer, *inputs) for identity, tokenizer in different.items()}
        return {row: read[id(tokenizer)] for row, tokenizer in tokenizers.items()}

    benchmarks = read_benchmarks.submit(config)
    return EvaluationSets(
        benchmarks=benchmarks,
        tokenizers=tokenizers,
        prompts=of_each(encode_prompts, benchmarks),
        questions=of_each(read_questions),
        texts=of_each(pack_held_out_texts),
        downstream=check_downstream.submit(config, *different.values()),
    )


@stage_task("read benchmarks")
def read_benchmarks(config: BaseConfig) -> Work:
    """Read every evaluation set into one format."""
    benchmarks = config.evaluation.benchmarks
    inputs: dict[str, Input] = {f"benchmark/{name}": benchmark.source for name, benchmark in benchmarks.items()}
    fields = {name: benchmark.fields for name, benchmark in benchmarks.items()}
    topics = {name: benchmark.topics for name, benchmark in benchmarks.items() if benchmark.topics}
    metrics: dict[str, Metric] = {name: benchmark.metric for name, benchmark in benchmarks.items()}
    stage = Benchmarks(fields=fields, topics=topics, metrics=metrics)
    return stage, inputs


@stage_task("encode prompts")
def encode_prompts(config: BaseConfig, prepared: Artifact, benchmarks: Artifact) -> Work:
    """Tokenise the benchmarks' prompts; those too long are refused or cut."""
    stage = EncodedPrompts(
        template=config.data.template,
        max_prompt_tokens=longest_prompt(config),
        long_prompts=config.evaluation.long_prompts,
    )
    return stage, {"tokenizer": prepared, "benchmarks": benchmarks}


@stage_task("read questions")
def read_questions(config: BaseConfig, prepared: Artifact) -> Work:
    """Read every multiple-choice set into one format; nothing to do where there is none."""
    evaluation = config.evaluation
    if not evaluation.calibration:
        return nothing("no evaluation.calibration")
    stage = Questions(
        sets=evaluation.calibration,
        template=config.data.template,
        max_prompt_tokens=longest_prompt(config),
        long_prompts=evaluation.long_prompts,
        max_tokens=generation_tokens(config),
    )
    inputs: dict[str, Input] = {f"calibration/{name}": record.source for name, record in evaluation.calibration.items()}
    return stage, {**inputs, "tokenizer": prepared}


@stage_task("pack held-out texts")
def pack_held_out_texts(config: BaseConfig, prepared: Artifact) -> Work:
    """Tokenise the texts that the loss is measured on; nothing to do where there is none."""
    held_out = config.evaluation.held_out
    if not held_out:
        return nothing("no evaluation.held_out")
    stage = HeldOutTexts(texts=tuple(held_out), block_tokens=config.data.max_tokens)
    inputs: dict[str, Input] = {f"held_out/{name}": source for name, source in held_out.items()}
    return stage, {**inputs, "tokenizer": prepared}


@stage_task("check downstream tasks")
def check_downstream(config: BaseConfig, *prepared: Artifact) -> Work:
    """Find lm-evaluation-harness's tasks and their data; nothing to do where none is asked for."""
    downstream = config.evaluation.downstream
    if downstream is None:
        return nothing("no evaluation.downstream")
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
    return stage, inputs


def longest_prompt(config: BaseConfig) -> int:
    """Tokens of the longest benchmark prompt."""
    return config.evaluation.max_prompt_tokens or config.data.max_prompt_tokens


def generation_tokens(config: BaseConfig) -> int:
    """Longest benchmark prompt with its response, tokens: a longer prompt leaves as much room for the response."""
    return longest_prompt(config) + config.data.response_room
