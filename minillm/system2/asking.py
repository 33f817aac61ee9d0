"""Stage `ask`: answers to questions by a chain of prompts, each with the final answer found in it.

Who responds to the prompts is a model here or, in `minillm.served.reasoning`, one behind an endpoint.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from minillm.config import PromptChain, Sampling
from minillm.data.benchmarks import load_benchmarks
from minillm.data.prompts import template_of
from minillm.errors import StageError
from minillm.files import read_json_lines, write_json_lines
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.patterns import group_in
from minillm.placeholders import fill
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import Ask, Asking
from minillm.streams import Purpose, stream
from minillm.system2.questions import orders_of, original_letter, shown
from minillm.worker.processes import gather_lists, process_group, rank, world_size
from minillm.worker.progress import Progress

PART = 1024
"""Answers that are stored together, about: a killed stage loses at most those under way."""
CUT, LONG, UNREAD = "cut at the length limit", "a prompt became too long", "no final answer found"
SHOWN, SHOWN_CHARACTERS = 3, 300
"""Responses that an error quotes, and characters of each."""
PARTS = {"unlabelled": 0, "test": 1}
Questions = Mapping[tuple[str, int], Mapping[str, Any]]
"""Questions by the name of their set and their number in it."""


@dataclass
class Answer:
    """One answer to one question."""

    set: str
    index: int
    """Number of the question in its set."""
    order: int
    """Order of its choices; 0 for the given one and for questions without choices."""
    sample: int
    answer: str | None = None
    """The final answer, of multiple-choice questions its letter in the given order; None if there is none."""
    problem: str = ""
    """Reason why there is none."""
    tokens: int = 0
    """Tokens of all responses of the chain."""
    responses: dict[str, str] = field(default_factory=dict)
    """Responses by the name of their step."""


@dataclass(frozen=True)
class Responded:
    """A response to one prompt."""

    text: str | None
    """None if there is none."""
    tokens: int = 0
    problem: str = ""
    """Reason why it is no whole response: half of one may look like another final answer."""


class Responder(Protocol):
    """Whoever responds to prompts."""

    limits: ClassVar[str]
    """Fields that limit a response."""

    def respond(self, asked: Sequence[tuple[Answer, str]], report: Callable[[int], None]) -> Sequence[Responded]:
        """Respond to prompts, each with the answer that it belongs to; report how many are done."""
        ...


@process_group()
def run(job: Job[Ask]) -> Summary:
    """Answer part by part; skip those that an earlier attempt finished.

    Raises:
        StageError: A question's first prompt is too long, further orders are asked of questions without choices, or no
            answer can be read from any response.
    """
    questions = read_questions(job.inputs["questions"])
    model = LocalModel(job, sorted({name for name, _ in questions}))
    model.require_room(questions)
    return ask_all(job.settings, job.output, questions, model, rank() == 0, job.work)


def ask_all(
    settings: Asking,
    output: Path,
    questions: Questions,
    responder: Responder,
    writes: bool = True,
    parts: Path | None = None,
) -> Summary:
    """Answer all questions, and write the answers.

    Args:
        settings: How they are asked.
        output: Folder of `answers.jsonl`.
        questions: Questions by set and number.
        responder: Whoever responds to the prompts.
        writes: Whether this process writes files.
        parts: Folder of finished parts; None where all responses are kept as they come.

    Raises:
        StageError: Further orders are asked of questions without choices, or no answer can be read from any response.
    """
    if settings.orders > 1 and not any(row["choices"] for row in questions.values()):
        raise StageError(
            f"self_consistency.reorderings is {settings.orders - 1}, but no question of data.{settings.part} has "
            "choices; set it to 0"
        )
    asker = Asker(output, settings, responder, questions)
    places, answers = list(questions), []
    at_once = max(1, PART // (settings.samples * settings.orders))
    for first in range(0, len(places), at_once):
        target = parts and parts / f"answers-{first:07}.jsonl"
        if target and target.exists():
            found = [Answer(**line) for line in read_json_lines(target)]
        else:
            found = asker.ask(places[first : first + at_once])
            if target and writes:
                write_json_lines(target, map(asdict, found))
        answers += found
        asker.finished(len(answers))
        require_answers(answers, settings.chain, responder.limits)
    if writes:
        write_json_lines(output / "answers.jsonl", map(asdict, answers))
    return {
        "answers": float(len(answers)),
        "tokens": sum(a.tokens for a in answers) / len(answers),
        **{f"without_answer/{problem}": float(count) for problem, count in problems_of(answers).items()},
    }


def read_questions(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Read the questions of all sets, by set and number."""
    return {(name, row["index"]): row for name, rows in load_benchmarks(folder).items() for row in rows}


def problems_of(answers: Sequence[Answer]) -> dict[str, int]:
    """Count the answers without a final answer by the reason; the usual reasons are there even if none has them."""
    return {CUT: 0, LONG: 0, UNREAD: 0, **Counter(answer.problem for answer in answers if answer.problem)}


def read_answers(folder: Path) -> list[Answer]:
    """Read what the stage wrote."""
    return [Answer(**line) for line in read_json_lines(folder / "answers.jsonl")]


def require_answers(answers: Sequence[Answer], chain: PromptChain, limits: str) -> None:
    """Check that at least one of the answers so far has a final answer.

    Raises:
        StageError: None has; the message quotes the first responses.
    """
    if any(a.answer is not None for a in answers):
        return
    told = ", ".join(f"{count} {problem}" for problem, count in problems_of(answers).items() if count)
    quoted = "\n".join(
        f"  {list(a.responses.values())[-1][-SHOWN_CHARACTERS:]!r}" for a in answers[:SHOWN] if a.responses
    )
    raise StageError(
        f"{chain.name}: none of the first {len(answers)} answers has a final answer ({told}); its pattern is "
        f"{chain.answer!r}. Change the pattern or the prompts, or raise {limits} if responses were cut. The "
        f"first responses end:\n{quoted}"
    )


