"""Check that an architecture computes here what its own forward pass computes, tried on a small model of its kind.

Generation, rollouts and training run a model in unusual ways: rows of unequal length in the slots of one cache, two
models that catch up with each other, padding on both sides, the head apart from the body. Each way is compared with
the plainest one: a row alone, without cache or padding.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicIndexedLayer, LinearAttentionCacheLayerMixin

from minillm.errors import StageError, error_words
from minillm.generation.cache import CachedModel
from minillm.generation.rollouts import RolloutSampler
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.batches import make_batch
from minillm.models.output_head import last_hidden, output_head, response_hidden
from minillm.preparation.small_likeness import SPREADS, layers_of_every_kind, likeness
from minillm.streams import Purpose, generator, stream

TOLERANCE = 1e-3
"""Nats by which a log-probability may differ; float32 rounding stays below a tenth of this."""
SHORTEST = 8
"""Length, in tokens, of the shortest rows that a refused architecture is tried with."""
PADDED = 10
"""Embedding rows beyond the tokenizer's entries."""
AT_ONCE = 3
"""Slots. There are more rows than slots, so later rows wait until a slot is free."""
STEPS = ((1, 3, 2), (0, 2, 1), (3, 0, 1), (2, 1, 0))
"""Tokens by which each of three rows grows, step by step."""


def require_faithful(
    name: str,
    config: PretrainedConfig,
    skeleton: PreTrainedModel,
    length: int,
    limits: str = "data.max_tokens and evaluation.max_prompt_tokens",
) -> None:
    """Check that an architecture can be generated from, distilled and trained here with rows of a given length.

    Args:
        name: Name of the model, for errors.
        config: Configuration of the model.
        skeleton: The model on the meta device.
        length: Longest row of the run, in tokens.
        limits: What would have to be lowered for shorter rows, for the error.

    Raises:
        StageError: Something differs or fails. The message names it, and the length up to which the architecture would
            serve, if there is one.
    """
    kind = f"{name} ({config.model_type})"
    try:
        kept = _kept_besides_keys(config, skeleton)
        layers = layers_of_every_kind(skeleton)
        models = [] if kept else [likeness(config, layers, seed=1, spread=spread) for spread in SPREADS]
    except Exception as error:  # an architecture's own code fails in many ways
        why = str(error) if isinstance(error, StageError) else error_words(error)
        raise StageError(
            f"{kind} cannot be tried on a small model of its kind ({why}); take a model of another architecture"
        ) from error
    if kept:
        raise StageError(
            f"{kind} cannot serve: it keeps {kept} of a row, and a row that two models write in turn needs a cache "
            "of each token's keys and values and no more; take a model of another architecture"
        )
    finding = _try_all(models, length)
    if finding is None:
        return
    serves = _longest_that_serves(models, length)
    remedy = f"it serves with rows of at most {serves} tokens: lower {limits}, or " if serves else ""
    raise StageError(
        f"{kind} cannot serve with rows of {length} tokens. Tried on small random models of its kind, {finding}; "
        f"{remedy}take a model of another architecture"
    )


def _kept_besides_keys(config: PretrainedConfig, skeleton: PreTrainedModel) -> str | None:
    """Say in words what a model's own cache keeps besides keys and values; None if that is all."""
    layers = DynamicCache(config=config).layers
    if skeleton._is_stateful or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        return "a running state (state-space, linear-attention, convolution or compressing layers)"
    if any(isinstance(layer, DynamicIndexedLayer) for layer in layers):
        return "an index of its keys (sparse attention)"
    return None


def _longest_that_serves(models: Sequence[PreTrainedModel], failing: int) -> int | None:
    """Search for the longest rows, in tokens, with which nothing differs; None if even short ones fail."""
    serves = SHORTEST
    if failing <= serves or _try_all(models, serves) is not None:
        return None
    while failing - serves > 1:
        middle = (serves + failing) // 2
        if _try_all(models, middle) is None:
            serves = middle
        else:
            failing = middle
    return serves


def _try_all(models: Sequence[PreTrainedModel], length: int) -> str | None:
    """Say what fails first with the first model that fails."""
    return next((finding for model in models if (finding := _try(model, length)) is not None), None)


@torch.no_grad()
def _try(model: PreTrainedModel, length: int) -> str | None:
    """Say which comparison fails first with rows of up to `length` tokens, and how."""
    trial = _Trial(model, length)
    steps: dict[str, Callable[[], Iterator[tuple[list[int], Tensor, Tensor]]]] = {
        "its plain forward pass": trial.plain,
        "a row without its last tokens": trial.causality,
        "its output head, taken apart from its body,": trial.head,
        "a padded batch, as training makes it,": trial.padded_batch,
        "a cache of rows that are caught up with by unequal steps": trial.catching_up,
        "generation with rows of unequal length": trial.generation,
        "mixed rollouts": trial.rollouts,
    }
    for what, compare in steps.items():
        try:
            for row, got, want in compare():
                difference = (got.double() - want.double()).abs().reshape(len(got), -1).amax(dim=1)
                wrong = torch.nonzero(~(difference <= TOLERANCE))
                if len(wrong):
                    at = int(wrong[0])
                    worst = float(difference.nan_to_num(torch.inf).max())
                    where = f"from token {len(row) - len(got) + at + 1} of a row of {len(row)} on"
                    return f"{what} differs from a plain forward pass by up to {worst:.2g} nats, {where}"
        except Exception as error:  # an architecture's own code fails in many ways
            return f"{what} fails ({error_words(error)})"
    return None


