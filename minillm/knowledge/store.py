"""The store of a teacher's knowledge on disk, and its reader, which refuses a store of anything else."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minillm.config import Form, Strict
from minillm.data.learnt_turns import learnt_ranges
from minillm.data.sources import fingerprint
from minillm.errors import StageError
from minillm.files import read_json
from minillm.knowledge.forms import PER_ENTRY, Kept, recall
from minillm.models.output_head import OutputHead
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.terms import Teacher
from minillm.store.manifest import text_digest

INDEX = "index.json"
HEAD = "head.safetensors"
TOKEN_ENDS, ENTRY_ENDS = "token_ends", "entry_ends"
"""Tensors (rows,) of a shard: places behind the last token, and behind the last entry, of each of its rows."""


class Identity(Strict):
    """Digests of what a store's contents follow from, and the number of its rows."""

    tokenizer: str
    teacher: str
    rows: int
    text: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, teacher: Path, rows: pd.DataFrame) -> "Identity":
        """Take the digests of a vocabulary, of a model's files, and of the tokens of rows and which are learnt."""
        text = hashlib.sha256()
        for prompt, response, turns in zip(rows["prompt_ids"], rows["response_ids"], rows["turns"], strict=True):
            for values in (prompt, response, np.ravel(learnt_ranges(turns))):
                text.update(np.asarray([len(values), *values], np.int64).tobytes())
        vocabulary = text_digest(tokenizer.get_vocab())
        return cls(tokenizer=vocabulary, teacher=fingerprint(teacher), rows=len(rows), text=text.hexdigest())


class Index(Strict):
    """Contents of `index.json`, which is written last."""

    form: Form
    identity: Identity
    vocabulary: int
    """V, entries of the tokenizer."""
    soft_cap: float | None
    """Soft cap of the teacher's logits (Gemma 2)."""
    starts: tuple[int, ...]
    """First row of each shard, and the number of all rows."""


def shard_path(folder: Path, number: int) -> Path:
    """Path of a shard, counted from 0."""
    return folder / f"shard-{number:05d}.safetensors"


def training_rows(inputs: Mapping[str, Path]) -> pd.DataFrame:
    """Read the rows to train on: the teacher's responses where they are among a stage's inputs, else the data's own."""
    if "responses" in inputs:
        return pd.read_parquet(inputs["responses"] / "responses.parquet")
    return pd.read_parquet(inputs["examples"] / "train.parquet")


def learnt_tokens(rows: pd.DataFrame) -> list[int]:
    """Count the learnt tokens of each row."""
    return [sum(end - start for start, end in learnt_ranges(turns)) for turns in rows["turns"]]


class KnowledgeStore:
    """Reader of a store. Shards are mapped into memory, and only the rows asked for are read."""

    def __init__(self, folder: Path, form: Form, found: Identity | None) -> None:
        """Open a store for a training.

        Args:
            folder: An artifact of the stage `knowledge`.
            form: What the training reads.
            found: What the training has; None where another process compares it.

        Raises:
            StageError: The store is of another form, tokenizer, teacher or text, or ends before the training's rows do.
        """
        self.folder, self.index = folder, Index.model_validate(read_json(folder / INDEX))
        self._shard, self._head = functools.cache(self._open), functools.cache(self._load_head)
        if self.index.form != form:
            raise StageError(f"{folder}: holds the form {self.index.form}, but the method has teacher: {form}")
        if found is not None:
            self._require(found)

    def _require(self, found: Identity) -> None:
        stored = self.index.identity
        if stored.rows < found.rows:
            raise StageError(
                f"{self.folder}: the teacher's knowledge ends after {stored.rows} of the {found.rows} training rows; "
                "store it again for these rows"
            )
        for name, what in (("tokenizer", "tokenizer"), ("teacher", "teacher"), ("text", "training text")):
            if getattr(stored, name) != getattr(found, name):
                raise StageError(
                    f"{self.folder}: the knowledge is of another {what} (digest {getattr(stored, name)[:23]}) than the "
                    f"training's ({getattr(found, name)[:23]}); store it again, or train with teacher: live"
                )

    def of(self, rows: Sequence[int], device: torch.device) -> Teacher | SparseTeacher:
        """Return the teacher at the learnt tokens of some rows, row after row."""
        read = [self._read(row) for row in rows]
        kept = {name: torch.cat([of[name] for of in read]).to(device) for name in read[0]}
        if self.index.form == "hidden":
            return Teacher(kept["hidden"], self._head(device))
        return recall(kept)

    def _read(self, row: int) -> Kept:
        """Read one row's tensors."""
        number = int(np.searchsorted(self.index.starts, row, side="right")) - 1
        shard, ends = self._shard(number)
        place = row - self.index.starts[number]
        found = {}
        for name in set(shard.keys()) - set(ends):
            of_entries = ENTRY_ENDS if name in PER_ENTRY else TOKEN_ENDS
            first, behind = (int(ends[of_entries][at]) for at in (place, place + 1))
            found[name] = shard.get_slice(name)[first:behind]
        return found

    def _open(self, number: int) -> tuple[Any, dict[str, Tensor]]:
        """Open a shard; return it with the ends of its rows, each behind a zero."""
        shard = safe_open(shard_path(self.folder, number), framework="pt")
        names = [name for name in (TOKEN_ENDS, ENTRY_ENDS) if name in shard.keys()]  # noqa: SIM118  (no mapping)
        return shard, {name: torch.nn.functional.pad(shard.get_tensor(name), (1, 0)) for name in names}

    def _load_head(self, device: torch.device) -> OutputHead:
        saved = {name: values.to(device) for name, values in load_file(self.folder / HEAD).items()}
        return OutputHead(saved["weight"], saved.get("bias"), self.index.vocabulary, self.index.soft_cap)


def shard_starts(tokens: Sequence[int], most: int) -> tuple[int, ...]:
    """Divide rows into shards of at most so many tokens, or of one row; return the first row of each, and their end."""
    starts, within = [0], 0
    for row, count in enumerate(tokens):
        if within and within + count > most:
            starts.append(row)
            within = 0
        within += count
    return (*starts, len(tokens))
