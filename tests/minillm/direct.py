"""Helpers that run a stage in this process, and small raw inputs."""

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deepspeed.utils import groups

from minillm.config import Runtime, Template
from minillm.data.text_template import TextTemplate
from minillm.stages.base import Job, Stage
from minillm.stages.measuring import Generate
from minillm.stages.reading import EncodedPrompts
from minillm.worker.processes import process_group

ROOT = Path(__file__).parents[2]
PLAIN: dict[str, Any] = {"with_context": "{instruction}|{context}>", "without_context": "{instruction}>"}


def encode_prompts(tokenizer: Any, template: Template, asked: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return token ids of the prompts that a text template makes."""
    return [ids for _, ids in TextTemplate(tokenizer, template).prompts(asked)]


def run_stage(
    stage: Stage, inputs: dict[str, Path], folder: Path, **runtime: Any
) -> tuple[Path, dict[str, float | str]]:
    """Run a stage; return its output folder and summary."""
    output, work = folder / "output", folder / "work"
    output.mkdir(parents=True, exist_ok=True)
    work.mkdir()
    job = Job(kind=stage.kind, settings=stage, inputs=inputs, output=output, work=work, runtime=Runtime(**runtime))
    return output, importlib.import_module(stage.module).run(job)


def encode(folder: Path, tokenizer: Path, benchmarks: Path, limit: int = 8, template: Template | None = None) -> Path:
    """Encode the prompts of benchmarks; return the output folder."""
    stage = EncodedPrompts(
        template=template or Template(**PLAIN), max_prompt_tokens=limit, long_prompts="refuse", answer_tokens=4
    )
    return run_stage(stage, {"tokenizer": tokenizer, "benchmarks": benchmarks}, folder)[0]


def generation(max_tokens: int, **changes: Any) -> Generate:
    """Return settings for plain sampling with two seeds."""
    how = {"strategy": "sample", "temperature": 1.0, "top_k": None, "top_p": None, "no_repeat_ngram": None}
    fields = {"seeds": (10, 20), **how, "precision": "float32", "max_tokens": max_tokens}
    return Generate.model_validate({**fields, **changes})


@contextmanager
def alone() -> Iterator[None]:
    """Set the environment of a worker group of one, in which a stage may join its process group."""
    with pytest.MonkeyPatch.context() as patch:
        facts = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        for name, value in facts.items():
            patch.setenv(name, value)
        yield


@contextmanager
def group_of_one() -> Iterator[None]:
    """Be in a process group alone. DeepSpeed keeps the first that it sees, so it is made to forget each at its end."""
    with alone(), process_group():
        try:
            yield
        finally:
            groups._release_process_group_references(None)


def write_lines(path: Path, values: Iterable[object]) -> Path:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict]:
    """Read the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def real_data() -> Path:
    """Return the folder of the real files; skip the test if there is none."""
    folder = Path(os.environ.get("MINILLM_DATA", ROOT / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MINILLM_DATA")
    return folder