class _Trial:
    """Rows of unequal length, run through a model in each way to compare.

    Every comparison yields rows, log-probabilities (n, …) of their last n tokens, and the correct values.
    """

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        self.model = model
        rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
        self.vocabulary = rows - PADDED if rows > 2 * PADDED else rows
        random = generator(stream(Purpose.TRIED_ROWS, 0, length))
        steps = max(1, min(6, length // 3))
        sizes = [
            (max(1, length - steps), steps),
            (max(1, length // 2 - steps), steps),
            (1, max(1, steps - 1)),
            (max(1, length // 3), max(1, steps // 2)),
            (max(1, length // 4 - steps), steps),
        ]
        prompts = [[int(t) for t in random.integers(1, self.vocabulary, size=size)] for size, _ in sizes]
        self.requests = [
            Request(prompt, new, stream(Purpose.TRIED_RESPONSES, 0, row))
            for row, (prompt, (_, new)) in enumerate(zip(prompts, sizes, strict=True))
        ]
        self.responses = [[int(t) for t in random.integers(1, self.vocabulary, size=new)] for _, new in sizes]
        self.rows = [[*p, *r] for p, r in zip(prompts, self.responses, strict=True)]
        self._laws: dict[tuple[int, ...], Tensor] = {}

    def law(self, row: list[int]) -> Tensor:
        """Log p (T, V) of the next token after each token of a row, run alone."""
        if tuple(row) not in self._laws:
            self._laws[tuple(row)] = self._run(row)
        return self._laws[tuple(row)]

    def _run(self, row: list[int]) -> Tensor:
        logits = self.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
        return torch.log_softmax(logits[:, : self.vocabulary].float(), dim=-1)

    def right(self, row: list[int], response: int) -> Tensor:
        """Log p (T,) of the last T = `response` tokens of a row, run alone."""
        law = self.law(row)[-response - 1 : -1]
        return law.gather(1, torch.tensor(row[-response:])[:, None])[:, 0]

    def plain(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Run the longest row twice: it must run, give finite numbers and keep no state from the first run."""
        yield self.rows[0], self._run(self.rows[0]), self.law(self.rows[0])

    def head(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Run the head, in blocks of the vocabulary, on the body's hidden states."""
        row = self.rows[0]
        hidden = last_hidden(self.model, input_ids=torch.tensor([row]), use_cache=False)[0]
        logits = output_head(self.model, self.vocabulary).logits(hidden)
        yield row, torch.log_softmax(logits.float(), dim=-1), self.law(row)

    def causality(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Cut a row: predictions for its first tokens must not depend on later tokens, nor on their number."""
        law = self.law(self.rows[0])
        for kept in sorted({max(1, len(law) // 2), min(3, len(law))}):
            yield self.rows[0][:kept], self.law(self.rows[0][:kept]), law[:kept]

    def padded_batch(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Run a batch with prompts padded on the left and responses on the right."""
        responses = self.responses[:AT_ONCE]
        batch = make_batch([r.prompt for r in self.requests[:AT_ONCE]], responses)
        logits = output_head(self.model, self.vocabulary).logits(response_hidden(self.model, batch))
        laws = torch.log_softmax(logits.float(), dim=-1).split([len(r) for r in responses])
        for row, law in zip(self.rows[:AT_ONCE], laws, strict=True):
            yield row, law, self.law(row)[-len(law) - 1 : -1]

    def catching_up(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Let rows in one cache catch up by unequal numbers of tokens, also none; then give a row another's slot."""
        rows = self.rows[:AT_ONCE]
        width = max(map(len, rows))
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        cached = CachedModel(self.model, self.vocabulary, AT_ONCE, width)
        ends = np.array([len(row) for row in rows])
        lengths = np.maximum(ends - np.sum(STEPS, axis=0), 1)
        for step in ((0, 0, 0), *STEPS):
            lengths = np.minimum(lengths + step, ends)
            if (lengths > cached.seen).any():
                yield from self._seen(rows, *cached.run(tokens, lengths, 0, AT_ONCE), cached)
        cached.move(np.array([2]), np.array([0]))
        tokens[0], lengths[0] = tokens[2], lengths[2]
        cached.seen[:1] -= 1
        yield from self._seen(rows[2:], *cached.run(tokens, lengths, 0, 1), cached)

    def _seen(
        self, rows: list[list[int]], hidden: Tensor, columns: np.ndarray, cached: CachedModel
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Compare a cached model's predictions after the columns (rows, k) that it has just run."""
        for row, states, places in zip(rows, hidden, columns, strict=True):
            at = places[places >= 0]
            if len(at):
                law = torch.log_softmax(cached.head.logits(states[places >= 0]).float(), dim=-1)
                yield row[: at[-1] + 1], law, self.law(row)[at]

    def generation(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Generate in slots at different lengths, which go to waiting rows when theirs have ended."""
        sampler = Sampler(self.model, (0,), self.vocabulary, batch_size=AT_ONCE)
        for request, response in zip(self.requests, sampler.sample(self.requests), strict=True):
            row = [*request.prompt, *response.tokens]
            yield row, response.log_prob, self.right(row, len(response.tokens))

    def rollouts(self) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Sample mixed rollouts with the model as its own teacher: each catches up with the other's tokens."""
        sampler = RolloutSampler(self.model, self.model, (0,), self.vocabulary, 0.5, 1.0, AT_ONCE)
        for request, response in zip(
            self.requests, sampler.sample(self.requests, stream(Purpose.TRIED_COINS, 0)), strict=True
        ):
            row = [*request.prompt, *response.tokens]
            yield row, response.log_prob, self.right(row, len(response.tokens))
