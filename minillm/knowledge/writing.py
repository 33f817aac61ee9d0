"""Stage `knowledge`: the teacher's one pass over the training text."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from minillm.config import Form
from minillm.data.learnt_turns import learnt_ranges
from minillm.errors import StageError
from minillm.knowledge.forms import PER_ENTRY, Kept, bytes_per_token, keep
from minillm.knowledge.shards import write_store
from minillm.knowledge.store import learnt_tokens, training_rows
from minillm.models.batches import Limit, groups, lengths_of, make_batch
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.output_head import output_head, response_hidden
from minillm.models.passes import in_step
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.training import StoreKnowledge
from minillm.streams import Purpose, generator, stream
from minillm.worker.processes import device, process_group


@process_group()
def run(job: Job[StoreKnowledge]) -> Summary:
    """Write the shards that are missing, then the index."""
    rows, shared = training_rows(job.inputs), load_shared_tokenizer(job.inputs["tokenizer"])
    return write_store(job, rows, shared, TeacherPass(job, rows, shared.entries))


class TeacherPass:
    """The teacher's weights, and the rows that they run over."""

    def __init__(self, job: Job[StoreKnowledge], rows: pd.DataFrame, vocabulary: int) -> None:
        self.settings, self.rows, self.limit = job.settings, rows, Limit.of(job.runtime)
        self.teacher = load_frozen(job.inputs["model"], dtype_of(job.settings.precision), job.runtime)
        self.output_head = output_head(self.teacher, vocabulary)
        self.form: Form = job.settings.form
        self.soft_cap = self.output_head.soft_cap
        self.bytes_per_token = bytes_per_token(job.settings, vocabulary, self.output_head.weight.shape[1])
        self.head: Mapping[str, Tensor | None] = {}
        if self.form == "hidden":
            self.head = {"weight": self.output_head.weight[:vocabulary], "bias": self.output_head.bias}

    def keep(self, rows: range) -> dict[int, Kept]:
        """Return what is kept of some consecutive rows, by their numbers."""
        part = self.rows.iloc[rows.start : rows.stop]
        lengths = dict(zip(rows, lengths_of(part["prompt_ids"], part["response_ids"]), strict=True))
        kept: dict[int, Kept] = {}
        for group in groups(sorted(rows, key=lambda row: sum(lengths[row])), lengths, self.limit, 1):
            kept |= zip(group, self._keep(group), strict=True)
        return kept

    def together(self) -> AbstractContextManager[None]:
        """Let the processes pass through the teacher together, if its weights are shared out."""
        return in_step(self.teacher)

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
        kept = keep(self.settings, hidden, self.output_head, tokens, self._uniform(group, sizes))
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
