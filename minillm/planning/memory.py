"""Memory of one process, part by part, and what makes each part smaller."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from minillm.config import Method, Runtime
from minillm.models.facts import ModelFacts
from minillm.objectives.fused_head import CHUNK_ENTRIES

LIBRARIES = 600 << 20
"""Bytes that a worker holds before its first model: Python, PyTorch and the other libraries."""
WEIGHT = {"float32": 4, "bfloat16": 2}
"""Bytes of a weight."""
ADAM = {"float32": 8, "bfloat16": 12}
"""Bytes of AdamW's state per weight: two moments in float32 and, for bfloat16, the weight in float32."""
SAVED_PER_LAYER = 17
"""Activations that a layer keeps for the backward pass, per token and entry of its hidden state (Korthikanti et al.,
arXiv 2205.05198, eq. 1: 34 bytes in 16 bit); the scores of attention are not kept."""
VOCABULARY_BUFFERS = 3
"""Buffers of tokens × vocabulary in float32 that a loss taken chunk by chunk holds at once."""
TRAIN_KNOBS = {
    "weights": "set runtime.zero_stage: 3 and more runtime.processes, or take a smaller student",
    "gradients": "set runtime.zero_stage: 2 or more and more runtime.processes, or training.lora",
    "optimizer": "set runtime.zero_stage: 1 or more, more runtime.processes or offload_optimizer, or training.lora",
    "teacher": "set runtime.teacher_zero_stage: 3 and more runtime.processes or teacher_offload: cpu, or take a "
    "smaller teacher, or training.precision: bfloat16",
    "activations": "lower runtime.micro_batch_size or micro_batch_tokens, or set training.gradient_checkpointing",
    "caches": "lower runtime.generation_batch_size, or under zero_stage 3 set gather_student: false",
    "rollouts": "lower policy.rollouts",
}
"""Remedy for each part of a training that is too large."""
RUN_KNOBS = {
    "weights": "take a smaller student",
    "teacher": "set runtime.teacher_zero_stage: 3 and {more}, or take a smaller teacher",
    "activations": "lower runtime.micro_batch_size or micro_batch_tokens",
    "caches": "lower runtime.generation_batch_size",
}
"""Remedy for each part of generation or scoring that is too large; {more} is what helps a sharded teacher."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process, in bytes by part."""

    parts: Mapping[str, int]
    knobs: Mapping[str, str]
    """Remedy for each part that is too large."""

    @property
    def total(self) -> int:
        """Bytes of all parts and the libraries; caches and activations are never there at once."""
        both = ("caches", "activations")
        others = sum(size for name, size in self.parts.items() if name not in both)
        return LIBRARIES + others + max(self.parts.get(name, 0) for name in both)

    @property
    def knob(self) -> str:
        """Remedy for the largest part."""
        largest = max(self.parts, key=lambda name: self.parts[name])
        return self.knobs[largest]


