"""Tasks that train models, and the one that makes the teacher's responses for sequence-level distillation."""

from collections.abc import Mapping
from typing import Any, Literal

from minillm.config import Config, Form, Method, Model, Pretrain
from minillm.stages.reading import TOKENIZER
from minillm.stages.training import Respond, StoreKnowledge, Train, training_only
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.stage import Work, nothing, stage_task
from tasks.served import asked_knowledge, asked_responses


@stage_task("fine-tune teacher")
def fine_tune_teacher(config: Config, given: Input, prepared: Artifact, examples: Artifact) -> Work:
    """Fine-tune the teacher on D; a teacher that is already fine-tuned is taken as it is."""
    teacher = config.teacher
    if teacher.training is None:
        return nothing("teacher.training is null", given)
    return _train(config, "teacher", training_only(teacher.training), teacher.model, prepared, examples)


@stage_task("fine-tune initial")
def fine_tune_initial_student(config: Config, student: Input, prepared: Artifact, examples: Artifact) -> Work:
    """Fine-tune the student on D, as the starting point of MiniLLM; do nothing if no method needs it."""
    initial = config.student.initial
    if initial is None:
        return nothing("student.initial is null")
    return _train(config, "initial", training_only(initial), student, prepared, examples)


@stage_task("teacher responses")
def teacher_responses(config: Config, prepared: Artifact, examples: Artifact, teacher: Input) -> Work:
    """Generate the teacher's own responses to the training prompts; do nothing if no method trains on them."""
    if not any(method.text in ("teacher", "pairs") for method in config.methods.values()):
        return nothing("no method has `text: teacher` or `text: pairs`")
    if config.served:
        return asked_responses(config, teacher, prepared, examples)
    return _respond(config, "teacher", teacher, prepared, examples)


@stage_task("student responses")
def student_responses(
    config: Config, prepared: Artifact, examples: Artifact, student: Input, initial: Artifact | None
) -> Work:
    """Generate the responses that DPKD prefers the teacher's to; do nothing if no method trains on pairs."""
    if not any(method.text == "pairs" for method in config.methods.values()):
        return nothing("no method has `text: pairs`")
    return _respond(config, "student", initial or student, prepared, examples)


def _respond(
    config: Config, role: Literal["teacher", "student"], model: Input, prepared: Artifact, examples: Artifact
) -> Work:
    stage = Respond(
        role=role, max_tokens=config.data.max_tokens, precision=config.evaluation.precision, seed=config.seed
    )
    inputs: dict[str, Input] = {"model": model, "tokenizer": prepared.part(TOKENIZER), "examples": examples}
    return stage, inputs


@stage_task("teacher knowledge {form} on {text}")
def store_knowledge(
    config: Config | Pretrain, form: Form, text: str, prepared: Artifact, rows: Artifact, teacher: Input
) -> Work:
    """Run the teacher once over the data's responses or its own, and keep what students learn from without it."""
    if isinstance(config, Config) and config.served:
        return asked_knowledge(config, text, teacher, prepared, rows)
    knowledge = config.teacher.knowledge
    kept = {} if form == "hidden" else {form: getattr(knowledge, form)}
    drawn = {"seed": config.seed} if form == "sampled" else {}
    stage = StoreKnowledge.model_validate({**kept, **drawn, "precision": knowledge.precision})
    inputs: dict[str, Input] = {"model": teacher, "tokenizer": prepared.part(TOKENIZER)}
    return stage, {**inputs, ("responses" if text == "teacher" else "examples"): rows}


@stage_task("train {name}")
def distil(config: Config, name: str, student: Input, prepared: Artifact, examples: Artifact, **needed: Input) -> Work:
    """Train the student with one method; `needed` is what `needs` picks for it."""
    return _train(config, name, config.methods[name], student, prepared, examples, **needed)


def needs(
    method: Method,
    *,
    teacher: Any,
    initial: Any,
    responses: Any,
    rejected: Any,
    knowledge: Mapping[Any, Any],
    plain_text: Any,
) -> dict[str, Any]:
    """Pick the results of other stages that a method reads, so that it neither waits for the rest nor fails with it.

    Args:
        method: One row of the table of methods.
        teacher: Fine-tuned teacher, or its future (likewise below).
        initial: Fine-tuned student.
        responses: The teacher's responses to the training prompts.
        rejected: The student's responses to them.
        plain_text: Packed plain-text corpus.
        knowledge: What the teacher left behind, by form and text.
    """
    needed: dict[str, Any] = {}
    if method.start == "initial":
        needed["weights"] = initial
    if method.text in ("teacher", "pairs"):
        needed["responses"] = responses
    if method.text == "pairs":
        needed["rejected"] = rejected
    if method.divergence != "cross_entropy":
        needed["teacher"] = teacher
    if method.stored is not None:
        needed["knowledge"] = knowledge[method.stored, method.text]
    if method.policy is not None and method.policy.plain_text_coefficient > 0:
        needed["plain_text"] = plain_text
    return needed


def _train(
    config: Config, role: str, method: Method, model: Input, prepared: Artifact, examples: Artifact, **needed: Input
) -> Work:
    architecture = model.architecture if isinstance(model, Model) and "weights" not in needed else None
    weights = {"weights": model} if architecture is None else {}
    stage = Train(
        role=role,
        method=method,
        architecture=architecture,
        max_tokens=config.data.max_tokens,
        validation_prompts=config.evaluation.validation_prompts,
        seed=config.seed,
    )
    return stage, {"tokenizer": prepared.part(TOKENIZER), "examples": examples, **weights, **needed}
