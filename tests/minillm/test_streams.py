"""Every named random stream is its own, there is no other source of random numbers, and rollouts follow p̃."""

import itertools
import re

import pytest
import torch

from minillm.generation.slots import Request, Slots
from minillm.models.batches import Limit, make_batch, shuffled_slice
from minillm.streams import Purpose, generator, stream, torch_seed
from tests.conftest import ROOT
from tests.minillm.models_in_small import response_logits, small_model
from tests.minillm.on_policy import rollout_feed
from tests.minillm.test_sampling import EOS, VOCABULARY, assert_follows

NAMES = [
    stream(purpose, seed, *numbers)
    for purpose in Purpose
    for seed in (0, 1, 2)
    for count in range(4)
    for numbers in itertools.product((0, 1, 18), repeat=count)
]


def test_every_purpose_has_a_number_of_its_own_and_none_is_zero():
    numbers = [int(purpose) for purpose in Purpose.__members__.values()]  # aliases too
    assert len(set(numbers)) == len(numbers)
    assert 0 not in numbers


def test_no_two_names_begin_alike():
    """Names differ in purpose, seed or row, or only in trailing zeros, which numpy would drop from a seed."""
    assert len({tuple(generator(name).random(2)) for name in NAMES}) == len(NAMES)
    assert len({torch_seed(name) for name in NAMES}) == len(NAMES)


def test_a_stream_begins_again_where_it_began():
    name = stream(Purpose.ROLLOUTS, 7, 3, 0)
    assert generator(name).random(9).tolist() == generator(name).random(9).tolist()


@pytest.mark.parametrize("floor", ["minillm", "tasks", "flows"])
def test_all_random_numbers_come_from_named_streams(floor):
    maker = re.compile(r"default_rng|RandomState|SeedSequence|random\.Random|random\.seed|manual_seed\((?!torch_seed)")
    found = {
        str(path.relative_to(ROOT)) for path in (ROOT / floor).rglob("*.py") if maker.search(path.read_text("utf-8"))
    }
    assert found - {"minillm/streams.py"} == set()


def test_what_a_round_draws_shares_no_stream():
    """Coins, responses, and the orders of rows and examples draw differently for the same seed and number."""
    coins = generator(stream(Purpose.COINS, 1, 7)).random(20).tolist()
    slots = Slots(
        [Request([1], 20, stream(Purpose.ROLLOUTS, 1, 7, i)) for i in range(3)], 3, (EOS,), torch.device("cpu")
    )
    slots.admit(range(3))
    responses = slots._uniforms.tolist()
    order = generator(stream(Purpose.MINI_BATCHES, 1, 7)).random(20).tolist()
    examples, blocks = (
        generator(stream(purpose, 1, 7)).random(20).tolist() for purpose in (Purpose.EXAMPLES, Purpose.PLAIN_TEXT)
    )
    drawn = [coins, *responses, order, examples, blocks]
    assert len({value for values in drawn for value in values}) == 20 * len(drawn)


def test_examples_and_plain_text_are_shuffled_apart():
    orders = [shuffled_slice(50, purpose, 3, 0, 50) for purpose in (Purpose.EXAMPLES, Purpose.PLAIN_TEXT)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] == generator(stream(Purpose.EXAMPLES, 3, 0)).permutation(50).tolist()


def test_the_first_responses_of_a_round_follow_the_mixture():
    """Response 0 once took the round's coins for its uniform numbers."""
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    batch = make_batch([[3, 4]], [[0]])
    of_student, of_teacher = (
        torch.softmax(response_logits(model, batch, VOCABULARY)[0, 0].double().detach(), dim=-1)
        for model in (student, teacher)
    )
    law = {(token,): float(0.2 * of_teacher[token] + 0.8 * of_student[token]) for token in range(VOCABULARY)}
    policy = {"rollouts": 2, "inner_epochs": 1, "teacher_mix": 0.2}
    got = [[], []]
    with rollout_feed(student, teacher, [[3, 4]], 1, policy, batch_size=2) as feed:
        for index in range(600):
            feed.prepare(index, Limit(rows=2))
            assert feed.round is not None
            for number, response in enumerate(feed.round.responses):
                got[number].append(tuple(response))
    for responses in got:
        assert_follows(responses, law)
