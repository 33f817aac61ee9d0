"""Tasks of pre-training on a teacher's corpus: the teacher, its corpus, students on growing shares of it, the page."""

from collections.abc import Mapping
from typing import Any

from prefect import State
from prefect.futures import PrefectFuture
from tabulate import tabulate

from minillm.config import Method, Model, Pretrain, PretrainedStudent, Template
from minillm.config.experiment import adapters_of
from minillm.stages.measuring import HeldOut
from minillm.stages.pretraining import PretrainReport, SampleCorpus, TextRows
from minillm.stages.reading import TOKENIZER, Prepare
from minillm.stages.training import Train, training_only
from minillm.store.manifest import Artifact
from minillm.words import with_interval
from tasks.reporting import conclude_page
from tasks.running.computation import Input
from tasks.running.session import Session
from tasks.running.stage import Work, nothing, stage_task


@stage_task("prepare tokenizer")
def prepare(config: Pretrain) -> Work:
    """Train the tokenizer or load the teacher's own, and check that both models fit it and the length of a sequence."""
    teacher, tokens = config.teacher, config.data.max_tokens
    stage = Prepare(
        tokenizer="teacher.model" if config.tokenizer is None else config.tokenizer.train_vocabulary,
        template=Template(),
        models={"teacher.model": teacher.model.architecture, "student.model": config.student.model.architecture},
        max_tokens=tokens,
        generation_tokens=tokens,
        adapters=adapters_of(config.trainings),
    )
    if teacher.model.architecture is None:
        return stage, {"teacher.model": teacher.model}
    assert config.data.plain_text is not None
    return stage, {"plain_text": config.data.plain_text}


@stage_task("cut plain text")
def cut_plain_text(config: Pretrain, prepared: Artifact) -> Work:
    """Cut the plain text into rows to train the teacher on; do nothing if it is trained already."""
    if config.data.plain_text is None:
        return nothing("no data.plain_text")
    stage = TextRows(block_tokens=config.data.max_tokens, validation_size=config.data.validation_size)
    return stage, {"plain_text": config.data.plain_text, "tokenizer": prepared.part(TOKENIZER)}


@stage_task("train teacher")
def train_teacher(config: Pretrain, prepared: Artifact, rows: Artifact) -> Work:
    """Train the teacher on plain text; one that is trained already is taken as it is."""
    teacher = config.teacher
    if teacher.training is None:
        return nothing("teacher.training is null", teacher.model)
    chosen = {"validation_prompts": config.data.validation_size, "seed": config.seed}
    stage = _training(config, "teacher", training_only(teacher.training), teacher.model, **chosen)
    weights: dict[str, Input] = {} if teacher.model.architecture else {"weights": teacher.model}
    return stage, {"tokenizer": prepared.part(TOKENIZER), "examples": rows, **weights}


@stage_task("sample corpus")
def sample_corpus(config: Pretrain, prepared: Artifact, teacher: Input) -> Work:
    """Let the teacher write the corpus."""
    stage = SampleCorpus(
        **config.corpus.model_dump(),
        max_tokens=config.data.max_tokens,
        precision=config.evaluation.precision,
        seed=config.seed,
    )
    return stage, {"model": teacher, "tokenizer": prepared.part(TOKENIZER)}


@stage_task("train {student.name}")
def train_student(
    config: Pretrain,
    student: PretrainedStudent,
    prepared: Artifact,
    corpus: Artifact,
    teacher: Input,
    knowledge: Artifact | None = None,
) -> Work:
    """Train a student from random weights on a share of the corpus; the teacher's files are only compared."""
    chosen = {"validation_prompts": config.corpus.validation_size, "seed": student.seed, "rows": student.rows}
    stage = _training(config, student.name, config.methods[student.method], config.student.model, **chosen)
    inputs: dict[str, Input] = {"tokenizer": prepared.part(TOKENIZER), "examples": corpus, "responses": corpus}
    return stage, inputs | ({} if knowledge is None else {"teacher": teacher, "knowledge": knowledge})


def _training(config: Pretrain, role: str, method: Method, model: Model, **of: int) -> Train:
    return Train(role=role, method=method, architecture=model.architecture, max_tokens=config.data.max_tokens, **of)


@stage_task("held-out loss {role}")
def measure_perplexity(config: Pretrain, role: str, model: Input, prepared: Artifact, texts: Artifact) -> Work:
    """Measure the loss on text that no model trained on."""
    stage = HeldOut(
        role=role,
        benchmarks=(),
        texts=tuple(config.evaluation.held_out),
        precision=config.evaluation.precision,
        max_tokens=config.data.max_tokens,
        block_tokens=config.data.max_tokens,
    )
    return stage, {"model": model, "tokenizer": prepared.part(TOKENIZER), "texts": texts}


@stage_task("report")
def report(
    config: Pretrain, corpus: Artifact, students: Mapping[str, Artifact], measured: Mapping[str, Artifact]
) -> Work:
    """Compare perplexities, and write the page."""
    stage = PretrainReport(
        name=config.name,
        students=config.students,
        steps=tuple(map(config.budget.optimizer_steps, config.rows)),
        batch_size=config.budget.batch_size,
    )
    inputs: dict[str, Input] = {"corpus": corpus}
    inputs |= {f"train/{name}": model for name, model in students.items()}
    return stage, inputs | {f"held_out/{name}": of for name, of in measured.items()}


def conclude(session: Session, results: PrefectFuture[Any]) -> State:
    """Wait for everything and show the tables; return the flow's final state."""
    return conclude_page(session, results, "Pre-training on a teacher's corpus", _tables)


def _tables(facts: Mapping[str, Any]) -> list[str]:
    """Return perplexity by method and amount of data on each text, from the report's results.json."""
    tables = []
    for text, found in facts["perplexity"].items():
        rows = [[method, *(with_interval(c["mean"], c["interval"], 2) for c in of)] for method, of in found.items()]
        columns = [f"perplexity, {text}", *facts["columns"]]
        tables.append(tabulate(rows, columns, "github", disable_numparse=True))
    return tables
