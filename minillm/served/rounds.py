"""A served teacher of rollouts: it tells log p of the student's own tokens, once a round (`on_policy`)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minillm.config import ServedTeacher
from minillm.models.batches import Batch
from minillm.models.output_head import OutputHead
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.objectives.agreement import entropies
from minillm.served.chat import RemoteModel
from minillm.served.scoring import Given, Scorer
from minillm.store.manifest import read_manifest
from minillm.training.round_teacher import Scored, SilentTeacher


class ServedRounds(SilentTeacher):
    """A teacher behind an endpoint, asked for the rollouts of each round."""

    def __init__(self, checked: Path, store: str, shared: SharedTokenizer) -> None:
        """Take how it is asked from the manifest, since it is no part of what a training depends on.

        Args:
            checked: Artifact of the stage `served_teacher`.
            store: Folder of the store, which keeps the answers.
            shared: The tokenizer, which is the teacher's too.
        """
        endpoint = ServedTeacher.model_validate(read_manifest(checked).settings["endpoint"])
        self.scorer = Scorer(RemoteModel(endpoint, store), shared, by_ids=True)
        self.texts: dict[int, Given] = {}

    def expect(self, prompts: Sequence[list[int]], responses: Sequence[list[int]], rows: Sequence[int]) -> None:
        """Ask for the log-probabilities of some rows of a round."""
        self.texts = {
            row: Given(
                tokens=[*prompts[row], *responses[row]],
                scored=range(len(prompts[row]), len(prompts[row]) + len(responses[row])),
                k=1,
                name=f"rollout {row} of the round",
            )
            for row in rows
        }
        self.scorer.ask(list(self.texts.values()), lambda done: None)

    def score(self, batch: Batch, rows: Sequence[int]) -> Scored:
        """Return what was told of some rows; the student alone is measured for the log."""
        places = self.scorer.read([self.texts[row] for row in rows])
        log_prob = torch.tensor([place.own for found in places for place in found], device=batch.response.device)
        return Scored(log_prob, (), 1, lambda chosen: _entropy)


def _entropy(hidden: Tensor, head: OutputHead) -> Tensor:
    return entropies(hidden, head)[:, None]
