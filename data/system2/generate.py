"""Write the embedded questions of System 2 distillation: last letters of words, and coins that are flipped.

    python data/system2/generate.py [--out DIR]

The output is the same, byte for byte, on every run (see README.md).
"""

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

SEED = 20240708
NAMES = [
    "Abel", "Alba", "Bruno", "Cleo", "Conrad", "Edith", "Emil", "Felix", "Floyd", "Igor", "Iris", "Jacob", "Jade",
    "Kurt", "Leif", "Lynn", "Magda", "Milo", "Noah", "Otto", "Petra", "Sven", "Ulf", "Vera", "Walt",
]  # fmt: skip
SHORT, LONG = (1, 2), (3, 4)  # names in a question; one with many takes steps
STEP_BY_STEP = "\nThink step by step, then write: The answer is"  # as the prompt `chain_of_thought` ends
WORKED, AT_ONCE, UNLABELLED, TEST = 2000, 200, 2000, 200  # rows of each kind
SHARES = {"test": 0.2, "unlabelled": 0.4, "lessons": 0.4}  # of the questions, by their text

Solved = tuple[str, str, str]
"""Question, solution step by step, answer."""


def last_letters(rng: random.Random, count: int) -> Solved:
    """Return a question about the last letters of names."""
    names = rng.sample(NAMES, count)
    steps = " ".join(f"{name} ends in {name[-1]}." for name in names)
    return f"Join the last letters of {' '.join(names)}.", steps, "".join(name[-1] for name in names)


def coin_flip(rng: random.Random, count: int) -> Solved:
    """Return a question about a coin that people flip or leave alone."""
    heads, told, steps = True, [], []
    for name in rng.sample(NAMES, count):
        flips = rng.random() < 0.5
        heads ^= flips
        told.append(f"{name} {'flips it' if flips else 'leaves it'}.")
        steps.append(f"{name}: {'heads' if heads else 'tails'}.")
    return f"A coin is heads up. {' '.join(told)} Is it heads up?", " ".join(steps), "yes" if heads else "no"


KINDS: dict[str, Callable[[random.Random, int], Solved]] = {"last_letters": last_letters, "coin_flip": coin_flip}


def split_of(question: str) -> str:
    """Return the file that a question may be in, which depends on its text alone."""
    return random.Random(f"{SEED}:{question}").choices(list(SHARES), list(SHARES.values()))[0]


def questions(kind: str, split: str, names: tuple[int, int]) -> Iterator[Solved]:
    """Yield different questions of a split, without end; each number of names is as frequent as the others."""
    rng, seen = random.Random(f"{SEED}:{kind}:{split}:{names}"), set()
    while True:
        solved = KINDS[kind](rng, rng.randint(*names))
        if solved[0] not in seen and split_of(solved[0]) == split:
            seen.add(solved[0])
            yield solved


def lessons(kind: str) -> list[dict[str, str]]:
    """Return long questions solved step by step, and short ones answered at once."""
    worked, short = questions(kind, "lessons", LONG), questions(kind, "lessons", SHORT)
    rows = []
    for question, steps, answer in itertools.islice(worked, WORKED):
        rows.append((question + STEP_BY_STEP, f"{steps} The answer is {answer}."))
    rows += [(question, answer) for question, _, answer in itertools.islice(short, AT_ONCE)]
    return [{"instruction": instruction, "response": response, "category": kind} for instruction, response in rows]


def write_questions(out: Path) -> None:
    """Write all files into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    files = {"lessons": [row for kind in KINDS for row in lessons(kind)]}
    for kind in KINDS:
        drawn = itertools.islice(questions(kind, "unlabelled", LONG), UNLABELLED)
        files[f"{kind}_unlabelled"] = [{"question": question} for question, *_ in drawn]
        drawn = itertools.islice(questions(kind, "test", LONG), TEST)
        files[f"{kind}_test"] = [{"question": question, "answer": answer} for question, _, answer in drawn]
    for name, rows in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description="Write the embedded questions of System 2 distillation.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    write_questions(parser.parse_args().out)


if __name__ == "__main__":
    main()