def training_memory(
    student: ModelFacts, teacher: ModelFacts | None, method: Method, runtime: Runtime, max_tokens: int, response: int
) -> Memory:
    """Memory of training a student.

    Args:
        student: Model that is trained.
        teacher: Model that it learns from, if it does.
        method: Method of training, whose precision and rollouts count.
        runtime: ZeRO stage, processes and batch sizes.
        max_tokens: Longest prompt with response.
        response: Mean length of a response, in tokens.
    """
    training, policy = method.training, method.policy
    value, trained = WEIGHT[training.precision], trained_parameters(student, method)
    shards = [runtime.processes if runtime.zero_stage_in(training.precision) >= stage else 1 for stage in (1, 2, 3)]
    tokens = min(runtime.tokens_at_once(max_tokens), -(-training.batch_size // runtime.processes) * max_tokens)
    offloaded = runtime.offload_optimizer and torch.cuda.is_available()  # into memory that is not counted here
    layers = 1 if training.gradient_checkpointing else student.layers
    saved = (
        tokens * student.width * value * (SAVED_PER_LAYER * layers + training.gradient_checkpointing * student.layers)
    )
    chunk = min(CHUNK_ENTRIES, tokens * student.tokenizer_entries)
    parts = {
        "weights": student.parameters * value // shards[2],
        "gradients": trained * value // shards[1],
        "optimizer": 0 if offloaded else trained * ADAM[training.precision] // shards[0],
        "teacher": _teacher_weights(teacher, method, runtime) * value if teacher else 0,
        "activations": saved + VOCABULARY_BUFFERS * 4 * chunk,
        "caches": 0,
    }
    rows = runtime.generation_batch_size
    if policy is not None and teacher is not None:
        rows = min(rows, -(-policy.rollouts // runtime.processes))
        parts["caches"] = rows * max_tokens * value * _cache_width(teacher)
        # Hidden states of the teacher (T, H) for the responses that a process updates on.
        parts["rollouts"] = -(-policy.rollouts // runtime.processes) * response * teacher.width * 4
    parts["caches"] += rows * max_tokens * value * _cache_width(student)
    if shards[2] > 1:  # what generation gathers beyond the process's share
        whole = student.parameters - student.parameters // shards[2]
        parts["caches"] += value * (whole if runtime.gather_student else _gathered(student) + _head(student))
    return Memory(parts, TRAIN_KNOBS)


def _teacher_weights(teacher: ModelFacts, method: Method, runtime: Runtime) -> int:
    """Number of the teacher's weights in memory: all if it runs, its head for hidden states, none for entries."""
    head = teacher.width * teacher.tokenizer_entries if method.stored == "hidden" else 0
    return frozen_weights(teacher, "teacher", runtime) if method.runs_teacher else head


def frozen_weights(model: ModelFacts, name: str, runtime: Runtime) -> int:
    """Number of weights that a process holds of a model that is only run.

    Of a sharded teacher, these are its share of all, the head once more and whole, and what is gathered for a pass.
    """
    if name != "teacher" or runtime.teacher_zero_stage == 0:
        return model.parameters
    offloaded = runtime.teacher_offload == "cpu" and torch.cuda.is_available()
    return (0 if offloaded else -(-model.parameters // runtime.processes)) + _head(model) + _gathered(model)


def _head(model: ModelFacts) -> int:
    return model.embedding_rows * model.width


def _gathered(model: ModelFacts) -> int:
    """Most sharded weights that a pass has in place at once: a layer and the next, or the embedding."""
    return max(2 * model.body_parameters // model.layers, _head(model))


def trained_parameters(student: ModelFacts, method: Method) -> int:
    """Number of weights that get gradients: all, or at most those of adapters beside every matrix."""
    lora = method.training.lora
    return student.parameters if lora is None else lora.rank * student.matrix_edges


@dataclass(frozen=True)
class Running:
    """Settings of a stage that runs models without training them."""

    runtime: Runtime
    """With the processes that the stage has."""
    precision: str
    field: str
    """Field of the configuration that says the precision."""
    shares_work: bool = True
    """True if the stage has as many processes as the run."""

    @property
    def value(self) -> int:
        """Bytes of a weight."""
        return WEIGHT[self.precision]

    def memory(self, parts: Mapping[str, int]) -> Memory:
        """Return memory by part with the remedy for each."""
        more = "more runtime.processes or teacher_offload: cpu" if self.shares_work else "teacher_offload: cpu"
        narrower = f", or set {self.field}: bfloat16" if self.precision == "float32" else ""
        return Memory(parts, {part: knob.format(more=more) + narrower for part, knob in RUN_KNOBS.items()})


def generation_memory(model: ModelFacts, name: str, running: Running, rows: int, max_tokens: int) -> Memory:
    """Memory of generating `rows` responses in all with `teacher` or `student`."""
    at_once = min(running.runtime.generation_batch_size, rows)
    chunk = 4 * at_once * model.tokenizer_entries
    return running.memory(
        {
            "teacher" if name == "teacher" else "weights": frozen_weights(model, name, running.runtime) * running.value,
            "caches": at_once * max_tokens * running.value * _cache_width(model) + chunk,
        }
    )


def scoring_memory(models: Mapping[str, ModelFacts], running: Running, max_tokens: int) -> Memory:
    """Memory of running `teacher` or `student`, or both, over given text."""
    tokens = running.runtime.tokens_at_once(max_tokens)
    chunk = min(CHUNK_ENTRIES, tokens * max(model.tokenizer_entries for model in models.values()))
    return _scoring(models, running, tokens, chunk)


def downstream_memory(model: ModelFacts, name: str, running: Running, tokens: int) -> Memory:
    """Memory of running `teacher` or `student` in lm-evaluation-harness, which takes the logits of a pass whole."""
    return _scoring({name: model}, running, tokens, tokens * model.tokenizer_entries)


def _scoring(models: Mapping[str, ModelFacts], running: Running, tokens: int, entries: int) -> Memory:
    """Memory of running models over so many tokens at once, with so many entries of logits."""
    widest = max(model.width for model in models.values())
    held = {name: frozen_weights(model, name, running.runtime) * running.value for name, model in models.items()}
    return running.memory(
        {
            "weights": held.get("student", 0),
            "teacher": held.get("teacher", 0),
            "activations": tokens * widest * running.value * SAVED_PER_LAYER + VOCABULARY_BUFFERS * 4 * entries,
        }
    )


def training_disk(student: ModelFacts, method: Method) -> int:
    """Bytes on disk: the model, its export, and while it trains two checkpoints and the best weights so far."""
    value = WEIGHT[method.training.precision]
    return student.parameters * value * 3 + 2 * checkpoint_bytes(student, method)


def checkpoint_bytes(student: ModelFacts, method: Method) -> int:
    """Size of one checkpoint: weights and the optimizer's state."""
    precision = method.training.precision
    return student.parameters * WEIGHT[precision] + trained_parameters(student, method) * ADAM[precision]


def _cache_width(model: ModelFacts) -> int:
    return model.layers * model.cache_width
