"""Stage `prepare`: makes the tokenizer that models share, and checks that they fit it and the lengths asked for."""

import copy
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minillm.config.data import RowFields
from minillm.data.documents import read_documents
from minillm.data.rows import Row, read_examples, read_split
from minillm.data.text_template import fill
from minillm.errors import StageError
from minillm.files import write_json
from minillm.models.causal_lm import model_directory
from minillm.models.facts import ModelFacts
from minillm.models.lora import add_adapters
from minillm.models.shared_tokenizer import SharedTokenizer, entries_of, named_end_tokens, share
from minillm.models.tokenizers_bpe import SMALLEST, train_bpe
from minillm.models.weight_files import require_fitting_weights
from minillm.nearest import suggestion
from minillm.preparation.architecture_check import require_faithful
from minillm.preparation.model_checks import (
    build_skeleton,
    explained,
    inspect_model,
    require_loadable,
    require_positions,
)
from minillm.preparation.tokenizer_checks import (
    has_tokenizer,
    load_original_tokenizer,
    require_end,
    require_same_tokenizer,
)
from minillm.stages.base import Job, Summary
from minillm.stages.reading import TOKENIZER, Prepare

PLAIN_TEXT_CHARACTERS = 10_000_000
"""Characters of D_PT to train a tokenizer on: more would change few merges and take long."""


def run(job: Job[Prepare]) -> Summary:
    """Write the tokenizer, with the tokens that end a response in its generation_config.json, and models.json.

    Raises:
        StageError: The tokenizer or a model cannot serve the run.
    """
    settings = job.settings
    folders = {name: model_directory(job.inputs[name]) for name in _ready_made(settings)}
    job = job.model_copy(update={"inputs": {**job.inputs, **folders}})
    ready_made = {name: require_loadable(name, folder) for name, folder in folders.items()}
    tokenizer, owner = _tokenizer(job, settings)
    entries = entries_of(tokenizer)
    facts: dict[str, ModelFacts] = {}
    for name, architecture in settings.models.items():
        origin = job.inputs[name] if architecture is None else architecture
        if isinstance(origin, Path) and owner != name and has_tokenizer(origin):
            require_same_tokenizer(tokenizer, owner, load_original_tokenizer(origin, name), name)
        config, skeleton = build_skeleton(name, origin, entries)
        if isinstance(origin, Path):
            require_fitting_weights(name, origin, ready_made[name], skeleton)
        facts[name] = inspect_model(name, config, skeleton, entries)
        require_positions(name, facts[name], settings.max_tokens, settings.generation_tokens)
        for lora in settings.adapters.get(name, ()):
            with explained(name, "add adapters to it"):
                add_adapters(copy.deepcopy(skeleton), lora)
        require_faithful(name, config, skeleton, max(settings.max_tokens, settings.generation_tokens))
    if tokenizer.pad_token is None:  # padding is always masked, but libraries require a token
        tokenizer.pad_token = tokenizer.eos_token
    named = named_end_tokens(job.inputs[owner]) if owner in job.inputs else []
    shared = share(tokenizer, [*named, *_further_ends(tokenizer, settings)])
    _tell_other_ends(job, shared)
    shared.generation_config().save_pretrained(job.output / TOKENIZER)
    tokenizer.save_pretrained(job.output / TOKENIZER)
    write_json(job.output / "models.json", {name: fact.model_dump() for name, fact in facts.items()})
    return {
        "tokenizer": owner,
        "vocabulary": float(entries),
        "end_tokens": " ".join(_tell_end_tokens(shared)),
        **{f"parameters/{name}": float(fact.parameters) for name, fact in facts.items()},
    }


