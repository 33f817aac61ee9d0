"""Ask the judge the questions it has not answered yet, several at once, and keep each answer as soon as it comes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from minillm.config import Judge
from minillm.errors import StageError
from minillm.judging.answers import Answer, Answers
from minillm.judging.budget import Bill, Budget, expected, paid
from minillm.judging.endpoint import Endpoint, RefusedError
from minillm.judging.questions import read_ratings
from minillm.words import counted, number
from minillm.worker.progress import Progress

ALL_REFUSED = 20
"""If this many questions are refused and none is answered, the endpoint is taken to refuse all."""


def ask_what_is_open(
    texts: Mapping[str, str], answers: Answers, judge: Judge, methods: int, progress: Progress
) -> dict[str, str]:
    """Ask until every question has a well-formed answer, or as many answers as attempts.

    Args:
        texts: Questions by their keys.
        answers: Known answers; new ones are added.
        judge: The judge, its settings and budget.
        methods: Number of rows of the table, which share the budget equally.
        progress: Counts settled questions.

    Returns:
        Reason of the endpoint for each refused question, by its key.

    Raises:
        StageError: It would cost more than the budget, or the endpoint denies access.
        EndpointError: The endpoint does not answer.
    """
    known = answers.to(texts)
    spent = bill(known)
    open_questions = {key: text for key, text in texts.items() if is_open(known[key], judge)}
    ahead = sum((expected(text, judge) for text in open_questions.values()), Bill())
    print(statement(len(texts), ahead, judge), flush=True)
    if not open_questions:
        return {}
    budget = Budget(judge, methods, spent)
    budget.check(ahead)
    endpoint = Endpoint(judge)

    def ask(key: str) -> None:
        """Ask one question until an answer is well formed or the attempts are used up."""
        for _ in range(attempts_made(known[key], judge), judge.attempts):
            highest, took = expected(texts[key], judge), Bill()
            budget.reserve(highest)
            try:
                answer = endpoint.ask(texts[key])
                answers.add(key, answer)
                took = paid(answer)
            finally:
                budget.settle(highest, took)
            if read_ratings(answer.text) is not None:
                return

    refused = _ask_all(ask, list(open_questions), judge, progress)
    took = bill(answers.to(texts)) - spent
    print(f"asked {counted(took.questions, 'question')}: {tokens(took, judge)}; {len(refused)} refused", flush=True)
    return refused


def is_open(found: Sequence[Answer], judge: Judge) -> bool:
    """Return whether to ask a question: no answer is well formed, and attempts are left.

    Answers that a smaller `max_tokens` may have cut do not count as attempts.
    """
    return attempts_made(found, judge) < judge.attempts and ratings_in(found) is None


def ratings_in(found: Iterable[Answer]) -> tuple[int, int] | None:
    """Return the ratings of the first well-formed answer; None if there is none."""
    read = (read_ratings(answer.text) for answer in found)
    return next((ratings for ratings in read if ratings is not None), None)


def attempts_made(found: Sequence[Answer], judge: Judge) -> int:
    """Count the answers to requests with at least the present limit."""
    return sum(answer.max_tokens >= judge.max_tokens for answer in found)


def bill(found: Mapping[str, Sequence[Answer]]) -> Bill:
    """Sum up the cost of answers."""
    return sum((paid(answer) for several in found.values() for answer in several), Bill())


def statement(questions: int, ahead: Bill, judge: Judge) -> str:
    """State the expected cost."""
    return (
        f"judge {judge.model}: {counted(questions, 'question')}, "
        f"{questions - ahead.questions:,} of them settled already; to ask: {ahead.questions:,}, "
        f"an estimated {tokens(ahead, judge, most='at most ')}"
    )


def tokens(spent: Bill, judge: Judge, most: str = "") -> str:
    """Write tokens and, if prices are known, money."""
    cost = "" if judge.prices is None else f", {most}{number(spent.cost(judge.prices), 4)} in money"
    return f"{spent.prompt_tokens:,} prompt tokens and {most}{spent.completion_tokens:,} completion tokens{cost}"


def _ask_all(ask: Callable[[str], None], keys: Sequence[str], judge: Judge, progress: Progress) -> dict[str, str]:
    """Ask all questions; if one fails for good, answers under way are still waited for and kept."""
    settled = progress.total - len(keys)
    pool = ThreadPoolExecutor(judge.parallel)
    refused: dict[str, str] = {}
    try:
        asked = {pool.submit(ask, key): key for key in keys}
        for done, future in enumerate(as_completed(asked), start=1):
            try:
                future.result()
            except RefusedError as error:
                refused[asked[future]] = str(error)
            if len(refused) == done == min(ALL_REFUSED, len(keys)):
                raise StageError(
                    f"{judge.base_url} takes no question; {judge.model} says: {refused[asked[future]]}; "
                    "change evaluation.judge accordingly, e.g. temperature: null or a larger max_tokens"
                )
            progress.log(settled + done)
    finally:
        pool.shutdown(cancel_futures=True)
    return refused
