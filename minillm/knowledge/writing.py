"""Stage `knowledge`: the teacher's one pass over the training text, shard after shard.

A shard that is whole is never computed again. Each process writes shards of its own, so they need no message.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from minillm.data.learnt_turns import learnt_ranges
from minillm.durable import move, sync
from minillm.errors import StageError
from minillm.files import write_json
from minillm.knowledge.forms import PER_ENTRY, Kept, bytes_per_token, keep
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
    training_rows,
)
from minillm.models.batches import Limit, groups, lengths_of, make_batch
from minillm.models.causal_lm import DTYPES, load_model
from minillm.models.output_head import output_head, response_hidden
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.training import StoreKnowledge
from minillm.streams import Purpose, generator, stream
from minillm.worker.processes import device, process_group, rank, world_size
from minillm.worker.progress import Progress

SHARD_BYTES = 1 << 27
"""Most bytes of a shard, about: so much is in memory at once, and is computed again after a kill."""
SHARD_TOKENS = 1 << 16
"""Most tokens of a shard, so that several processes have shards of small forms too."""


@process_group()
def run(job: Job[StoreKnowledge]) -> Summary:
    """Write the shards that are missing, then the index."""
    rows, shared = training_rows(job.inputs), load_shared_tokenizer(job.inputs["tokenizer"])
    writer = Writer(job, rows, shared.entries)
    tokens = learnt_tokens(rows)
    each = bytes_per_token(job.settings, shared.entries, writer.head.weight.shape[1])
    starts = shard_starts(tokens, max(1, min(SHARD_TOKENS, SHARD_BYTES // each)))
    progress = Progress(job.output, len(rows), "rows")
    for number in range(rank(), len(starts) - 1, world_size()):
        if not shard_path(job.output, number).exists():
            writer.write(number, range(starts[number], starts[number + 1]))
        progress.log(min(starts[number + 1] * world_size(), len(rows)))
    if rank() == 0 and job.settings.form == "hidden":
        _save({"weight": writer.head.weight[: shared.entries], "bias": writer.head.bias}, job, job.output / HEAD)
    dist.barrier()
    if rank() == 0:
        index = Index(
            form=job.settings.form,
            identity=Identity.of(shared.tokenizer, job.inputs["model"], rows),
            vocabulary=shared.entries,
            soft_cap=writer.head.soft_cap,
            starts=starts,
        )
        write_json(job.output / INDEX, index.model_dump(mode="json"))
    written = sum(path.stat().st_size for path in job.output.glob("shard-*"))
    return {"rows": len(rows), "tokens": sum(tokens), "bytes_per_token": written / sum(tokens)}


class Writer:
    """The teacher, the rows, and where their shards go."""

    def __init__(self, job: Job[StoreKnowledge], rows: pd.DataFrame, vocabulary: int) -> None:
        self.job, self.settings, self.rows = job, job.settings, rows
        teacher = load_model(job.inputs["model"], DTYPES[job.settings.precision])
        self.teacher = teacher.to(device()).eval().requires_grad_(False)  # type: ignore[arg-type]
        self.head = output_head(self.teacher, vocabulary)

    def write(self, number: int, rows: range) -> None:
        """Write the shard of some consecutive rows."""
        part = self.rows.iloc[rows.start : rows.stop]
        lengths = dict(zip(rows, lengths_of(part["prompt_ids"], part["response_ids"]), strict=True))
        kept: dict[int, Kept] = {}
        for group in groups(sorted(rows, key=lambda row: sum(lengths[row])), lengths, Limit.of(self.job.runtime), 1):
            kept |= zip(group, self._keep(group), strict=True)
        joined = {name: torch.cat([kept[row][name] for row in rows]) for name in kept[rows.start]}
        for ends, name in ((TOKEN_ENDS, "token_log_prob"), (TOKEN_ENDS, "hidden"), (ENTRY_ENDS, "entries")):
            if name in joined:
                joined[ends] = torch.tensor([len(kept[row][name]) for row in rows]).cumsum(dim=0)
        _save(joined, self.job, shard_path(self.job.output, number))

    @torch.no_grad()
    def _keep(self, group: Sequence[int]) -> list[Kept]:
        """Run the teacher over a micro-batch; return what is kept of each row."""
        part = self.rows.iloc[list(group)]
        learnt = part["turns"].map(learnt_ranges).tolist()
        batch = make_batch(part["prompt_ids"].tolist(), part["response_ids"].tolist(), learnt).to(device())
        hidden = response_hidden(self.teacher, batch)  # (N, H)
        if not hidden.isfinite().all():
            raise StageError(
                f"the teacher's hidden states are not finite on training rows {part['row'].tolist()}; set "
                "teacher.knowledge.precision: float32, or look at its weights"
            )
        tokens, sizes = batch.response[batch.response_mask], learnt_tokens(part)
        kept = keep(self.settings, hidden, self.head, tokens, self._uniform(group, sizes))
        entries = [int(of.sum()) for of in kept["counts"].split(sizes)] if "counts" in kept else []
        split = {name: of.split(entries if name in PER_ENTRY else sizes) for name, of in kept.items()}
        return [{name: of[place] for name, of in split.items()} for place in range(len(group))]

    def _uniform(self, group: Sequence[int], sizes: Sequence[int]) -> torch.Tensor | None:
        """Numbers (N, draws) of each row's own stream: they depend on neither micro-batches nor processes."""
        sampled, seed = self.settings.sampled, self.settings.seed
        if sampled is None or seed is None:
            return None
        streams = [generator(stream(Purpose.KNOWLEDGE, seed, row)) for row in group]
        of_rows = [each.random((size, sampled.draws)) for each, size in zip(streams, sizes, strict=True)]
        return torch.from_numpy(np.concatenate(of_rows)).to(device())


def _save(tensors: Mapping[str, torch.Tensor | None], job: Job[StoreKnowledge], path: Path) -> None:
    """Write a file that is there only once it is whole, and on disk."""
    unfinished = job.work / path.name
    save_file({name: of.detach().cpu().contiguous() for name, of in tensors.items() if of is not None}, unfinished)
    sync(unfinished)
    move(unfinished, path)
