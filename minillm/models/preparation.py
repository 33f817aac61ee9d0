"""Stage `prepare`: the tokenizer that models share, and whether they fit it and the lengths asked for."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minillm.data.documents import read_documents
from minillm.data.prompts import render
from minillm.data.rows import read_rows, read_split
from minillm.errors import StageError
from minillm.models.architecture_check import require_faithful
from minillm.models.facts import ModelFacts
from minillm.models.model_checks import build_skeleton, inspect_model, require_loadable, require_positions
from minillm.models.tokenizer_checks import has_tokenizer, load_tokenizer, require_same_tokenizer
from minillm.models.tokenizers_bpe import SMALLEST, train_bpe
from minillm.models.weight_files import require_fitting_weights
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
    ready_made = {name: require_loadable(name, job.inputs[name]) for name in _ready_made(settings)}
    tokenizer, owner = _tokenizer(job, settings)
    facts: dict[str, ModelFacts] = {}
    for name, architecture in settings.models.items():
        origin = job.inputs[name] if architecture is None else architecture
        if isinstance(origin, Path) and owner != name and has_tokenizer(origin):
            require_same_tokenizer(tokenizer, owner, load_tokenizer(origin, name), name)
        config, skeleton = build_skeleton(name, origin, len(tokenizer))
        if isinstance(origin, Path):
            require_fitting_weights(name, origin, ready_made[name], skeleton)
        facts[name] = inspect_model(name, config, skeleton, len(tokenizer))
        require_positions(name, facts[name], settings.max_tokens, settings.generation_tokens)
        require_faithful(name, config, skeleton, max(settings.max_tokens, settings.generation_tokens))
    if tokenizer.pad_token is None:  # padding is always masked; libraries still ask for a token
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(job.output)
    described = {name: fact.model_dump() for name, fact in facts.items()}
    (job.output / "models.json").write_text(json.dumps(described, indent=2))
    return {
        "tokenizer": owner,
        "vocabulary": float(len(tokenizer)),
        **{f"parameters/{name}": float(fact.parameters) for name, fact in facts.items()},
    }


def _ready_made(settings: Prepare) -> list[str]:
    """Names of the models that have weights already."""
    return [name for name, architecture in settings.models.items() if architecture is None]


def _tokenizer(job: Job, settings: Prepare) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer, and what errors call the place it comes from."""
    wanted = settings.tokenizer.train_vocabulary
    if wanted is None:
        if "tokenizer" in job.inputs:
            return load_tokenizer(job.inputs["tokenizer"], "tokenizer.path"), "tokenizer.path"
        first = next(iter(settings.models))
        return load_tokenizer(job.inputs[first], first), first
    if given := _ready_made(settings):
        raise StageError(
            f"tokenizer.train_vocabulary is {wanted}, but {given[0]} has weights made for a tokenizer of its own; "
            "leave train_vocabulary out, or give `architecture` instead"
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
