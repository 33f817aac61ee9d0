"""Training on rollouts of the student mixed with its teacher: MiniLLM and its special cases (paper Algorithm 1).

GKD and DistiLLM are among them: rounds whose responses are the data's, or rollouts of earlier rounds.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from minillm.config import Method, Policy, Runtime
from minillm.data.plain_text import PlainText
from minillm.generation.rollouts import RolloutSampler, drawn_by_teacher
from minillm.generation.slots import Request, Response
from minillm.models.batches import Batch, Lengths, Limit, lengths_of, make_batch, micro_batches, shuffled_slice
from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import forward_kl, functional
from minillm.objectives.terms import TokenTerms
from minillm.objectives.vocabulary import head_loss, token_log_probs
from minillm.streams import Purpose, generator, stream
from minillm.training.engine import generating_weights
from minillm.training.feeds import Feed, Losses, Models, teacher_of
from minillm.training.fixed_text import text_losses
from minillm.training.round_source import RoundSource
from minillm.training.round_teacher import RoundTeacher, RunningTeacher
from minillm.training.rounds import Round, policy_experience, policy_loss
from minillm.worker.processes import gather_lists, rank, world_size

COMPARED_TOKENS = 1024
"""Tokens of a round at which both distributions are compared for the log; a mean entropy errs by a few hundredths."""


@dataclass
class Rollouts(Feed):
    """Responses sampled from p̃ during training, several inner epochs over each round (Algorithm 1)."""

    models: Models
    policy: Policy
    method: Method
    examples: pd.DataFrame
    plain_text: PlainText | None
    max_tokens: int
    """Longest prompt with response, tokens."""
    runtime: Runtime
    seed: int
    elsewhere: RoundTeacher | None = None
    """A teacher that does not run here, in the place of that of `models`."""
    teacher: RoundTeacher = field(init=False)
    round: Round | None = field(default=None, init=False)
    source: RoundSource = field(init=False)

    def __post_init__(self) -> None:
        steps = self.method.training.optimizer_steps(len(self.examples))
        self.teacher = self.elsewhere or self._running_teacher()
        self.source = RoundSource(self.policy, self.seed, -(-steps // self.steps_per_round))

    def _running_teacher(self) -> RoundTeacher:
        assert self.models.teacher is not None
        return RunningTeacher(self.models.teacher, self.models.vocabulary, self.policy.temperature)

    def prepare(self, step: int, limit: Limit) -> dict[str, float]:
        """Sample and score the step's round, unless it is the current one; return the metrics of a new round.

        A round that is not sampled has none.
        """
        index = step // self.steps_per_round
        if self.round is not None and self.round.index == index:
            return {}
        rollouts = self.policy.rollouts
        rows = shuffled_slice(len(self.examples), Purpose.EXAMPLES, self.seed, index * rollouts, rollouts)
        examples = self.examples.iloc[rows]
        prompts = [[int(t) for t in p] for p in examples["prompt_ids"]]
        source = self.source.choose(index)
        if source != "student":
            responses = [[int(t) for t in r] for r in examples["response_ids"]]
            if source == "replay":
                prompts, responses = map(list, zip(*self.source.replay(index), strict=True))
            self.round, _ = self._score(index, prompts, responses, limit)
            return {}
        sampled = self._sample(index, prompts)
        self.source.keep(list(zip(prompts, (of.tokens for of in sampled), strict=True)))
        self.round, compared = self._score(index, prompts, [of.tokens for of in sampled], limit)
        longest = self.round.experience.mask.shape[1]
        from_teacher = drawn_by_teacher(stream(Purpose.COINS, self.seed, index), longest, self.policy.teacher_mix)
        reference_tokens = int(examples["response_ids"].map(len).sum())
        return self.round.figures(sampled, torch.from_numpy(from_teacher), compared, reference_tokens)

    def validated(self, loss: float) -> None:
        """Let an adaptive share of the student's text follow the validation loss, nats per token."""
        self.source.validated(loss)

    def losses(self, step: int, limit: Limit) -> list[Callable[[], Losses]]:
        """Return what computes the losses of this process's micro-batches.

        Single-step and long-term terms are means per response token, L_PT is a mean per plain-text token.
        """
        assert self.round is not None
        rows, blocks = self._rows(step), self._blocks(step)
        lengths = lengths_of(self.round.prompts, self.round.responses)
        micros, mine = micro_batches(rows, lengths, limit), blocks[rank() :: world_size()]
        if limit.tokens is None:
            # Plain text is spread over the micro-batches, so that none of them needs memory for all of it.
            shares = [share.tolist() for share in np.array_split(np.array(mine, dtype=int), len(micros))]
        else:
            # A block may be as long as the longest row, so plain text has micro-batches of its own.
            apart = micro_batches(blocks, dict.fromkeys(blocks, (1, self.max_tokens - 1)), limit)
            micros, shares = [*micros, *[[]] * len(apart)], [*[[]] * len(micros), *apart]
        tokens, before_updates = sum(lengths[i][1] for i in rows), step % self.steps_per_round == 0
        return [
            functools.partial(self._micro_batch_losses, chosen, tokens, share, len(blocks), before_updates)
            for chosen, share in zip(micros, shares, strict=True)
        ]

    def _micro_batch_losses(
        self, rows: list[int], tokens: int, blocks: list[int], all_blocks: int, before_updates: bool
    ) -> Losses:
        """Return the losses of rollouts and blocks as shares of the means of the global mini-batch; one may be none."""
        losses = self._rollout_losses(rows, tokens, before_updates) if rows else {}
        if self.plain_text is not None and blocks:
            losses["plain_text"] = self._plain_text_loss(self.plain_text, blocks, all_blocks)
            weighted = self.policy.plain_text_coefficient * losses["plain_text"]
            losses["loss"] = losses["loss"] + weighted if rows else weighted
        return losses

    def _rollout_losses(self, rows: list[int], tokens: int, before_updates: bool) -> Losses:
        """Return the losses of some rows as shares of the means over the `tokens` of the global mini-batch."""
        assert self.round is not None
        sampled, models, policy, method = self.round, self.models, self.policy, self.method
        device = models.student.device
        batch = make_batch([sampled.prompts[i] for i in rows], [sampled.responses[i] for i in rows]).to(device)
        experience = sampled.experience.of(rows, device)  # (n,) each, n the real response tokens of these rows
        teacher = self.teacher.recall([sampled.teacher[i] for i in rows], device)

        def per_token(terms: TokenTerms, part: slice) -> Tensor:
            loss = policy_loss(terms, experience.part(part), policy)
            return (loss.single_step + loss.long_term) / tokens

        def losses(hidden: Tensor, head: OutputHead) -> Losses:
            divergence = functional(method.divergence, **method.parameters) if teacher is not None else None
            response = batch.response[batch.response_mask]  # (n,)
            loss, terms = head_loss(hidden, head, response, per_token, divergence, teacher, policy.temperature)
            shares = policy_loss(terms, experience, policy)  # the same arithmetic again, for the log
            change = (shares.policy_ratio - 1).abs()  # (n,)
            found = {
                "loss": loss,
                "single_step": shares.single_step.sum() / tokens,
                "long_term": shares.long_term.sum() / tokens,
                **({method.divergence: terms.divergence.sum() / tokens} if teacher is not None else {}),
                "clipped_share": (change > policy.clip_range).sum() / tokens,
                "tokens": loss.new_tensor(len(response)),
            }
            return found | ({"policy_ratio_error": change.sum() / tokens} if before_updates else {})

        return models.student(batch, losses)

    def _plain_text_loss(self, plain_text: PlainText, blocks: list[int], total: int) -> Tensor:
        texts = [plain_text.block(i).tolist() for i in blocks]
        # The first token of a block is only read: nothing stands before it that could predict it.
        batch = make_batch([t[:1] for t in texts], [t[1:] for t in texts]).to(self.models.student.device)
        kd = self.policy.plain_text_kd
        count = total * int(batch.response_mask[0].sum())  # tokens learnt of all blocks of the step, which are alike
        teacher = teacher_of(self.models, batch) if kd else None
        return text_losses(self.models, batch, count, teacher, forward_kl if kd else None, kd)["loss"]

    def _sample(self, index: int, prompts: list[list[int]]) -> list[Response]:
        """Sample a response to each prompt of the round; the processes share the work."""
        policy, models = self.policy, self.models
        requests = [
            Request(prompt, self.max_tokens - len(prompt), stream(Purpose.ROLLOUTS, self.seed, index, number))
            for number, prompt in enumerate(prompts)
        ]
        models.student.eval()
        with generating_weights(models.student, self.runtime) as student:
            sampler = RolloutSampler(
                student,
                models.teacher,
                models.ends,
                models.vocabulary,
                policy.teacher_mix,
                policy.temperature,
                self.runtime.generation_batch_size,
            )
            return gather_lists(
                sampler.sample(requests[rank() :: world_size()], stream(Purpose.COINS, self.seed, index))
            )

    @torch.no_grad()
    def _score(
        self, index: int, prompts: list[list[int]], responses: list[list[int]], limit: Limit
    ) -> tuple[Round, Tensor]:
        """Score the round with both models, in the same micro-batches as the updates, so that ρ is 1 before the first.

        In bfloat16, passes of another shape, or token by token with a cache, differ by some percent.

        Returns:
            The round, and figures that compare the models at M of its tokens, (M, F).
        """
        scores: dict[int, tuple[Tensor, ...]] = {}
        teacher_values: dict[int, tuple[Tensor, ...]] = {}
        lengths = lengths_of(prompts, responses)
        compared = self._compared(index, [len(r) for r in responses])
        self.teacher.expect(prompts, responses, self._own_rows(index, lengths))
        for rows in self._mini_batches(index):
            for chosen in micro_batches(rows, lengths, limit):
                batch = make_batch([prompts[i] for i in chosen], [responses[i] for i in chosen])
                values = self._score_batch(batch, chosen, torch.cat([compared[i] for i in chosen]))
                # Each response gets memory of its own: pickled views would each carry the whole micro-batch.
                counts = [len(responses[i]) for i in chosen]
                parts = zip(*([part.clone() for part in of.cpu().split(counts)] for of in values), strict=True)
                for row, (of_student, of_teacher, of_both, *kept) in zip(chosen, parts, strict=True):
                    scores[row], teacher_values[row] = (of_student, of_teacher, of_both), tuple(kept)
        scores = dict(gather_lists(list(scores.items())))
        student, teacher, both = zip(*(scores[i] for i in range(len(prompts))), strict=True)
        experience = policy_experience(_pad(student), _pad(teacher), responses, self.policy)
        return Round(index, prompts, responses, experience, teacher_values), torch.cat(both)[torch.cat(compared)]

    def _score_batch(self, batch: Batch, rows: Sequence[int], compared: Tensor) -> tuple[Tensor, ...]:
        """Run both models on a batch of n response tokens.

        Args:
            batch: Prompts and responses.
            rows: Their places in the round.
            compared: Tokens at which the models are compared, (n,) bool.

        Returns:
            log q (n,), log p (n,), figures where compared and else zero (n, F), and what the teacher keeps.
        """
        models, temperature = self.models, self.policy.temperature
        batch = batch.to(models.student.device)
        tokens, compared = batch.response[batch.response_mask], compared.to(batch.response.device)
        scored = self.teacher.score(batch, rows)
        compare = scored.compare(compared)

        def score(hidden: Tensor, head: OutputHead) -> Losses:
            both = torch.zeros(len(tokens), scored.figures, device=tokens.device)
            both[compared] = compare(hidden[compared], head)
            return {"log_prob": token_log_probs(hidden, head, tokens, temperature)[0], "agreement": both}

        student = models.student(batch, score)
        return student["log_prob"], scored.log_prob, student["agreement"], *scored.kept

    def _compared(self, index: int, lengths: Sequence[int]) -> tuple[Tensor, ...]:
        """Choose the tokens of a round at which the models are compared; return a mask (T,) for each response."""
        mask = torch.zeros(sum(lengths), dtype=torch.bool)
        order = generator(stream(Purpose.COMPARED_TOKENS, self.seed, index)).permutation(len(mask))
        mask[torch.from_numpy(order[:COMPARED_TOKENS])] = True
        return mask.split(list(lengths))

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps on one round of rollouts."""
        return self.policy.inner_epochs * self.policy.rollouts // self.method.training.batch_size

    def _mini_batches(self, index: int) -> list[list[int]]:
        """Return the rows of each mini-batch of a round; they are the same in all of its inner epochs."""
        order = generator(stream(Purpose.MINI_BATCHES, self.seed, index)).permutation(self.policy.rollouts)
        return order.reshape(-1, self.method.training.batch_size).tolist()  # (mini-batches, batch_size)

    def _rows(self, step: int) -> list[int]:
        """Return the rows of a step's mini-batch; each inner epoch takes the mini-batches in an order of its own."""
        index, step_in_round = divmod(step, self.steps_per_round)
        batches = self._mini_batches(index)
        epoch, place = divmod(step_in_round, len(batches))
        order = generator(stream(Purpose.INNER_EPOCHS, self.seed, index, epoch)).permutation(len(batches))
        return batches[order[place]]

    def _blocks(self, step: int) -> list[int]:
        """Return the plain-text blocks of a step; none where L_PT has no weight."""
        if self.plain_text is None or self.policy.plain_text_coefficient == 0:
            return []
        size = self.policy.plain_text_batch_size or self.method.training.batch_size
        return shuffled_slice(len(self.plain_text), Purpose.PLAIN_TEXT, self.seed, step * size, size)

    def describe(self, step: int) -> str:
        """Name the round and the rollouts of a step."""
        return f"round {step // self.steps_per_round}, rollouts {self._rows(step)}"

    def state(self) -> dict[str, Any]:
        """Return the current round, of the teacher's states this process's part; its student no longer exists."""
        if self.round is None:
            return {}
        return {
            "index": self.round.index,
            "prompts": self.round.prompts,
            "responses": self.round.responses,
            "student_log_prob": self.round.experience.student_log_prob,
            "teacher_log_prob": self.round.experience.teacher_log_prob,
            "teacher": self.round.teacher,
            "source": self.source.state(),
        }

    def restore(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore the round from the states of all processes that saved it, however many they were."""
        state = states[0]
        if not state:
            return
        self.source.restore(state["source"])
        prompts, responses = state["prompts"], state["responses"]
        experience = policy_experience(state["student_log_prob"], state["teacher_log_prob"], responses, self.policy)
        own = self._own_rows(state["index"], lengths_of(prompts, responses))
        teacher = {row: tensors for part in states for row, tensors in part["teacher"].items()}
        self.round = Round(
            state["index"],
            prompts,
            responses,
            experience,
            # Copied, since the files are memory-mapped and removed once newer checkpoints exist.
            {row: tuple(tensor.clone() for tensor in teacher[row]) for row in own},
        )

    def _own_rows(self, index: int, lengths: Lengths) -> list[int]:
        """Return the rows of a round that this process scores and updates on, whatever the micro-batches."""
        shares = (micro_batches(rows, lengths, Limit()) for rows in self._mini_batches(index))
        return [row for share in shares for chosen in share for row in chosen]


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
