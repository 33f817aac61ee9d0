"""Tasks that read the evaluation sets, all of them before anything is trained or generated."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect.futures import PrefectFuture

from minillm.config import BaseConfig, Pretrain, Sampling, Scoring
from minillm.stages.measuring import Generate
from minillm.stages.reading import TOKENIZER, Benchmarks, DownstreamTasks, EncodedPrompts, HeldOutTexts, Questions
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.stage import StageTask, Work, nothing, stage_task


@dataclass(frozen=True)
class EvaluationSets:
    """Sets that models are measured on, as futures of artifacts; those that are tokenised, by row of the table."""

    benchmarks: PrefectFuture[Any]
    tokenizers: Mapping[str, PrefectFuture[Any]]
    prompts: Mapping[str, PrefectFuture[Any]]
    """Encoded prompts of the benchmarks."""
    questions: Mapping[str, PrefectFuture[Any]]
    """Encoded questions of the multiple-choice sets; nothing if the configuration has none."""
    texts: Mapping[str, PrefectFuture[Any]]
    """Packed held-out texts; nothing if the configuration has none."""
    downstream: PrefectFuture[Any]
    """The harness's tasks, checked; nothing if the configuration has none."""

    @property
    def all(self) -> list[PrefectFuture[Any]]:
        """Everything to wait for before anything that takes long is computed."""
        return [*self.prompts.values(), *self.questions.values(), *self.texts.values(), self.downstream]


def read_evaluation_sets(config: BaseConfig, tokenizers: Mapping[str, PrefectFuture[Any]]) -> EvaluationSets:
    """Start reading every evaluation set, once for each tokenizer.

    Args:
        config: Configuration that names the sets.
        tokenizers: Tokenizers by row of the table; rows may share one.
    """
    different = {id(tokenizer): tokenizer for tokenizer in tokenizers.values()}

    def per_tokenizer(task: StageTask, *inputs: Any) -> dict[str, PrefectFuture[Any]]:
        read = {identity: task.submit(config, tokenizer, *inputs) for identity, tokenizer in different.items()}
        return {row: read[id(tokenizer)] for row, tokenizer in tokenizers.items()}

    benchmarks = read_benchmarks.submit(config)
    return EvaluationSets(
        benchmarks=benchmarks,
        tokenizers=tokenizers,
        prompts=per_tokenizer(encode_prompts, benchmarks),
        questions=per_tokenizer(read_questions),
        texts=per_tokenizer(pack_held_out_texts),
        downstream=check_downstream.submit(config, *different.values()),
    )


@stage_task("read benchmarks")
def read_benchmarks(config: BaseConfig) -> Work:
    """Read every evaluation set into one format."""
    benchmarks = config.evaluation.benchmarks
    inputs: dict[str, Input] = {f"benchmark/{name}": benchmark.source for name, benchmark in benchmarks.items()}
    fields = {name: benchmark.fields for name, benchmark in benchmarks.items()}
    topics = {name: benchmark.topics for name, benchmark in benchmarks.items() if benchmark.topics}
    prompts = {name: benchmark.prompts for name, benchmark in benchmarks.items() if benchmark.prompts}
    read = set(Scoring.model_fields)
    scoring = {name: Scoring(**benchmark.model_dump(include=read)) for name, benchmark in benchmarks.items()}
    stage = Benchmarks(fields=fields, topics=topics, prompts=prompts, scoring=scoring)
    return stage, inputs


@stage_task("encode prompts")
def encode_prompts(config: BaseConfig, prepared: Artifact, benchmarks: Artifact) -> Work:
    """Tokenise the benchmarks' prompts; refuse or cut those that are too long."""
    stage = EncodedPrompts(
        template=config.data.template,
        max_prompt_tokens=longest_prompt(config),
        long_prompts=config.evaluation.long_prompts,
        answer_tokens=config.longest_response,
    )
    return stage, {"tokenizer": prepared.part(TOKENIZER), "benchmarks": benchmarks}


@stage_task("read questions")
def read_questions(config: BaseConfig, prepared: Artifact) -> Work:
    """Read every multiple-choice set into one format; do nothing if there is none."""
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
    return stage, {**inputs, "tokenizer": prepared.part(TOKENIZER)}


@stage_task("pack held-out texts")
def pack_held_out_texts(config: BaseConfig | Pretrain, prepared: Artifact) -> Work:
    """Tokenise the texts that the loss is measured on; do nothing if there is none."""
    held_out = config.evaluation.held_out
    if not held_out:
        return nothing("no evaluation.held_out")
    stage = HeldOutTexts(texts=tuple(held_out), block_tokens=config.data.max_tokens)
    inputs: dict[str, Input] = {f"held_out/{name}": source for name, source in held_out.items()}
    return stage, {**inputs, "tokenizer": prepared.part(TOKENIZER)}


@stage_task("check downstream tasks")
def check_downstream(config: BaseConfig, *prepared: Artifact) -> Work:
    """Find lm-evaluation-harness's tasks and their data; do nothing if none is asked for."""
    downstream = config.evaluation.downstream
    if downstream is None:
        return nothing("no evaluation.downstream")
    stage = DownstreamTasks(
        harness=importlib.metadata.version("lm_eval"),
        tasks=downstream.tasks,
        few_shot=downstream.few_shot,
        template=config.data.template if downstream.chat_template else None,
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
    """Return the longest allowed benchmark prompt, in tokens."""
    return config.evaluation.max_prompt_tokens or config.data.max_prompt_tokens


def generation_tokens(config: BaseConfig) -> int:
    """Return the longest benchmark prompt with its response, in tokens; long prompts leave the response full room."""
    return longest_prompt(config) + config.longest_response


def generation(config: BaseConfig) -> Generate:
    """Return how responses to the benchmarks are generated."""
    evaluation = config.evaluation
    return Generate(
        seeds=evaluation.seeds,
        **evaluation.model_dump(include=set(Sampling.model_fields)),
        precision=evaluation.precision,
        max_tokens=generation_tokens(config),
        max_response_tokens=evaluation.max_response_tokens,
    )
