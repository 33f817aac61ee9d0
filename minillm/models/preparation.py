"""Stage `prepare`: the run's tokenizer, and whether teacher and student fit it and the lengths asked for."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minillm.data.documents import read_documents
from minillm.data.prompts import render
from minillm.data.rows import read_rows, read_split
from minillm.errors import StageError
from minillm.models.model_checks import ModelFacts, inspect_model, require_positions
from minillm.models.tokenizer_checks import has_tokenizer, load_tokenizer, require_same_tokenizer
from minillm.models.tokenizers_bpe import SMALLEST, train_bpe
from minillm.stages import Job, Prepare

PLAIN_TEXT_CHARACTERS = 10_000_000
"""Of D_PT that a tokenizer is trained on: more changes few merges and takes long."""


def run(job: Job) -> dict[str, float | str]:
    """Write the tokenizer's files and models.json.

    Raises:
        StageError: If the tokenizer or a model cannot serve the run.
    """
    settings = job.settings
    assert isinstance(settings, Prepare)
    tokenizer, owner = _tokenizer(job, settings)
    facts: dict[str, ModelFacts] = {}
    for role, model in (("teacher", settings.teacher), ("student", settings.student)):
        directory = job.inputs.get(role)
        if directory is not None and owner != f"{role}.model" and has_tokenizer(directory):
            theirs = load_tokenizer(directory, f"{role}.model")
            require_same_tokenizer(tokenizer, owner, theirs, f"{role}.model")
        facts[role] = inspect_model(role, model, directory, len(tokenizer))
        require_positions(role, facts[role], settings.max_tokens, settings.generation_tokens)
    if tokenizer.pad_token is None:  # padding is always masked; libraries still ask for a token
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(job.output)
    described = {role: fact.model_dump() for role, fact in facts.items()}
    (job.output / "models.json").write_text(json.dumps(described, indent=2))
    return {
        "tokenizer": owner,
        "vocabulary": float(len(tokenizer)),
        **{f"{role}_parameters": float(fact.parameters) for role, fact in facts.items()},
    }


def _tokenizer(job: Job, settings: Prepare) -> tuple[PreTrainedTokenizerBase, str]:
    """The run's tokenizer and the configuration field it comes from."""
    wanted = settings.tokenizer.train_vocabulary
    if wanted is None:
        source = "tokenizer" if "tokenizer" in job.inputs else "teacher"
        owner = {"tokenizer": "tokenizer.path", "teacher": "teacher.model"}[source]
        return load_tokenizer(job.inputs[source], owner), owner
    given = [role for role in ("teacher", "student") if role in job.inputs]
    if given:
        raise StageError(
            f"tokenizer.train_vocabulary is {wanted}, but {given[0]}.model has weights made for a tokenizer of its "
            "own; leave train_vocabulary out, or give `architecture` instead"
        )
    if wanted < SMALLEST:
        raise StageError(f"tokenizer.train_vocabulary is {wanted}; every byte needs an entry: set {SMALLEST} or more")
    tokenizer = train_bpe(_texts(job, settings), wanted)
    print(f"tokenizer trained: {len(tokenizer)} of at most {wanted} entries", flush=True)
    return tokenizer, "tokenizer.train_vocabulary"


def _texts(job: Job, settings: Prepare) -> Iterator[str]:
    """Prompts and responses of the training rows, then the beginning of the plain text.

    Without a split file every row counts, as which will be trained on is not known yet.
    """
    path = job.inputs["instructions"]
    rows, malformed = read_rows(path)
    if not rows:
        reasons = "".join(f"; {m.file}:{m.line}: {m.reason}" for m in malformed[:3])
        raise StageError(f"data.instructions {path} has no usable row{reasons}")
    if "split" in job.inputs:
        parts = read_split(job.inputs["split"], len(rows) + len(malformed))
        rows = [row for row in rows if parts[row.row] == "train"]
    for row in rows:
        yield render(settings.template, row.instruction, row.context)
        yield row.response
    if "plain_text" in job.inputs:
        yield from _beginning(job.inputs["plain_text"])


def _beginning(corpus: Path) -> Iterator[str]:
    characters = 0
    for document in read_documents(corpus):
        yield document[: PLAIN_TEXT_CHARACTERS - characters]
        characters += len(document)
        if characters >= PLAIN_TEXT_CHARACTERS:
            return
