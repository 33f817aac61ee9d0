"""Facts of each kind of run that a plan needs beside its stages: amounts of data, rows to time, and how to generate."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from minillm.config import Config, Endpoint, Pretrain, Sampling, System2
from minillm.data.benchmarks import load_benchmarks
from minillm.data.encoding import encode_texts, load_prompts
from minillm.data.prompts import template_of
from minillm.endpoints.budget import Bill
from minillm.files import read_json
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.placeholders import fill
from minillm.planning.stage_estimate import read_amounts
from minillm.planning.work import CHOICES, Amounts
from minillm.pretraining.corpus import BEGINNINGS
from minillm.pretraining.text_rows import as_rows
from minillm.stages.base import Stage
from minillm.stages.measuring import Generate
from minillm.stages.pretraining import SampleCorpus, TextRows
from minillm.stages.reading import (
    SIZES,
    TOKENIZER,
    DownstreamTasks,
    EncodedPrompts,
    Filter,
    HeldOutTexts,
    Prepare,
    Questions,
    TaskSize,
)
from minillm.stages.system2 import Ask, AskReasoner, CheckReasoner, QuestionSets
from minillm.stages.training import Train
from minillm.store.manifest import Artifact
from minillm.system2.questions import orders_of, shown

Found = Sequence[tuple[Stage, Artifact]]
"""Stages that only read, with their results."""


@dataclass(frozen=True)
class Subject:
    """A run as a plan sees it."""

    amounts: Callable[[Stage], Amounts]
    """Amounts of data that a stage goes through."""
    examples: Path
    """Folder of `train.parquet`, rows on which trainings are timed."""
    generate: Generate
    """Settings of generation."""
    responses: int
    """Responses that a stage generates at once, if it can."""
    endpoint: Endpoint | None = None
    """Endpoint of a teacher that runs elsewhere."""
    lengths: str = ""
    """Length that responses of models that run here are taken to have, where a plan is to say so."""


def of_distillation(config: Config, found: Found, generate: Generate) -> Subject:
    """Return what is known of a distillation."""
    read = _by_kind(found)
    prompts = {name: len(of) for name, of in load_prompts(Path(read[EncodedPrompts].path)).items()}
    amounts = replace(
        read_amounts(Path(read[Filter].path)),
        benchmark_prompts=prompts,
        seeds=len(config.evaluation.seeds),
        choices=int(CHOICES * _summed(read.get(Questions))),
        tasks=_tasks(read.get(DownstreamTasks)),
        held_out_tokens=int(_summed(read.get(HeldOutTexts)) * config.data.max_tokens),
    )
    responses, endpoint = sum(prompts.values()) * len(config.evaluation.seeds), config.teacher.model.endpoint
    return Subject(lambda stage: amounts, Path(read[Filter].path), generate, responses, endpoint)


def of_pretraining(config: Pretrain, found: Found, folder: Path) -> Subject:
    """Return what is known of a pre-training, whose sequences are all of one length."""
    read, tokens, corpus = _by_kind(found), config.data.max_tokens, config.corpus
    _write(folder, [[0]] * corpus.sequences, [[0] * (tokens - 1)] * corpus.sequences)
    held_out = int(_summed(read.get(HeldOutTexts)) * tokens)

    def amounts(stage: Stage) -> Amounts:
        count = corpus.sequences
        if isinstance(stage, SampleCorpus):
            count += corpus.validation_size + BEGINNINGS
        elif isinstance(stage, Train):
            count = stage.rows or int(read[TextRows].manifest().summary["rows"])
        return _even(count, 1, tokens - 1, validation=corpus.validation_size, held_out_tokens=held_out)

    generate = _generation(Sampling(temperature=corpus.temperature), config.evaluation.precision, tokens)
    return Subject(amounts, folder, generate, corpus.sequences)


def of_system2(config: System2, found: Found, folder: Path) -> Subject:
    """Return what is known of a System 2 distillation; what it learns is as long as the test questions' answers."""
    read, asking, data = _by_kind(found), config.asking, config.data
    shared = load_shared_tokenizer(Path(read[Prepare].path) / TOKENIZER)
    template = template_of(shared.tokenizer, data.template, shared.ends)
    parts = {
        stage.part: [row for rows in load_benchmarks(Path(artifact.path)).values() for row in rows]
        for stage, artifact in found
        if isinstance(stage, QuestionSets)
    }

    def prompts(prompt: str, rows: Iterable[Mapping[str, Any]]) -> list[list[int]]:
        return [ids for _, ids in template.prompts([(fill(prompt, {"question": shown(row, 0)}), "") for row in rows])]

    (fast,) = config.system1.steps.values()
    fast_prompts = prompts(fast, parts["test"])
    answers = encode_texts(shared.tokenizer, [row["references"][0] for row in parts["test"]])
    _write(folder, fast_prompts, [[*answer, shared.eos] for answer in answers])
    lessons = read_amounts(Path(read[Filter].path)) if Filter in read else None
    longest = min(asking.max_response_tokens or data.max_tokens, data.max_tokens)

    def amounts(stage: Stage) -> Amounts:
        match stage:
            case Ask(part=part, chain=chain, samples=samples, orders=orders):
                prompt = _mean(prompts(next(iter(chain.steps.values())), parts[part]))
                count = samples * sum(orders_of(row, orders) for row in parts[part]) * len(chain.steps)
                room = min(longest, max(1.0, data.max_tokens - prompt))
                return _even(count, prompt, lessons.response if lessons else room)
            case AskReasoner(part=part):
                bill = Bill(**read_json(Path(read[CheckReasoner].path) / "reasoner.json")[part])
                count = bill.questions
                return _even(count, bill.prompt_tokens / count, bill.completion_tokens / count)
            case Train(role="model"):
                assert lessons is not None
                return lessons
            case _:
                kept = max(1, len(parts["unlabelled"]) - data.validation_size)
                return _even(kept, _mean(fast_prompts), _mean(answers) + 1, validation=data.validation_size)

    responses = asking.test_samples * len(parts["test"])
    words = "the data.instructions'" if lessons else "asking.max_response_tokens and data.max_tokens let them be"
    generate = _generation(asking, asking.precision, data.max_tokens)
    return Subject(amounts, folder, generate, responses, lengths=f"as long as {words}")