def _further_ends(tokenizer: PreTrainedTokenizerBase, settings: Prepare) -> list[int]:
    """Return the ids of the end tokens that the configuration names.

    Raises:
        StageError: The tokenizer lacks one.
    """
    known = tokenizer.get_vocab()
    for name in settings.end_tokens:
        if name not in known:
            added = [token.content for token in tokenizer.added_tokens_decoder.values()]
            raise StageError(f"data.end_tokens: the tokenizer has no token {name!r}; {suggestion(name, added)}")
    return [known[name] for name in settings.end_tokens]


def _tell_end_tokens(shared: SharedTokenizer) -> list[str]:
    """Log the end tokens, and which of them are ordinary tokens, and return them as text."""
    words = [str(shared.tokenizer.convert_ids_to_tokens(token)) for token in shared.ends]
    marked = shared.tokenizer.added_tokens_decoder
    told = [
        f"{word!r} ({token}{'' if token in marked else ', an ordinary token'})"
        for token, word in zip(shared.ends, words, strict=True)
    ]
    print(f"a response ends with {' or '.join(told)}", flush=True)
    return words


def _tell_other_ends(job: Job[Prepare], shared: SharedTokenizer) -> None:
    """Log the end tokens that a model or directory names and that end no response here."""
    for name in [name for name in (*job.settings.models, "tokenizer.from") if name in job.inputs]:
        others = [token for token in named_end_tokens(job.inputs[name]) if token not in shared.ends]
        words = shared.tokenizer.convert_ids_to_tokens([token for token in others if 0 <= token < shared.entries])
        if words:
            told = " and ".join(map(repr, words))
            print(f"{name} also ends with {told}, which ends nothing here; data.end_tokens can add it", flush=True)
        if outside := [token for token in others if not 0 <= token < shared.entries]:
            print(f"{name} names end tokens that the tokenizer does not have: {outside}; never drawn", flush=True)


def _ready_made(settings: Prepare) -> list[str]:
    """Names of the models that have weights already."""
    return [name for name, architecture in settings.models.items() if architecture is None]


def _tokenizer(job: Job[Prepare], settings: Prepare) -> tuple[PreTrainedTokenizerBase, str]:
    """Load or train the tokenizer; return it with the name of its origin, for errors."""
    wanted = settings.tokenizer
    if isinstance(wanted, str):
        tokenizer = load_original_tokenizer(job.inputs[wanted], wanted)
        require_end(tokenizer, job.inputs[wanted], wanted)
        return tokenizer, wanted
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


def _texts(job: Job[Prepare], settings: Prepare) -> Iterator[str]:
    """Yield prompts and responses of the training rows, then the beginning of the plain text, of what there is."""
    if "instructions" in job.inputs:
        yield from _row_texts(job, settings)
    if "plain_text" in job.inputs:
        yield from _beginning(job.inputs["plain_text"])


def _row_texts(job: Job[Prepare], settings: Prepare) -> Iterator[str]:
    """Yield prompts and responses of the training rows.

    Without a split file all rows count, since it is not known yet which will be trained on.
    """
    path = job.inputs["instructions"]
    _require_row(path, settings.fields)
    parts = None
    if "split" in job.inputs:
        parts = read_split(job.inputs["split"], sum(1 for _ in read_examples(path, settings.fields)))
    for row in read_examples(path, settings.fields):
        if isinstance(row, Row) and (parts is None or parts[row.row] == "train"):
            if row.conversation is None:
                yield fill(settings.template, row.instruction, row.context)
                yield row.response
            else:
                yield from row.texts


def _require_row(path: Path, fields: RowFields) -> None:
    reasons = ""
    for number, row in enumerate(read_examples(path, fields)):
        if isinstance(row, Row):
            return
        if number < 3:
            reasons += f"; {row.file}:{row.line}: {row.reason}"
    raise StageError(f"data.instructions {path} has no usable row{reasons}")


def _beginning(corpus: Path) -> Iterator[str]:
    characters = 0
    for document in read_documents(corpus):
        yield document[: PLAIN_TEXT_CHARACTERS - characters]
        characters += len(document)
        if characters >= PLAIN_TEXT_CHARACTERS:
            return
