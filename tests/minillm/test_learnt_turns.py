"""Several answers of a row: one pass over all of them is the sum of passes over each, however rows are batched."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from minillm.config import Method, Runtime
from minillm.data.learnt_turns import answered, prompts_of
from minillm.data.plain_text import PlainText
from minillm.models.batches import Limit, groups, make_batch, micro_batches
from minillm.models.output_head import HeadedModel
from minillm.training.feeds import Feed, Models
from minillm.training.fixed_text import FixedText
from minillm.training.on_policy import Rollouts
from tests.minillm.direct import group_of_one
from tests.minillm.jobs import make_plain_text
from tests.minillm.models_in_small import small_model
from tests.minillm.trainings import method

VOCABULARY = 101
TURNS = [[(0, 2, "a"), (5, 8, "b")], [(0, 3, "c")], [(0, 1, "d"), (1, 3, "e"), (9, 12, "f")]]
"""Answers of three rows: with text between them, alone, and one directly behind another."""
LIMITS = [Limit(rows=8), Limit(rows=1), Limit(rows=2), Limit(tokens=1), Limit(tokens=40), Limit(rows=2, tokens=40)]


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with group_of_one():
        yield


def conversations() -> pd.DataFrame:
    rows = []
    for number, turns in enumerate(TURNS):
        tokens = [10 * (number + 1) + place for place in range(turns[-1][1])]
        named = [dict(zip(("start", "end", "text"), turn, strict=True)) for turn in turns]
        rows.append((number, "talk", [1 + number] * (2 * number + 1), tokens, named))
    return pd.DataFrame(rows, columns=["row", "category", "prompt_ids", "response_ids", "turns"])


def models() -> Models:
    student, teacher = (HeadedModel(small_model("gpt2", VOCABULARY, seed).double(), VOCABULARY) for seed in (1, 2))
    student.device = torch.device("cpu")  # type: ignore[assignment]  # as an engine has it
    return Models(student, teacher.model.requires_grad_(False), VOCABULARY, (0,))


def of_size(kind: str, rows: int, **changes: Any) -> Method:
    chosen = method(kind, batch_size=rows)
    return chosen.model_copy(update=changes)


def differentiated(feed: Any, limit: Limit) -> tuple[float, list[Tensor], list[Callable[[], Any]]]:
    """Return the loss of the first step, its gradients, and its micro-batches."""
    student, total = feed.models.student, 0.0
    student.zero_grad()
    micros = feed.losses(0, limit)
    for compute in micros:
        loss = compute()["loss"]
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in student.parameters() if p.grad is not None], micros


def assert_alike(feeds: list[tuple[Feed, Limit]]) -> list[int]:
    """Check that the first steps of feeds are the same to rounding; return how many micro-batches each has."""
    found = [differentiated(*of) for of in feeds]
    for loss, gradients, _ in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-12)
        for got, want in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    return [len(micros) for _, _, micros in found]


def test_a_prompt_for_each_answer():
    found = prompts_of(conversations())
    assert found["response"].tolist() == list("abcdef")
    assert found["place"].tolist() == [(0, 1), (0,), (1,), (2, 2), (2, 1), (2,)]
    assert [list(ids) for ids in found["prompt_ids"]] == [
        [1],
        [1, 10, 11, 12, 13, 14],
        [2, 2, 2],
        [3, 3, 3, 3, 3],
        [3, 3, 3, 3, 3, 30],
        [3, 3, 3, 3, 3, *range(30, 39)],
    ]
    assert [list(ids) for ids in found["response_ids"]] == [
        [10, 11], [15, 16, 17], [20, 21, 22], [30], [31, 32], [39, 40, 41],
    ]  # fmt: skip


def test_an_answer_apart_has_its_own_prompt_and_its_place_among_the_others():
    apart = {"left": 1, "prompt_ids": [7, 7], "response_ids": [70, 71], "text": "own"}
    rows = conversations().assign(apart=[[apart], [], []])
    found = prompts_of(rows)
    assert found["response"].tolist() == ["a", "own", "b", "c", "d", "e", "f"]
    assert found["place"].tolist() == [(0, 2), (0, 1), (0,), (1,), (2, 2), (2, 1), (2,)]
    assert (found["prompt_ids"][1], found["response_ids"][1]) == ([7, 7], [70, 71])
    pd.testing.assert_frame_equal(prompts_of(rows.iloc[1:]), prompts_of(conversations().iloc[1:]))


def test_the_mask_by_hand():
    batch = make_batch([[1], [2, 2]], [[5, 6, 7, 8], [9]], [[(0, 1), (2, 4)], [(0, 1)]])
    assert batch.tokens.tolist() == [[0, 1, 5, 6, 7, 8], [2, 2, 9, 0, 0, 0]]
    assert batch.mask.int().tolist() == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert batch.response_mask.int().tolist() == [[1, 0, 1, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["sft", "kd"])
def test_one_pass_over_all_answers_is_the_sum_over_each(kind: str):
    rows, both = conversations(), models()
    prompts = prompts_of(rows)
    apart = answered(prompts, prompts["response_ids"].tolist(), prompts["response"].tolist())
    together = FixedText(both, of_size(kind, len(rows)), rows, seed=1)
    feeds: list[tuple[Feed, Limit]] = [(together, limit) for limit in LIMITS]
    counts = assert_alike([*feeds, (FixedText(both, of_size(kind, len(apart)), apart, seed=1), Limit(rows=8))])
    # Rows of 9, 6 and 17 tokens; two of them in one batch are 3 + 8 wide, three would be 5 + 12.
    assert counts == [1, 3, 2, 3, 2, 2, 1]


def test_rollouts_and_plain_text_do_not_depend_on_the_grouping(tmp_path: Path):
    chosen, both = of_size("minillm", 8), models()
    assert chosen.policy is not None
    policy = chosen.policy.model_copy(update={"rollouts": 8, "plain_text_batch_size": 4})
    text = PlainText(make_plain_text(tmp_path / "text", 16), 16)
    prompts = [[1 + number] * (1 + number % 3) for number in range(8)]
    responses = [[20 + number] * (1 + 2 * (number % 4)) for number in range(8)]
    feed = Rollouts(both, policy, chosen, pd.DataFrame({"prompt_ids": prompts}), text, 16, Runtime(), 1)
    feed.round, _ = feed._score(0, prompts, responses, Limit(rows=8))
    counts = assert_alike([(feed, limit) for limit in LIMITS])
    # By tokens, plain text has micro-batches of its own: each of 4 blocks alone, or 2 together in 40 tokens.
    assert counts[:4] == [1, 8, 4, 8 + 4]
    assert counts[4] == len(micro_batches(range(8), feed_lengths(prompts, responses), Limit(tokens=40))) + 2


def feed_lengths(prompts: list[list[int]], responses: list[list[int]]) -> list[tuple[int, int]]:
    return [(len(p), len(r)) for p, r in zip(prompts, responses, strict=True)]


def test_rows_are_divided_by_tokens_with_their_padding():
    lengths = [(2, 3), (1, 1), (4, 4), (9, 9)]
    # 2 × (2 + 3) = 10 tokens; with the third row 3 × (4 + 4); the last is longer than the limit, and alone.
    assert micro_batches(range(4), lengths, Limit(tokens=10)) == [[1, 0], [2], [3]]
    assert micro_batches(range(4), lengths, Limit(tokens=24)) == [[1, 0, 2], [3]]
    assert micro_batches(range(4), lengths, Limit(rows=2, tokens=24)) == [[1, 0], [2], [3]]
    # Padding counts: a long prompt and a long response widen every row.
    assert micro_batches(range(2), [(8, 1), (1, 8)], Limit(tokens=18)) == [[0], [1]]
    assert micro_batches(range(4), lengths, Limit(rows=3)) == [[1, 0, 2], [3]]


def test_processes_have_as_many_groups_as_each_other():
    lengths = [(1, 1), (1, 1), (1, 1), (1, 7), (1, 7)]
    found = list(groups(range(5), lengths, Limit(tokens=8), processes=2))
    # Dealt to two processes, the first group is one row each: a second would make 2 × 8 tokens on one of them.
    assert found == [[0, 1], [2, 3], [4]]
