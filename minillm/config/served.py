"""Refusal, by name, of settings that a teacher behind an endpoint cannot follow, when a configuration is read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.config.experiment import Config
    from minillm.config.method import Method, Policy
    from minillm.config.training import Training

NOT_SAMPLED_SO = ("top_k", "no_repeat_ngram")
"""Rules of sampling that chat completions do not have."""
TOKEN_ALONE = {"credit": "token", "single_step": False, "teacher_mix": 0.0, "plain_text_kd": 0.0, "temperature": 1.0}
"""Settings of a policy that reads nothing of the teacher but log p of the sampled tokens, as servers tell it."""


def take_students_tokenizer(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a raw configuration in which the student of a served teacher brings the tokenizer, by default."""
    model = (raw.get("teacher") or {}).get("model") if isinstance(raw.get("teacher"), dict) else None
    tokenizer = raw.get("tokenizer") or {}
    if not isinstance(model, dict) or model.get("endpoint") is None or not isinstance(tokenizer, dict):
        return raw
    if tokenizer.get("train_vocabulary") is not None:
        return raw
    return {**raw, "tokenizer": {"from": "student", **{k: v for k, v in tokenizer.items() if v is not None}}}


def problems_of_served(config: "Config") -> Iterator[str]:
    """Say what in a configuration needs the weights of its teacher, which runs behind an endpoint."""
    teacher, evaluation = config.teacher, config.evaluation
    if teacher.training is not None:
        yield "teacher.training fine-tunes weights, which an endpoint does not give; set teacher.training: null"
    if config.student.model.layers_of is not None:
        yield "student.model.layers_of takes weights of the teacher; give student.model an origin of its own"
    if config.tokenizer.model == "teacher":
        yield "tokenizer.from is teacher, whose files an endpoint does not give; set it to student or a directory"
    if teacher.knowledge.precision != "float32":
        yield "teacher.knowledge.precision is the endpoint's own; leave it out"
    if config.runtime.teacher_zero_stage:
        yield "runtime.teacher_zero_stage shards weights, which an endpoint does not give; leave it out"
    if evaluation.exposure_bias is not None:
        yield "evaluation.exposure_bias compares whole distributions of student and teacher; set it to null"
    for name in evaluation._changed(*NOT_SAMPLED_SO):
        yield f"evaluation.{name} is no rule of an endpoint's sampling, and all rows are sampled alike; leave it out"
    for name, method in config.methods.items():
        yield from (f"methods.{name}{problem}" for problem in _problems_of(method, config))


def _problems_of(method: "Method", config: "Config") -> Iterator[str]:
    """Say which fields of a method ask for more than text and the log-probabilities of likely tokens."""
    if method.text == "pairs":
        yield ".text: pairs compares with the running teacher; use text: teacher"
    elif method.stored in ("hidden", "sampled"):
        yield f".teacher: {method.stored} is made of weights; use teacher: top"
    elif method.policy is not None:
        yield from _problems_of_rollouts(method.policy, method.training, config)
    elif method.runs_teacher:
        yield f".divergence: {method.divergence} with teacher: live needs its weights in training; use teacher: top"
    if method.stored == "top" and config.teacher.knowledge.top.k is None:
        yield " reads likely tokens, whose number an endpoint must know; set teacher.knowledge.top.k"
    if method.needs_log_probs and config.tokenizer.train_vocabulary is not None:
        yield (
            " reads log-probabilities of the teacher's own tokens, and tokenizer.train_vocabulary makes others; set "
            "tokenizer.from to a tokenizer of the teacher's family"
        )


def _problems_of_rollouts(policy: "Policy", training: "Training", config: "Config") -> Iterator[str]:
    unfit = [f"{name}: {getattr(policy, name)}" for name in TOKEN_ALONE if getattr(policy, name) != TOKEN_ALONE[name]]
    if unfit:
        yield (
            f".policy.{' and '.join(unfit)} need the teacher's whole distribution; set what on_policy has "
            f"({', '.join(f'{name}: {value}' for name, value in TOKEN_ALONE.items())})"
        )
    endpoint, steps = config.teacher.model.endpoint, training.steps
    if endpoint is not None and steps is not None:
        rounds = -(-steps * training.batch_size // (policy.inner_epochs * policy.rollouts))
        if (rollouts := rounds * policy.rollouts) > endpoint.max_requests:
            yield (
                f" asks for each of {rollouts} rollouts, above max_requests ({endpoint.max_requests}); raise it, or "
                "lower training.steps"
            )
