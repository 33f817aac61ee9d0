"""Stage `asked_knowledge`: a served teacher's likeliest tokens of the training text, kept as by stage `knowledge`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pandas as pd
import torch
from torch import Tensor

from minillm.config import Form, Top
from minillm.data.learnt_turns import learnt_ranges
from minillm.endpoints.asking import stop_when_asked
from minillm.knowledge.forms import Kept, entry_type, top_bytes
from minillm.knowledge.shards import write_store
from minillm.knowledge.store import training_rows
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.served.chat import RemoteModel
from minillm.served.scoring import Given, Place, Scorer
from minillm.stages.base import Job, Summary
from minillm.stages.served import AskKnowledge
from minillm.worker.processes import process_group
from minillm.worker.progress import Progress


@process_group()
def run(job: Job[AskKnowledge]) -> Summary:
    """Ask for all rows that the store lacks, then write the shards that are missing, and the index.

    Raises:
        StageError: It would cost more than the budget, the endpoint denies access, or a row is not told of as asked.
    """
    stop_when_asked()
    rows, shared = training_rows(job.inputs), load_shared_tokenizer(job.inputs["tokenizer"])
    source = ToldTeacher(job, rows, shared)
    written = write_store(job, rows, shared, source)
    if source.unknown:
        print(f"{source.unknown:,} told strings stand for several tokens, and count among all others", flush=True)
    return {
        **written,
        "unknown_entries": source.unknown,
        **({"entries_per_token": source.entries / source.tokens} if source.tokens else {}),
        **source.teacher.bill.figures(job.settings.endpoint.prices),
    }


class ToldTeacher:
    """A served teacher, and what it has told of the training rows."""

    def __init__(self, job: Job[AskKnowledge], rows: pd.DataFrame, shared: SharedTokenizer) -> None:
        self.form: Form = "top"
        self.soft_cap, self.head = None, dict[str, Tensor | None]()
        self.k, self.vocabulary = Top(k=job.settings.k).entries(shared.entries), shared.entries
        self.bytes_per_token = top_bytes(self.k, self.vocabulary)
        self.teacher = RemoteModel(job.settings.endpoint, job.runtime.store)
        self.scorer = Scorer(self.teacher, shared)
        self.texts = [
            Given(
                tokens=[*prompt, *response],
                scored=[len(prompt) + place for start, end in learnt_ranges(turns) for place in range(start, end)],
                k=self.k,
                name=f"training row {row}",
            )
            for prompt, response, turns, row in zip(
                rows["prompt_ids"], rows["response_ids"], rows["turns"], rows["row"], strict=True
            )
        ]
        self.scorer.ask(self.texts, Progress(job.output, len(rows), "rows").log)
        self.unknown, self.entries, self.tokens = 0, 0, 0  # of the shards that this attempt writes

    def together(self) -> AbstractContextManager[None]:
        """Return a context that does nothing, as no process waits for another."""
        return nullcontext()

    def keep(self, rows: range) -> dict[int, Kept]:
        """Return what is kept of some consecutive rows, by their numbers."""
        found = self.scorer.read(self.texts[rows.start : rows.stop])
        return {row: self._keep(self.texts[row], places) for row, places in zip(rows, found, strict=True)}

    def _keep(self, text: Given, places: Sequence[Place]) -> Kept:
        """Keep what is told of the learnt tokens of a row."""
        own = [int(text.tokens[place]) for place in text.scored]
        entries = [self._entries(token, of) for token, of in zip(own, places, strict=True)]
        counts = torch.tensor([len(of) for of in entries])
        self.entries, self.tokens = self.entries + int(counts.sum()), self.tokens + len(own)
        log_probs = torch.tensor([log_prob for of in entries for log_prob in of.values()], dtype=torch.float32)
        tail = torch.stack([1 - part.exp().sum() for part in log_probs.split(counts.tolist())]).clamp(min=0)
        return {
            "counts": counts.int(),
            "entries": torch.tensor([token for of in entries for token in of]).to(entry_type(self.vocabulary)),
            "log_probs": log_probs.clamp(min=torch.finfo(torch.float16).min).half(),
            "tail": tail.masked_fill(counts == self.vocabulary, 0),
            "token_log_prob": torch.tensor([of.own for of in places], dtype=torch.float32),
        }

    def _entries(self, own: int, place: Place) -> dict[int, float]:
        """Return the likeliest tokens that are known, the likeliest first, with their log-probabilities."""
        named = [(self.scorer.spelling.token(told), log_prob) for told, log_prob in place.likeliest]
        self.unknown += sum(token is None for token, _ in named)
        known = {token: log_prob for token, log_prob in named if token is not None and token < self.vocabulary}
        known[own] = place.own  # a string may stand for several tokens, but the text's own is known
        likeliest = sorted(known.items(), key=lambda entry: -entry[1])[: self.k]
        return dict(likeliest)
