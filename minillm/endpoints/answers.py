"""Answers that were paid for, kept permanently: one SQLite database beside the artifacts of a store.

It outlives every stage and run. A question that is asked again, after a failure, in another process or under another
configuration, finds its answer here.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from minillm.durable import make_folder
from minillm.endpoints.budget import Bill

COLUMNS = "text, prompt_tokens, completion_tokens, model, max_tokens"


@dataclass(frozen=True)
class Answer:
    """A reply of the endpoint, well formed or not."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    """Name that the endpoint gives the model that answered; often more precise than the one asked for."""
    max_tokens: int
    """Limit of the request, in tokens."""

    @property
    def bill(self) -> Bill:
        """Cost of this answer."""
        return Bill(1, self.prompt_tokens, self.completion_tokens)


class Answers:
    """Answers of a store by the keys of their questions; threads may share it."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._asking = FileLock(folder / "asking.lock")
        self._one_at_a_time = threading.Lock()
        self._database = sqlite3.connect(folder / "answers.sqlite", timeout=60, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = EXTRA")  # paid answers survive a power cut too
        with self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (question TEXT NOT NULL, text TEXT NOT NULL, "
                "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, model TEXT NOT NULL, "
                "max_tokens INTEGER NOT NULL)"
            )
            self._database.execute("CREATE INDEX IF NOT EXISTS by_question ON answers (question)")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Let one stage ask at a time: no question is asked twice, and parallel requests stay within their limit."""
        try:
            self._asking.acquire(timeout=0)
        except Timeout:
            print("another stage is asking this endpoint; waiting for it to finish", flush=True)
            self._asking.acquire()
        try:
            yield
        finally:
            self._asking.release()

    def add(self, key: str, answer: Answer) -> None:
        """Add an answer to a question, on disk when this returns."""
        with self._one_at_a_time, self._database:
            self._database.execute(
                f"INSERT INTO answers (question, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", (key, *astuple(answer))
            )

    def to(self, keys: Iterable[str]) -> dict[str, list[Answer]]:
        """Return all answers to each question, in the order they came."""
        query = f"SELECT {COLUMNS} FROM answers WHERE question = ? ORDER BY rowid"
        with self._one_at_a_time:
            return {key: [Answer(*row) for row in self._database.execute(query, (key,))] for key in keys}

    def spent(self) -> Bill:
        """Sum up the cost of all answers, whoever asked."""
        query = "SELECT COUNT(*), TOTAL(prompt_tokens), TOTAL(completion_tokens) FROM answers"
        with self._one_at_a_time:
            questions, prompt, completion = self._database.execute(query).fetchone()
        return Bill(questions, int(prompt), int(completion))
