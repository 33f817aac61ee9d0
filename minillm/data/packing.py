"""Stage `pack`: tokenises a plain-text corpus into one array that training maps into memory."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from minillm.data.documents import read_documents
from minillm.data.encoding import encode_texts
from minillm.data.token_bytes import spelled_bytes
from minillm.data.tokenising import batches, pieces
from minillm.errors import StageError
from minillm.files import files_of, write_json
from minillm.stages.base import Job, Summary
from minillm.stages.reading import Pack
from minillm.worker.progress import Progress


def run(job: Job[Pack]) -> Summary:
    """Pack the corpus into the output folder; see `pack`."""
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    corpus = job.inputs["plain_text"]
    progress = Progress(job.output, megabytes(corpus), "MB of plain text")
    return pack(corpus, tokenizer, settings.block_tokens, job.work / "tokens.bin", job.output, progress)


def pack(corpus: Path, tokenizer: Any, block_tokens: int, stream: Path, output: Path, progress: Progress) -> Summary:
    """Write tokens.npy (documents separated by EOS, a whole number of blocks) and meta.json, and return the counts.

    Args:
        corpus: Corpus as `read_documents` takes it.
        tokenizer: Tokenizer with an EOS token.
        block_tokens: Tokens in a block.
        stream: Temporary file for the tokens, removed at the end.
        output: Folder to write into.
        progress: Progress in megabytes of the corpus.

    Raises:
        StageError: The corpus cannot be read or is shorter than one block.
    """
    spelled = spelled_bytes(tokenizer)
    dtype = np.dtype(np.uint16 if len(spelled) <= 1 << 16 else np.uint32)
    counts = _tokenise(corpus, tokenizer, stream, dtype, spelled, progress)
    tokens = counts["tokens"]
    blocks = tokens // block_tokens
    if not blocks:
        raise StageError(
            f"plain text {corpus} has {tokens} tokens, less than one block of {block_tokens} (data.max_tokens); "
            "give a longer text or leave it out"
        )
    _save(stream, output / "tokens.npy", dtype, blocks * block_tokens)
    meta = {"block_tokens": block_tokens, "blocks": blocks, "dtype": dtype.name, **counts}
    write_json(output / "meta.json", meta)
    return {"documents": float(counts["documents"]), "tokens": float(tokens), "blocks": float(blocks)}


def megabytes(path: Path) -> int:
    """Size of a corpus in MiB, at least 1."""
    files = files_of(path) if path.is_dir() else [path]
    return max(1, sum(p.stat().st_size for p in files) >> 20)


def _tokenise(
    corpus: Path, tokenizer: Any, stream: Path, dtype: np.dtype, spelled: NDArray[np.int64], progress: Progress
) -> dict[str, int]:
    """Write every document's tokens and EOS to a file, and return the counts (see `written_bytes` for the last two)."""
    documents = tokens = seen = text_spelled = 0
    with stream.open("wb") as file:
        parts = (piece for document in read_documents(corpus) for piece in pieces(tokenizer, document))
        for batch in batches(parts, lambda piece: len(piece.text)):
            for ids, piece in zip(encode_texts(tokenizer, [piece.text for piece in batch]), batch, strict=True):
                part = np.asarray([*ids, tokenizer.eos_token_id] if piece.last else ids, dtype)
                part.tofile(file)
                tokens += len(part)
                documents += piece.last
                text_spelled += int(spelled[part].sum())
                seen += piece.bytes
            progress.log(min(seen >> 20, progress.total - 1))
    progress.log(progress.total)
    return {"documents": documents, "tokens": tokens, "text_bytes": seen, "text_spelled": text_spelled}


def _save(stream: Path, target: Path, dtype: np.dtype, length: int) -> None:
    """Turn the first `length` tokens into a .npy file, without mapping either file into memory."""
    os.truncate(stream, length * dtype.itemsize)
    with stream.open("rb") as source, target.open("wb") as result:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(result, header)
        shutil.copyfileobj(source, result, 1 << 20)
    stream.unlink()
