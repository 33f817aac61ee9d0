"""Tasks that make the data: the tokenizer, filtered examples, packed plain text."""

from typing import Any

from minillm.config import BaseConfig, Config, EvaluationConfig, Lora, Model, Source
from minillm.config.data import Data, RowFields
from minillm.config.system2 import System2Data
from minillm.stages.reading import TOKENIZER, Filter, Pack, Prepare, TakeLayers
from minillm.store.manifest import Artifact
from tasks.evaluation_sets import generation_tokens
from tasks.running.computation import Input
from tasks.running.stage import Work, nothing, stage_task


@stage_task("take layers")
def take_layers(config: Config) -> Work:
    """Make the student of its teacher's layers; a student that has an origin of its own is taken as it is."""
    student, teacher = config.student.model, config.teacher.model
    if student.layers is None:
        return nothing("student.model.layers_of is null", student)
    return TakeLayers(layers=student.layers), {"teacher": teacher}


@stage_task("prepare tokenizer")
def prepare(config: Config, student: Input) -> Work:
    """Train or load the tokenizer that teacher and student share, and check that those with weights here fit it."""
    models: dict[str, Input] = {} if config.served else {"teacher.model": config.teacher.model}
    models["student.model"] = student
    architectures = {n: model.architecture if isinstance(model, Model) else None for n, model in models.items()}
    chosen = config.tokenizer
    wanted = chosen.train_vocabulary or (f"{chosen.model}.model" if chosen.model else "tokenizer.from")
    stage = _prepare(config, wanted, architectures, config.adapters, config.data.fields)
    inputs = {name: model for name, model in models.items() if architectures[name] is None}
    if chosen.directory is not None:
        inputs["tokenizer.from"] = Source(path=str(chosen.directory.absolute()))
    if chosen.train_vocabulary is not None:
        corpora = {"instructions": config.data.instructions, "split": config.data.split}
        inputs |= _given({**corpora, "plain_text": config.data.plain_text})
    return stage, inputs


@stage_task("prepare {name}")
def prepare_model(config: EvaluationConfig, name: str) -> Work:
    """Load a model's own tokenizer, and check that it fits the model and the lengths asked for."""
    stage = _prepare(config, "model", {"model": None}, adapters={}, fields=RowFields())
    return stage, {"model": config.models[name]}


def _prepare(
    config: BaseConfig,
    tokenizer: str | int,
    models: dict[str, dict[str, Any] | None],
    adapters: dict[str, tuple[Lora, ...]],
    fields: RowFields,
) -> Prepare:
    return Prepare(
        tokenizer=tokenizer,
        template=config.data.template,
        models=models,
        max_tokens=config.data.max_tokens,
        generation_tokens=generation_tokens(config),
        adapters=adapters,
        fields=fields,
        end_tokens=config.data.end_tokens,
    )


@stage_task("filter examples")
def filter_examples(config: Config, prepared: Artifact, benchmarks: Artifact) -> Work:
    """Drop malformed, duplicate, over-long and leaked examples and report them; split and tokenise the rest."""
    data = config.data
    metrics = sorted({of.select_by for of in config.trainings.values() if of.select_by != "validation_loss"})
    given_split = {} if data.split is None else dict.fromkeys(("validation_size", "test_size", "seed"))
    stage = filtering(data, **{"seed": config.seed, "selected_by": tuple(metrics), **given_split})
    sources = _given({"instructions": data.instructions, "split": data.split})
    return stage, {**sources, "tokenizer": prepared.part(TOKENIZER), "benchmarks": benchmarks}


def filtering(data: Data | System2Data, **others: Any) -> Filter:
    """Return the filter of training rows; its settings are those of `data` with the same names, and others."""
    return Filter(**{name: getattr(data, name) for name in Filter.model_fields if hasattr(data, name)} | others)


@stage_task("pack plain text")
def pack_plain_text(config: Config, prepared: Artifact) -> Work:
    """Tokenise the plain-text corpus once, to be memory-mapped from then on; do nothing if none is given."""
    if config.data.plain_text is None:
        return nothing("no data.plain_text")
    stage = Pack(block_tokens=config.data.max_tokens)
    inputs: dict[str, Input] = {"plain_text": config.data.plain_text, "tokenizer": prepared.part(TOKENIZER)}
    return stage, inputs


def _given(sources: dict[str, Source | None]) -> dict[str, Input]:
    return {name: source for name, source in sources.items() if source is not None}
