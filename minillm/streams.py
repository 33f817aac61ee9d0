"""Random streams by name: what the numbers are for, the seed, and which stream of that kind.

No two purposes share a stream, and neither do two names of one purpose. Names go to numpy as the spawn key of a seed
sequence: given as a bare seed, (s, i) and (s, i, 0) would be one stream, for numpy drops trailing zeros.
"""

from enum import IntEnum

import numpy as np

Name = tuple[int, ...]
"""Seed, then which stream of its kind, and the purpose last."""


class Purpose(IntEnum):
    """What random numbers are drawn for; never zero, and never renumbered: results would move."""

    SPLIT = 1
    """Which rows are held out. (seed)"""
    INITIAL_WEIGHTS = 2
    """Weights of a model trained from scratch. (seed)"""
    ADAPTERS = 3
    """First weights of low-rank adapters. (seed)"""
    DROPOUT = 4
    """What is dropped out in training. (seed, process)"""
    EXAMPLES = 5
    """Order of the training examples. (seed, epoch)"""
    PLAIN_TEXT = 6
    """Order of the plain-text blocks. (seed, epoch)"""
    COINS = 7
    """Which model draws each token of a round's responses. (seed, round)"""
    ROLLOUTS = 8
    """Tokens of a rollout. (seed, round, response)"""
    MINI_BATCHES = 9
    """Which of a round's rollouts are in one mini-batch. (seed, round)"""
    INNER_EPOCHS = 10
    """Order of a round's mini-batches. (seed, round, epoch)"""
    TEACHER_RESPONSES = 11
    """Tokens of the teacher's response to a training prompt. (seed, row)"""
    VALIDATION_PROMPTS = 12
    """Which rows a model in training is validated on. (0)"""
    VALIDATION_RESPONSES = 13
    """Tokens of a response in validation. (0, row)"""
    ANSWERS = 14
    """Tokens of an answer to a benchmark, the same when what it costs is measured. (seed, benchmark, prompt)"""
    SPEED = 15
    """Tokens of a response that a plan is timed on. (0, number)"""
    SIGN_FLIPS = 16
    """Which prompts' differences change their sign in a test. (0)"""
    JUDGED = 17
    """Which prompts a judge is asked about. (0)"""
    ANNOTATED = 18
    """Which prompts people compare answers to, and in which order. (seed)"""
    CALIBRATION_NOISE = 19
    """How far the gaps of a reliability diagram may be off by chance. (0)"""
    TRIED_WEIGHTS = 20
    """Weights of the small model that an architecture is tried on. (seed)"""
    TRIED_ROWS = 21
    """Tokens of the rows that it is tried with. (0, length)"""
    TRIED_RESPONSES = 22
    """Tokens that it draws in that trial. (0, row)"""
    TRIED_COINS = 23
    """Which model draws each token of the trial's mixed rollouts. (0)"""


def stream(purpose: Purpose, seed: int, *numbers: int) -> Name:
    """Name a random stream.

    Args:
        purpose: What it is drawn for.
        seed: Of the run, of the evaluation, or 0 where nobody chooses one.
        numbers: Which stream of this purpose: a round, a row.
    """
    return (seed, *numbers, int(purpose))


def generator(name: Name) -> np.random.Generator:
    """The random numbers of a stream, from their beginning."""
    seed, *key = name
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(key)))


def torch_seed(name: Name) -> int:
    """A seed of a stream for PyTorch, which has generators of its own."""
    return int(generator(name).integers(2**63))