def _tasks(downstream: Artifact | None) -> tuple[TaskSize, ...]:
    """Sizes of the harness's tasks; none without its artifact."""
    found = {} if downstream is None else read_json(Path(downstream.path) / SIZES)
    return tuple(map(TaskSize.model_validate, found.values()))


def _by_kind(found: Found) -> dict[type[Stage], Artifact]:
    return {type(stage): artifact for stage, artifact in found}


def _summed(artifact: Artifact | None) -> float:
    """Sum of the numbers in an artifact's summary, blocks for example; 0 without an artifact."""
    summary = {} if artifact is None else artifact.manifest().summary
    return float(sum(value for value in summary.values() if not isinstance(value, str)))


def _even(count: int, prompt: float, response: float, validation: int = 0, held_out_tokens: int = 0) -> Amounts:
    """Return amounts of so many examples of one length, in tokens."""
    return Amounts(
        rows=count,
        row_tokens=prompt + response,
        examples=count,
        validation=validation,
        prompt=prompt,
        response=response,
        benchmark_prompts={},
        seeds=0,
        held_out_tokens=held_out_tokens,
    )


def _write(folder: Path, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> None:
    """Write rows to time trainings on."""
    as_rows(prompts, responses, [""] * len(prompts)).assign(prompt="").to_parquet(folder / "train.parquet")


def _generation(sampling: Sampling, precision: Literal["float32", "bfloat16"], max_tokens: int) -> Generate:
    same = sampling.model_dump(include=set(Sampling.model_fields))
    return Generate(**same, seeds=(0,), precision=precision, max_tokens=max_tokens)


def _mean(tokens: Sequence[Sequence[int]]) -> float:
    """Mean length."""
    return fmean(map(len, tokens))
