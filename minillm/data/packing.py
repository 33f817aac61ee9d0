"""Stage `pack`: a plain-text corpus, tokenised once into one array that training maps into memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from minillm.data.documents import read_documents
from minillm.data.prompts import encode_texts
from minillm.errors import StageError
from minillm.progress import Progress
from minillm.stages import Job, Pack

BATCH_CHARACTERS = 1 << 20
"""Text tokenised at once: enough to keep every core busy, little enough to stay out of memory's way."""


def run(job: Job) -> dict[str, float | str]:
    """Write tokens.npy (documents parted by EOS, a whole number of blocks) and meta.json.

    Raises:
        StageError: If the corpus cannot be read or is shorter than one block.
    """
    settings = job.settings
    assert isinstance(settings, Pack)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    corpus = job.inputs["plain_text"]
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    stream = job.work / "tokens.bin"
    progress = Progress(job.output, max(1, _size(corpus) >> 20), "MB of plain text")
    documents, tokens = _tokenise(corpus, tokenizer, stream, dtype, progress)
    blocks = tokens // settings.block_tokens
    if not blocks:
        raise StageError(
            f"plain text {corpus} has {tokens} tokens, less than one block of {settings.block_tokens} "
            "(data.max_tokens); give a longer corpus, or set plain_text_coefficient to 0"
        )
    _save(stream, job.output / "tokens.npy", dtype, blocks * settings.block_tokens)
    meta = {"block_tokens": settings.block_tokens, "blocks": blocks, "documents": documents, "dtype": dtype.name}
    (job.output / "meta.json").write_text(json.dumps(meta, indent=2))
    return {"documents": float(documents), "tokens": float(tokens), "blocks": float(blocks)}


def _tokenise(corpus: Path, tokenizer: Any, stream: Path, dtype: np.dtype, progress: Progress) -> tuple[int, int]:
    """Append every document's tokens and EOS to a file; how many documents and tokens there were."""
    documents = tokens = seen = 0
    with stream.open("wb") as file:
        for batch in _batches(read_documents(corpus)):
            for ids in encode_texts(tokenizer, batch):
                np.asarray([*ids, tokenizer.eos_token_id], dtype).tofile(file)
                tokens += len(ids) + 1
            documents += len(batch)
            seen += sum(len(text.encode()) for text in batch)
            progress.log(min(seen >> 20, progress.total - 1))
    progress.log(progress.total)
    return documents, tokens


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _save(stream: Path, target: Path, dtype: np.dtype, length: int) -> None:
    """Copy the first `length` tokens into a .npy file, a part at a time."""
    source = np.memmap(stream, dtype, mode="r")
    result = np.lib.format.open_memmap(target, mode="w+", dtype=dtype, shape=(length,))
    for start in range(0, length, 1 << 24):
        end = min(start + (1 << 24), length)
        result[start:end] = source[start:end]
    result.flush()
    stream.unlink()


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
