"""Tasks of System 2 distillation: questions, slow and fast answers, those that are kept, training, report and card."""

from collections.abc import Mapping
from typing import Any, Literal

from prefect import State
from prefect.futures import PrefectFuture
from tabulate import tabulate

from minillm.config import Sampling, System2, Training
from minillm.stages.reading import TOKENIZER, Prepare
from minillm.stages.system2 import (
    Ask,
    AskReasoner,
    CheckReasoner,
    KeepConsistent,
    QuestionSets,
    System2Card,
    System2Report,
)
from minillm.stages.training import Train, training_only
from minillm.store.manifest import Artifact
from minillm.words import number, with_interval
from tasks.data import filtering
from tasks.reporting import conclude_page
from tasks.running.computation import Input
from tasks.running.session import Session
from tasks.running.stage import Work, nothing, stage_task

Part = Literal["unlabelled", "test"]
System = Literal["system1", "system2"]


@stage_task("prepare tokenizer")
def prepare(config: System2) -> Work:
    """Train the tokenizer or load the model's own, and check that the model fits it and the lengths asked for."""
    data, model = config.data, config.model
    lora = tuple(dict.fromkeys(of.lora for of in config.trainings.values() if of.lora is not None))
    stage = Prepare(
        tokenizer="model" if config.tokenizer is None else config.tokenizer.train_vocabulary,
        template=data.template,
        models={"model": model.architecture},
        max_tokens=data.max_tokens,
        generation_tokens=data.max_tokens,
        adapters={"model": lora},
        fields=data.fields,
        end_tokens=data.end_tokens,
    )
    inputs: dict[str, Input] = {}
    if model.architecture is None:
        inputs["model"] = model
    elif data.instructions is not None:
        inputs["instructions"] = data.instructions
    return stage, inputs


@stage_task("read {part} questions")
def read_questions(config: System2, part: Part, test: Artifact | None = None) -> Work:
    """Read sets of questions; leave out repeated ones, and those of `test`."""
    sets = config.data.test if part == "test" else config.data.unlabelled
    inputs: dict[str, Input] = {f"questions/{name}": record.source for name, record in sets.items()}
    return QuestionSets(part=part, sets=sets), inputs | ({} if test is None else {"test": test})


@stage_task("check reasoner")
def check_reasoner(config: System2, test: Artifact, unlabelled: Artifact) -> Work:
    """Compare an endpoint's budget with what System 2 may take, and ask it a question; a model here needs none."""
    if config.reasoner is None:
        return nothing("reasoner is null")
    consistency = config.self_consistency
    stage = CheckReasoner(
        reasoner=config.reasoner,
        chain=config.system2,
        test_samples=config.asking.test_samples,
        samples=consistency.samples,
        orders=1 + consistency.reorderings,
    )
    return stage, {"test": test, "unlabelled": unlabelled}


@stage_task("filter instructions")
def filter_instructions(config: System2, prepared: Artifact, test: Artifact) -> Work:
    """Filter, split and tokenise the rows that the model is fine-tuned on first; do nothing if there are none."""
    data = config.data
    if data.instructions is None:
        return nothing("no data.instructions")
    inputs: dict[str, Input] = {
        "instructions": data.instructions,
        "tokenizer": prepared.part(TOKENIZER),
        "benchmarks": test,
    }
    return filtering(data, test_size=None, seed=config.seed), inputs


@stage_task("fine-tune model")
def fine_tune(config: System2, prepared: Artifact, examples: Artifact) -> Work:
    """Fine-tune the model before all else; one that can answer already is taken as it is."""
    if config.training is None:
        return nothing("training is null", config.model)
    return _train(config, "model", config.training, config.model, prepared, examples)