class Asker:
    """Questions with the chain of prompts that they are asked by, and whoever responds."""

    def __init__(self, output: Path, settings: Asking, responder: Responder, questions: Questions) -> None:
        self.settings, self.responder, self.questions = settings, responder, questions
        orders = sum(orders_of(row, settings.orders) for row in questions.values())
        self.progress = Progress(output, len(settings.chain.steps) * settings.samples * orders, "responses")
        self.done = 0
        """Responses behind us, those that a chain that ended early left out among them."""

    def ask(self, places: Sequence[tuple[str, int]]) -> list[Answer]:
        """Return all answers to some questions; every process answers a share and gets all."""
        settings = self.settings
        answers = [
            Answer(name, index, order, sample)
            for name, index in places
            for order in range(orders_of(self.questions[name, index], settings.orders))
            for sample in range(settings.samples)
        ]
        for name, prompt in settings.chain.steps.items():
            self._step(name, prompt, [a for a in answers if not a.problem])
            self.done += len(answers)
        for answer in answers:
            if not answer.problem:
                self._read(answer)
        return answers

    def finished(self, answers: int) -> None:
        """Log that so many answers are there, those of an earlier attempt included."""
        self.done = answers * len(self.settings.chain.steps)
        self.progress.log(self.done)

    def _step(self, name: str, prompt: str, answers: Sequence[Answer]) -> None:
        """Respond to one prompt of the chain in every answer."""
        asked = [
            (a, fill(prompt, {"question": shown(self.questions[a.set, a.index], a.order), **a.responses}))
            for a in answers
        ]
        found = self.responder.respond(asked, lambda ready: self.progress.log(self.done + ready))
        for a, response in zip(answers, found, strict=True):
            a.problem, a.tokens = response.problem, a.tokens + response.tokens
            if response.text is not None:
                a.responses[name] = response.text

    def _read(self, answer: Answer) -> None:
        """Find the final answer in the last response."""
        found = group_in(self.settings.chain.answer, list(answer.responses.values())[-1])
        row = self.questions[answer.set, answer.index]
        if found is not None and row["choices"]:
            found = original_letter(found, row, answer.order)
        answer.answer = None if found is None else found.strip() or None
        answer.problem = UNREAD if answer.answer is None else ""


class LocalModel:
    """A model that responds here, on all processes together."""

    limits: ClassVar[str] = "asking.max_response_tokens or data.max_tokens"

    def __init__(self, job: Job[Ask], sets: Sequence[str]) -> None:
        self.job, self.settings, self.sets = job, job.settings, sets
        self.tokenizer = load_shared_tokenizer(job.inputs["tokenizer"])
        self.template = template_of(self.tokenizer.tokenizer, self.settings.template)

    @cached_property
    def sampler(self) -> Sampler:
        """The model, loaded when it is first needed."""
        settings, shared = self.settings, self.tokenizer
        decoding = Decoding(**settings.model_dump(include=set(Sampling.model_fields)))
        model = load_frozen(self.job.inputs["model"], dtype_of(settings.precision), self.job.runtime)
        return Sampler(model, shared.ends, shared.entries, decoding, self.job.runtime.generation_batch_size)

    def require_room(self, questions: Questions) -> None:
        """Check that the first prompt of every question fits.

        Raises:
            StageError: One does not.
        """
        prompt = next(iter(self.settings.chain.steps.values()))
        texts = [fill(prompt, {"question": shown(row, 0)}) for row in questions.values()]
        lengths = [len(ids) for ids in self._prompts(texts)]
        longer = [number for number, length in enumerate(lengths) if length > self.settings.max_prompt_tokens]
        if longer:
            name, index = list(questions)[longer[0]]
            raise StageError(
                f"data.{self.settings.part}: {len(longer)} questions make prompts of more than "
                f"{self.settings.max_prompt_tokens} tokens, the first is number {index} of {name} with "
                f"{lengths[longer[0]]}; raise data.max_prompt_tokens, or leave them out"
            )

    def respond(self, asked: Sequence[tuple[Answer, str]], report: Callable[[int], None]) -> list[Responded]:
        """Sample responses; those whose prompts leave no room for any have that as their problem."""
        settings, requests = self.settings, dict[int, Request]()
        for number, ((a, _), ids) in enumerate(zip(asked, self._prompts([text for _, text in asked]), strict=True)):
            room = min(settings.max_tokens - len(ids), settings.max_response_tokens or settings.max_tokens)
            if room > 0:
                place = (PARTS[settings.part], self.sets.index(a.set), a.index, a.order, a.sample, len(a.responses))
                requests[number] = Request(ids, room, stream(Purpose.SYSTEM2, settings.seed, *place))
        mine = self.sampler.sample(
            list(requests.values())[rank() :: world_size()], lambda ready: report(ready * world_size())
        )
        responses = gather_lists([(response.tokens, response.finished) for response in mine])
        texts = self.tokenizer.texts([tokens for tokens, _ in responses])
        found = [Responded(None, problem=LONG)] * len(asked)
        for number, text, (tokens, finished) in zip(requests, texts, responses, strict=True):
            found[number] = Responded(text, len(tokens), "" if finished else CUT)
        return found

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids for _, ids in self.template.prompts([(text, "") for text in texts])]
