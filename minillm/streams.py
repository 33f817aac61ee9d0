"""Random streams by name: the purpose, the seed, and numbers that tell apart the streams of one purpose.

No two purposes share a stream, nor do two names of one purpose. A name goes to numpy as the spawn key of a seed
sequence: as a bare seed, (s, i) and (s, i, 0) would be the same stream, because numpy drops trailing zeros.
"""

from enum import IntEnum

import numpy as np

Name = tuple[int, ...]
"""The seed, then the numbers that tell streams of one purpose apart, then the purpose."""


class Purpose(IntEnum):
    """Uses of random numbers. A value is never zero, and never changed: results would move."""

    SPLIT = 1
    """Choice of the held-out rows. (seed)"""
    INITIAL_WEIGHTS = 2
    """Weights of a model trained from scratch. (seed)"""
    ADAPTERS = 3
    """Initial weights of low-rank adapters. (seed)"""
    DROPOUT = 4
    """Dropout in training. (seed, process)"""
    EXAMPLES = 5
    """Order of the training examples. (seed, epoch)"""
    PLAIN_TEXT = 6
    """Order of the plain-text blocks. (seed, epoch)"""
    COINS = 7
    """Choice between teacher and student for each token of a round's responses. (seed, round)"""
    ROLLOUTS = 8
    """Tokens of a rollout. (seed, round, response)"""
    MINI_BATCHES = 9
    """Assignment of a round's rollouts to mini-batches. (seed, round)"""
    INNER_EPOCHS = 10
    """Order of a round's mini-batches. (seed, round, epoch)"""
    TEACHER_RESPONSES = 11
    """Tokens of the teacher's response to a training prompt. (seed, row), or (seed, row, n) to the prompt of the n-th
    answer before the last of a conversation"""
    VALIDATION_PROMPTS = 12
    """Choice of the rows that models are validated on during training. (0)"""
    VALIDATION_RESPONSES = 13
    """Tokens of a validation response. (0, row), or (0, row, n) as above"""
    ANSWERS = 14
    """Tokens of an answer to a benchmark prompt, also when its cost is measured. (seed, benchmark, prompt)"""
    SPEED = 15
    """Tokens of the responses that a plan times. (0, number)"""
    SIGN_FLIPS = 16
    """Prompts whose difference changes its sign in a sign-flip test. (0)"""
    JUDGED = 17
    """Choice of the prompts that a judge is asked about. (0)"""
    ANNOTATED = 18
    """Choice and order of the prompts whose answers people compare. (seed)"""
    CALIBRATION_NOISE = 19
    """Chance gaps in a reliability diagram. (0)"""
    TRIED_WEIGHTS = 20
    """Weights of the small model that an architecture is tried on. (seed)"""
    TRIED_ROWS = 21
    """Tokens of the rows that this model is tried with. (0, length)"""
    TRIED_RESPONSES = 22
    """Tokens that this model draws. (0, row)"""
    TRIED_COINS = 23
    """Choice of the model that draws each token of the trial's mixed rollouts. (0)"""
    PLANNED_BATCHES = 24
    """Mini-batches that a plan takes the mean of. (0)"""
    COMPARED_TOKENS = 25
    """Choice of the tokens of a round at which student and teacher are compared for the log. (seed, round)"""
    CHAT = 26
    """Tokens of an answer to a person's message. (seed, number)"""
    ROUND_SOURCE = 27
    """Choice of where a round's responses come from. (seed, round)"""
    REPLAY = 28
    """Choice of the kept rollouts that a round takes. (seed, round)"""
    STUDENT_RESPONSES = 29
    """Tokens of the initial student's response to a training prompt, as of the teacher's"""
    KNOWLEDGE = 30
    """Entries of the vocabulary drawn from the teacher at the tokens of a training row. (seed, place of the row)"""
    SYSTEM2 = 31
    """Tokens of a response in System 2 distillation. (seed, part, set, question, order of choices, sample, step)"""
    CORPUS = 32
    """Tokens of a sequence of a teacher's corpus. (seed, sequence)"""
    CORPUS_BEGINNINGS = 33
    """Choice of the first tokens of its sequences. (seed)"""
    REASONER = 34
    """Seed that is sent to a reasoner with the prompts of an answer. (seed, sample)"""


def stream(purpose: Purpose, seed: int, *numbers: int) -> Name:
    """Name a random stream.

    Args:
        purpose: What the numbers are for.
        seed: Seed of the run or of the evaluation, or 0 where nobody chooses one.
        numbers: Numbers that tell streams of this purpose apart, e.g. a round or a row.
    """
    return (seed, *numbers, int(purpose))


def generator(name: Name) -> np.random.Generator:
    """Return a numpy generator at the beginning of a stream."""
    seed, *key = name
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(key)))


def torch_seed(name: Name) -> int:
    """Return a stream's seed for PyTorch, which has its own generators."""
    return int(generator(name).integers(2**63))
