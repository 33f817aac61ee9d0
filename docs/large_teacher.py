"""Memory and time of a step with a 32 B teacher on 8 GPUs, by arithmetic alone: `python -m docs.large_teacher`.

Memory is `minillm plan`'s; time is that of operations and bytes at the rates below, and nothing was measured.
"""

import pandas as pd
from humanize import naturalsize

from minillm.config import Method, Runtime
from minillm.models.facts import ModelFacts
from minillm.planning.memory import WEIGHT, training_memory
from minillm.planning.work import forward_operations
from minillm.preparation.model_checks import build_skeleton, inspect_model

ENTRIES = 151_669
QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
TEACHER = QWEN3 | {
    "hidden_size": 5120,
    "intermediate_size": 25_600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "tie_word_embeddings": False,
}
STUDENT = QWEN3 | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "tie_word_embeddings": True,
}
"""Qwen3-32B and Qwen3-1.7B, by their own configurations."""
PROCESSES, BATCH, ROLLOUTS, EPOCHS, PROMPT, RESPONSE, MIX = 8, 64, 256, 2, 512, 512, 0.2
OPERATIONS, READS, LINK = 0.4 * 989e12, 3.35e12, 450e9
"""Operations of a matrix product in bfloat16 a second (40 % of an H100's peak is assumed), bytes that are read of its
memory, and bytes that come over NVLink."""


def models() -> tuple[ModelFacts, ModelFacts]:
    """Facts of teacher and student."""
    given = {"teacher": TEACHER, "student": STUDENT}
    teacher, student = (inspect_model(name, *build_skeleton(name, of, ENTRIES), ENTRIES) for name, of in given.items())
    return teacher, student


def memory() -> pd.DataFrame:
    """Memory of each process with a whole teacher and with a sharded one, by parts."""
    teacher, student = models()
    training = {"learning_rate": 5e-6, "batch_size": BATCH, "steps": 1000, "evaluate_every": 100}
    training |= {"precision": "bfloat16", "gradient_checkpointing": True}
    policy = {"rollouts": ROLLOUTS, "inner_epochs": EPOCHS, "teacher_mix": MIX, "plain_text_coefficient": 0.0}
    method = Method.model_validate(
        {"text": "rollouts", "divergence": "reverse_kl", "policy": policy, "training": training}
    )
    rows = {}
    for stage in (0, 3):
        runtime = Runtime(processes=PROCESSES, zero_stage=1, micro_batch_size=4, teacher_zero_stage=stage)  # type: ignore[arg-type]
        needed = training_memory(student, teacher, method, runtime, PROMPT + RESPONSE, RESPONSE)
        rows[f"`teacher_zero_stage: {stage}`"] = {**needed.parts, "**all**": needed.total}
    return pd.DataFrame.from_dict(rows, orient="index").map(lambda size: naturalsize(size, binary=True, format="%.1f"))


def seconds() -> dict[str, float]:
    """Seconds of each part of a round on one process, by what it does."""
    teacher, student = models()
    rows, steps = ROLLOUTS / PROCESSES, EPOCHS * ROLLOUTS / BATCH
    gather = teacher.parameters * WEIGHT["bfloat16"] * (1 - 1 / PROCESSES) / LINK
    once = forward_operations(teacher, rows, PROMPT, RESPONSE) / OPERATIONS
    update = 4 * forward_operations(student, BATCH / PROCESSES, PROMPT, RESPONSE)  # with checkpointing
    update += 2 * teacher.width * ENTRIES * RESPONSE * BATCH / PROCESSES
    return {
        "one gathering of the teacher": gather,
        f"{MIX * RESPONSE:.0f} catch-ups of the teacher: gathered": MIX * RESPONSE * gather,
        "and computed": once,
        f"{RESPONSE} tokens of the student: weights read": RESPONSE * student.parameters * 2 / READS,
        f"scoring, {rows / 4:.0f} passes: gathered": rows / 4 * gather,
        "scoring: computed": once + forward_operations(student, rows, PROMPT, RESPONSE) / OPERATIONS,
        f"{steps:.0f} updates of the student": steps * update / OPERATIONS,
    }


def tables() -> list[str]:
    """Return both tables in Markdown, and what they add up to."""
    parts = seconds()
    _, *rest = parts.values()
    steps = EPOCHS * ROLLOUTS / BATCH
    times = pd.DataFrame([[name, f"{taken:.2f} s"] for name, taken in parts.items()], columns=["a round", "time"])
    return [
        memory().to_markdown(),
        times.to_markdown(index=False),
        f"{sum(rest):.0f} s a round at most, as gathering and computing overlap; {sum(rest) / steps:.1f} s a step.",
    ]


if __name__ == "__main__":
    print("\n\n".join(tables()))
