"""Tasks that ask a teacher behind an endpoint, in the place of those that run it."""

from minillm.config import Config, ServedTeacher
from minillm.stages.reading import TOKENIZER
from minillm.stages.served import AskAnswers, AskKnowledge, AskResponses, CheckTeacher
from minillm.store.manifest import Artifact
from tasks.evaluation_sets import generation
from tasks.running.computation import Input
from tasks.running.stage import Work, nothing, stage_task


@stage_task("check served teacher")
def check_served_teacher(config: Config, prepared: Artifact) -> Work:
    """Ask an endpoint for a few tokens, to see that it gives what methods read; other teachers are taken as given."""
    endpoint = config.teacher.model.endpoint
    if endpoint is None:
        return nothing("teacher.model is no endpoint", config.teacher.model)
    methods = config.methods.values()
    stage = CheckTeacher(
        endpoint=endpoint,
        template=config.data.template,
        log_probs=config.teacher.knowledge.top.k or 1 if any(method.needs_log_probs for method in methods) else None,
        by_ids=any(method.runs_teacher for method in methods),
    )
    return stage, {"tokenizer": prepared.part(TOKENIZER)}


def asked_responses(config: Config, teacher: Input, prepared: Artifact, examples: Artifact) -> Work:
    """Ask for responses to the training prompts."""
    data = config.data
    stage = AskResponses(
        endpoint=_endpoint(config),
        template=data.template,
        fields=data.fields,
        max_tokens=data.max_tokens,
        seed=config.seed,
    )
    inputs: dict[str, Input] = {"model": teacher, "tokenizer": prepared.part(TOKENIZER), "examples": examples}
    return stage, {**inputs, "instructions": data.instructions}


def asked_knowledge(config: Config, text: str, teacher: Input, prepared: Artifact, rows: Artifact) -> Work:
    """Ask for the likeliest tokens of the training text."""
    k = config.teacher.knowledge.top.k
    assert k is not None
    inputs: dict[str, Input] = {"model": teacher, "tokenizer": prepared.part(TOKENIZER)}
    stage = AskKnowledge(endpoint=_endpoint(config), k=k)
    return stage, {**inputs, ("responses" if text == "teacher" else "examples"): rows}


@stage_task("generate {role}")
def ask_answers(
    config: Config, role: str, teacher: Input, prepared: Artifact, prompts: Artifact, benchmarks: Artifact
) -> Work:
    """Ask for responses to every benchmark, once per seed."""
    stage = AskAnswers(endpoint=_endpoint(config), system=config.data.template.system, generate=generation(config))
    inputs: dict[str, Input] = {
        "model": teacher,
        "tokenizer": prepared.part(TOKENIZER),
        "prompts": prompts,
        "benchmarks": benchmarks,
    }
    return stage, inputs


def _endpoint(config: Config) -> ServedTeacher:
    assert config.teacher.model.endpoint is not None
    return config.teacher.model.endpoint
