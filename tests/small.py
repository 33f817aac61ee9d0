"""A whole experiment small enough for tests: forty rows, two-step trainings, models of a few thousand weights."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

from minillm.config import Config
from minillm.config.loading import load_config

COLOURS = ["red", "blue", "green", "black", "white"]
ANIMALS = ["cat", "dog", "fox", "bird", "frog", "goat"]


def write_experiment(folder: Path) -> Path:
    """Write data, benchmark and configuration files into a folder; return the configuration's path."""
    draw = random.Random(0)
    rows = [
        {
            "instruction": f"Say number {number}: what does the {draw.choice(COLOURS)} {draw.choice(ANIMALS)} do?",
            "context": "",
            "response": f"The {draw.choice(ANIMALS)} runs to the {draw.choice(COLOURS)} hill.",
            "category": draw.choice(["open_qa", "brainstorming"]),
        }
        for number in range(40)
    ]
    benchmark = [
        {"instruction": f"Where is the {colour} one?", "input": "", "output": f"The {colour} one is on the hill."}
        for colour in COLOURS[:3]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "benchmark.jsonl", benchmark)
    quiz = [
        {
            "question": f"Is the {colour} one red?",
            "choices": ["It is red.", "It is not."],
            "answer": int(colour != "red"),
        }
        for colour in COLOURS
    ]
    write_rows(folder / "quiz.jsonl", quiz)
    lines = [f"A {draw.choice(COLOURS)} {draw.choice(ANIMALS)} sleeps near the {word} tree." for word in COLOURS * 12]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "held_out.txt").write_text(
        "\n".join(line.replace("sleeps", "runs") for line in lines) + "\n", encoding="utf-8"
    )
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(_settings(folder), sort_keys=False), encoding="utf-8")
    return path


def write_short_experiment(folder: Path, methods: tuple[str, ...] = ("sft",), steps: int = 2) -> Path:
    """Write the same experiment with fewer methods and no measures but scores; return the configuration's path."""
    path = write_experiment(folder)
    settings = _settings(folder)
    settings["methods"] = {name: settings["methods"][name] for name in methods}
    trainings = [method["training"] for method in settings["methods"].values()]
    for training in (settings["teacher"]["training"], settings["student"]["initial"], *trainings):
        training |= {"steps": steps, "evaluate_every": max(2, steps // 3)}
    if "minillm" not in methods:
        del settings["data"]["plain_text"]
    settings["evaluation"] |= {"calibration": {}, "held_out": {}, "exposure_bias": None}
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def small_config(folder: Path, *overrides: str) -> Config:
    """Return the configuration of `write_experiment`, with overrides."""
    return load_config(write_experiment(folder), overrides)


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {
            "directory": str(folder),
            "instructions": {"path": "rows.jsonl"},
            "validation_size": 4,
            "test_size": 2,
            "plain_text": {"path": "text.txt"},
            "max_prompt_tokens": 100,
            "max_tokens": 140,
            "template": {"with_context": "{instruction} {context}\n", "without_context": "{instruction}\n"},
        },
        "tokenizer": {"train_vocabulary": 300},
        "teacher": {"model": {"architecture": _architecture(16)}, "training": _training()},
        "student": {
            "model": {"architecture": _architecture(8)},
            "initial": _training(select_by="validation_loss"),
        },
        "methods": {
            "sft": {"text": "dataset", "divergence": "cross_entropy", "training": _training()},
            "minillm": {
                "text": "rollouts",
                "divergence": "reverse_kl",
                "start": "initial",
                "policy": {"rollouts": 8},
                "training": _training(),
            },
        },
        "evaluation": {
            "benchmarks": {"dolly": {"source": {"path": "benchmark.jsonl"}}},
            "calibration": {"quiz": {"source": {"path": "quiz.jsonl"}}},
            "held_out": {"running": {"path": "held_out.txt"}},
            "seeds": [10, 20],
            "validation_prompts": 2,
            "exposure_bias": {},
        },
        "runtime": {"store": str(folder / "store"), "threads": 1, "parallel_stages": 2, "retries": 1},
    }


def _architecture(width: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": width, "n_positions": 256}


def _training(**changes: Any) -> dict[str, Any]:
    return {"learning_rate": 1e-3, "batch_size": 8, "steps": 2, "evaluate_every": 2, **changes}
