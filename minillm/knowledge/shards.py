"""Writing of a store, shard after shard, whichever way its teacher tells what is kept.

A shard that is whole is never computed again. Each process writes shards of its own, so they need no message.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from minillm.config import Form
from minillm.durable import move, sync
from minillm.files import write_json
from minillm.knowledge.forms import Kept
from minillm.knowledge.store import (
    ENTRY_ENDS,
    HEAD,
    INDEX,
    TOKEN_ENDS,
    Identity,
    Index,
    learnt_tokens,
    shard_path,
    shard_starts,
)
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.stages.base import Job, Summary
from minillm.worker.processes import rank, world_size
from minillm.worker.progress import Progress

SHARD_BYTES = 1 << 27
"""Most bytes of a shard, about: so much is in memory at once, and is computed again after a kill."""
SHARD_TOKENS = 1 << 16
"""Most tokens of a shard, so that several processes have shards of small forms too."""


class Teller(Protocol):
    """A teacher that tells what is kept of the training rows."""

    @property
    def form(self) -> Form:
        """What is kept at a token."""
        ...

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token takes, about."""
        ...

    @property
    def soft_cap(self) -> float | None:
        """Soft cap of the teacher's logits (Gemma 2)."""
        ...

    @property
    def head(self) -> Mapping[str, Tensor | None]:
        """Weight and bias of the teacher's output head, where hidden states are kept; else empty."""
        ...

    def keep(self, rows: range) -> Mapping[int, Kept]:
        """Return what is kept of some consecutive rows, by their numbers."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Return the context of all calls of `keep`; processes may make different numbers of them."""
        ...


def write_store(job: Job[Any], rows: pd.DataFrame, shared: SharedTokenizer, teller: Teller) -> Summary:
    """Write the shards that are missing, then the index."""
    tokens = learnt_tokens(rows)
    starts = shard_starts(tokens, max(1, min(SHARD_TOKENS, SHARD_BYTES // teller.bytes_per_token)))
    progress = Progress(job.output, len(rows), "rows")
    with teller.together():
        for number in range(rank(), len(starts) - 1, world_size()):
            if not shard_path(job.output, number).exists():
                part = range(starts[number], starts[number + 1])
                _save(_joined(part, teller.keep(part)), job, shard_path(job.output, number))
            progress.log(min(starts[number + 1] * world_size(), len(rows)))
    if rank() == 0 and teller.head:
        _save(teller.head, job, job.output / HEAD)
    dist.barrier()
    if rank() == 0:
        index = Index(
            form=teller.form,
            identity=Identity.of(shared.tokenizer, job.inputs["model"], rows),
            vocabulary=shared.entries,
            soft_cap=teller.soft_cap,
            starts=starts,
        )
        write_json(job.output / INDEX, index.model_dump(mode="json"))
    written = sum(path.stat().st_size for path in job.output.glob("shard-*"))
    return {"rows": len(rows), "tokens": sum(tokens), "bytes_per_token": written / sum(tokens)}


def _joined(rows: range, kept: Mapping[int, Kept]) -> dict[str, Tensor]:
    """Return the tensors of a shard."""
    joined = {name: torch.cat([kept[row][name] for row in rows]) for name in kept[rows.start]}
    for ends, name in ((TOKEN_ENDS, "token_log_prob"), (TOKEN_ENDS, "hidden"), (ENTRY_ENDS, "entries")):
        if name in joined:
            joined[ends] = torch.tensor([len(kept[row][name]) for row in rows]).cumsum(dim=0)
    return joined


def _save(tensors: Mapping[str, Tensor | None], job: Job[Any], path: Path) -> None:
    """Write a file that is there only once it is whole, and on disk."""
    unfinished = job.work / path.name
    save_file({name: of.detach().cpu().contiguous() for name, of in tensors.items() if of is not None}, unfinished)
    sync(unfinished)
    move(unfinished, path)
