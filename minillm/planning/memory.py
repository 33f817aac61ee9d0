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
KNOBS = {
    "weights": "set runtime.zero_stage: 3 and more runtime.processes, or take a smaller student",
    "gradients": "set runtime.zero_stage: 2 or more and more runtime.processes, or training.lora",
    "optimizer": "set runtime.zero_stage: 1 or more, more runtime.processes or offload_optimizer, or training.lora",
    "teacher": "set runtime.teacher_zero_stage: 3 and more runtime.processes or teacher_offload: cpu, or take a "
    "smaller teacher, or training.precision: bfloat16",
    "activations": "lower runtime.micro_batch_size or micro_batch_tokens, or set training.gradient_checkpointing",
    "caches": "lower runtime.generation_batch_size, or under zero_stage 3 set gather_student: false",
    "rollouts": "lower policy.rollouts",
}
"""Remedy for each part that is too large."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process, in bytes by part."""

    parts: Mapping[str, int]

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
        return KNOBS[largest]


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
    return Memory(parts)


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


def generation_memory(
    model: ModelFacts, name: str, precision: str, runtime: Runtime, rows: int, max_tokens: int
) -> Memory:
    """Memory of generating `rows` responses in all with `teacher` or `student`."""
    value, at_once = WEIGHT[precision], min(runtime.generation_batch_size, rows)
    chunk = 4 * at_once * model.tokenizer_entries
    return Memory(
        {
            "teacher" if name == "teacher" else "weights": frozen_weights(model, name, runtime) * value,
            "caches": at_once * max_tokens * value * _cache_width(model) + chunk,
        }
    )


def scoring_memory(models: Mapping[str, ModelFacts], precision: str, runtime: Runtime, max_tokens: int) -> Memory:
    """Memory of running `teacher` or `student`, or both, over given text."""
    value, tokens = WEIGHT[precision], runtime.tokens_at_once(max_tokens)
    widest = max(model.width for model in models.values())
    chunk = min(CHUNK_ENTRIES, tokens * max(model.tokenizer_entries for model in models.values()))
    held = {name: frozen_weights(model, name, runtime) * value for name, model in models.items()}
    return Memory(
        {
            "weights": held.get("student", 0),
            "teacher": held.get("teacher", 0),
            "activations": tokens * widest * value * SAVED_PER_LAYER + VOCABULARY_BUFFERS * 4 * chunk,
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
