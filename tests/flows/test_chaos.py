"""`make chaos` with only a few kills."""

from pathlib import Path

import pytest

from tests.chaos import chaos


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_weights_and_scores(tmp_path: Path):
    outcome = chaos(tmp_path, kills=2, seed=3, methods=("sft",), steps=30)
    assert sum(outcome.kills.values()) == 2
    assert outcome.different == []
    assert outcome.running == []
    assert outcome.points > 0
    assert (outcome.lost, outcome.repeated) == (0, 0)