@stage_task("ask {name}")
def ask(
    config: System2, name: str, system: System, part: Part, model: Input, prepared: Artifact, questions: Artifact
) -> Work:
    """Ask a model the questions of a part by a chain of prompts; a reasoner takes its place for System 2."""
    asking, consistency, unlabelled = config.asking, config.self_consistency, part == "unlabelled"
    asked: dict[str, Any] = {
        "part": part,
        "chain": config.system1 if system == "system1" else config.system2,
        "samples": consistency.samples if unlabelled else asking.test_samples,
        "orders": 1 + consistency.reorderings if unlabelled else 1,
        "seed": config.seed,
    }
    if config.reasoner is not None and system == "system2":
        stage = AskReasoner(**asked, reasoner=config.reasoner, system=config.data.template.system)
        return stage, {"questions": questions}
    stage = Ask(
        **asked,
        template=config.data.template,
        precision=asking.precision,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_tokens=config.data.max_tokens,
        max_response_tokens=asking.max_response_tokens,
        **asking.model_dump(include=set(Sampling.model_fields)),
    )
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared.part(TOKENIZER), "questions": questions}
    return stage, inputs


@stage_task("keep consistent answers")
def keep_consistent(config: System2, answers: Artifact, questions: Artifact, prepared: Artifact) -> Work:
    """Keep the final answers that agree with themselves, and drop the steps that led to them."""
    (prompt,) = config.system1.steps.values()
    stage = KeepConsistent(
        prompt=prompt,
        majority=config.self_consistency.majority,
        template=config.data.template,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_tokens=config.data.max_tokens,
        validation_size=config.data.validation_size,
        seed=config.seed,
    )
    inputs: dict[str, Input] = {"answers": answers, "questions": questions, "tokenizer": prepared.part(TOKENIZER)}
    return stage, inputs


@stage_task("distil answers")
def distil_answers(config: System2, model: Input, prepared: Artifact, examples: Artifact) -> Work:
    """Train the model on questions with the answers that were kept."""
    return _train(config, "system1", config.distillation, model, prepared, examples)


@stage_task("report")
def report(
    config: System2, questions: Artifact, answers: Mapping[str, Artifact], examples: Artifact, distilled: Artifact
) -> Work:
    """Compare System 1 before, System 2 and System 1 after, and write the page."""
    stage = System2Report(
        name=config.name,
        chain=config.system2,
        samples=config.self_consistency.samples,
        reasoner=config.reasoner and config.reasoner.model,
    )
    asked: dict[str, Input] = {f"answers/{system}": of for system, of in answers.items()}
    return stage, {"questions": questions, **asked, "examples": examples, "train": distilled}


@stage_task("export model")
def export_model(config: System2, model: Artifact, examples: Artifact, results: Artifact) -> Work:
    """Export the distilled model as an ordinary Hugging Face directory with its card."""
    stage = System2Card(config=config.model_dump(mode="json", exclude={"runtime"}))
    inputs: dict[str, Input] = {"model": model, "examples": examples, "report": results}
    return stage, inputs


def conclude(session: Session, results: PrefectFuture[Any], exported: PrefectFuture[Any]) -> State:
    """Wait for everything and show the table; return the flow's final state."""
    return conclude_page(session, results, "System 2 into System 1", _tables, {"model": exported})


def _tables(facts: Mapping[str, Any]) -> list[str]:
    """Return accuracy and tokens of each system, from the report's results.json."""
    rows = [
        [
            system,
            *(with_interval(cell["mean"], cell["interval"]) for cell in of.values()),
            number(facts["tokens"][system]),
        ]
        for system, of in facts["accuracy"].items()
    ]
    columns = ["% right", *next(iter(facts["accuracy"].values())), "tokens per answer"]
    return [tabulate(rows, columns, "github", disable_numparse=True)]


def _train(
    config: System2, role: str, training: Training, model: Input, prepared: Artifact, examples: Artifact
) -> Work:
    architecture = None if isinstance(model, Artifact) else getattr(model, "architecture", None)
    stage = Train(
        role=role,
        method=training_only(training),
        architecture=architecture,
        max_tokens=config.data.max_tokens,
        validation_prompts=config.data.validation_size,
        seed=config.seed,
    )
    inputs: dict[str, Input] = {"tokenizer": prepared.part(TOKENIZER), "examples": examples}
    return stage, inputs | ({"weights": model} if architecture is None else {})
