"""Small trainings of every kind, and helpers that read their results."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from minillm.config import Method
from minillm.stages.training import Train
from minillm.worker.progress import read_metrics
from tests.minillm.jobs import make_examples, make_plain_text, make_tokenizer
from tests.minillm.models_in_small import ARCHITECTURES

MAX_TOKENS = 16


def method(kind: str, steps: int = 8, **training: Any) -> Method:
    rows = {
        "sft": {"text": "dataset", "divergence": "cross_entropy"},
        "kd": {"text": "dataset", "divergence": "forward_kl", "divergence_weight": 0.5},
        "minillm": {
            "text": "rollouts",
            "divergence": "reverse_kl",
            "start": "initial",
            "policy": {"rollouts": 16, "inner_epochs": 2},
        },
        "dpkd": {"text": "pairs", "divergence": "preference", "start": "initial"},
        "distillm": {
            "text": "rollouts",
            "divergence": "skewed_reverse_kl",
            "start": "initial",
            "policy": {"rollouts": 8, "inner_epochs": 1, "teacher_mix": 0.0, "credit": "none", "replay": 32}
            | {"student_share": "adaptive"},
        },
    }
    common = {"learning_rate": 1e-3, "batch_size": 8, "steps": steps, "evaluate_every": 4}
    return Method.model_validate({**rows[kind], "training": {**common, **training}})


def settings(kind: str, architecture: str | None = "gpt2", seed: int = 1, **changes: Any) -> Train:
    return Train(
        role=kind,
        method=method(kind, **changes),
        architecture=ARCHITECTURES[architecture] if architecture else None,
        max_tokens=MAX_TOKENS,
        validation_prompts=6,
        seed=seed,
    )


def with_collapse(stage: Train, **collapse: Any) -> Train:
    """Return the settings of a training on rollouts with other thresholds."""
    fields = stage.method.model_dump()
    fields["policy"]["collapse"] |= collapse
    return stage.model_copy(update={"method": Method.model_validate(fields)})


def without_dropout(stage: Train) -> Train:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return stage.model_copy(update={"architecture": {**ARCHITECTURES["gpt2"], **off}})


def make_inputs(folder: Path) -> dict[str, Path]:
    """Make a tokenizer, examples and plain text."""
    return {
        "tokenizer": make_tokenizer(folder / "tokenizer"),
        "examples": make_examples(folder / "examples"),
        "plain_text": make_plain_text(folder / "plain_text", MAX_TOKENS),
    }


def text_inputs(inputs: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: inputs[name] for name in ("tokenizer", "examples", *names)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "output" / "model" / "model.safetensors")


def losses(folder: Path) -> dict[int, float]:
    return {step: v for step, name, v in read_metrics(folder / "output" / "metrics.jsonl") if name == "train/loss"}


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that were written completely."""
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/step-*/checkpoint.json"))
