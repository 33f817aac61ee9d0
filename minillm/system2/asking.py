"""Stage `ask`: answers to questions by a chain of prompts, each with the final answer found in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minillm.config import PromptChain, Sampling
from minillm.data.benchmarks import load_benchmarks
from minillm.data.prompts import template_of
from minillm.errors import StageError
from minillm.files import read_json_lines, write_json_lines
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import DTYPES, load_model
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.patterns import group_in
from minillm.placeholders import fill
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import Ask
from minillm.streams import Purpose, stream
from minillm.system2.questions import orders_of, original_letter, shown
from minillm.worker.processes import device, gather_lists, process_group, rank, world_size
from minillm.worker.progress import Progress

PART = 1024
"""Answers that are stored together, about: a killed stage loses at most those under way."""
CUT, LONG, UNREAD = "cut at the length limit", "a prompt became too long", "no final answer found"
SHOWN, SHOWN_CHARACTERS = 3, 300
"""Responses that an error quotes, and characters of each."""
PARTS = {"unlabelled": 0, "test": 1}


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


@process_group()
def run(job: Job[Ask]) -> Summary:
    """Answer part by part; skip those that an earlier attempt finished.

    Raises:
        StageError: A question's first prompt is too long, further orders are asked of questions without choices, or no
            answer can be read from any response.
    """
    settings = job.settings
    questions = {
        (name, row["index"]): row for name, rows in load_benchmarks(job.inputs["questions"]).items() for row in rows
    }
    if settings.orders > 1 and not any(row["choices"] for row in questions.values()):
        raise StageError(
            f"self_consistency.reorderings is {settings.orders - 1}, but no question of data.{settings.part} has "
            "choices; set it to 0"
        )
    asker = Asker(job, settings, load_shared_tokenizer(job.inputs["tokenizer"]), questions)
    asker.require_room()
    places, answers = list(questions), []
    at_once = max(1, PART // (settings.samples * settings.orders))
    for first in range(0, len(places), at_once):
        target = job.work / f"answers-{first:07}.jsonl"
        if target.exists():
            found = [Answer(**line) for line in read_json_lines(target)]
        else:
            found = asker.ask(places[first : first + at_once])
            if rank() == 0:
                write_json_lines(target, map(asdict, found))
        answers += found
        asker.finished(len(answers))
        require_answers(answers, settings.chain)
    if rank() == 0:
        write_json_lines(job.output / "answers.jsonl", map(asdict, answers))
    problems = {problem: sum(a.problem == problem for a in answers) for problem in (CUT, LONG, UNREAD)}
    return {
        "answers": float(len(answers)),
        "tokens": sum(a.tokens for a in answers) / len(answers),
        **{f"without_answer/{problem}": float(count) for problem, count in problems.items()},
    }


def read_answers(folder: Path) -> list[Answer]:
    """Read what the stage wrote."""
    return [Answer(**line) for line in read_json_lines(folder / "answers.jsonl")]


def require_answers(answers: Sequence[Answer], chain: PromptChain) -> None:
    """Check that at least one of the answers so far has a final answer.

    Raises:
        StageError: None has; the message quotes the first responses.
    """
    if any(a.answer is not None for a in answers):
        return
    counts = {problem: sum(a.problem == problem for a in answers) for problem in (CUT, LONG, UNREAD)}
    told = ", ".join(f"{count} {problem}" for problem, count in counts.items() if count)
    quoted = "\n".join(
        f"  {list(a.responses.values())[-1][-SHOWN_CHARACTERS:]!r}" for a in answers[:SHOWN] if a.responses
    )
    raise StageError(
        f"{chain.name}: none of the first {len(answers)} answers has a final answer ({told}); its pattern is "
        f"{chain.answer!r}. Change the pattern or the prompts, or raise asking.max_response_tokens or data.max_tokens "
        f"if responses were cut. The first responses end:\n{quoted}"
    )


class Asker:
    """A model with the chain of prompts that it is asked by."""

    def __init__(
        self,
        job: Job[Ask],
        settings: Ask,
        tokenizer: SharedTokenizer,
        questions: Mapping[tuple[str, int], Mapping[str, Any]],
    ) -> None:
        self.job, self.settings, self.tokenizer, self.questions = job, settings, tokenizer, questions
        self.template = template_of(tokenizer.tokenizer, settings.template)
        self.sets = sorted({name for name, _ in questions})
        self.progress = Progress(job.output, len(settings.chain.steps) * self._count(questions), "responses")
        self.done = 0
        """Responses behind us, those that a chain that ended early left out among them."""
        self._sampler: Sampler | None = None

    @property
    def sampler(self) -> Sampler:
        """The model, loaded when it is first needed."""
        if self._sampler is None:
            settings, runtime = self.settings, self.job.runtime
            decoding = Decoding(**settings.model_dump(include=set(Sampling.model_fields)))
            model = load_model(self.job.inputs["model"], DTYPES[settings.precision]).to(device()).eval()  # type: ignore[arg-type]
            shared = self.tokenizer
            self._sampler = Sampler(model, shared.ends, shared.entries, decoding, runtime.generation_batch_size)
        return self._sampler

    def require_room(self) -> None:
        """Check that the first prompt of every question fits.

        Raises:
            StageError: One does not.
        """
        lengths = [len(ids) for ids in self._prompts([self._first(place, 0) for place in self.questions])]
        longer = [number for number, length in enumerate(lengths) if length > self.settings.max_prompt_tokens]
        if longer:
            name, index = list(self.questions)[longer[0]]
            raise StageError(
                f"data.{self.settings.part}: {len(longer)} questions make prompts of more than "
                f"{self.settings.max_prompt_tokens} tokens, the first is number {index} of {name} with "
                f"{lengths[longer[0]]}; raise data.max_prompt_tokens, or leave them out"
            )

    def ask(self, places: Sequence[tuple[str, int]]) -> list[Answer]:
        """Return all answers to some questions; every process answers a share and gets all."""
        settings = self.settings
        answers = [
            Answer(name, index, order, sample)
            for name, index in places
            for order in range(orders_of(self.questions[name, index], settings.orders))
            for sample in range(settings.samples)
        ]
        for number, prompt in enumerate(settings.chain.steps.values()):
            self._step(number, prompt, [a for a in answers if not a.problem])
            self.done += len(answers)
        for answer in answers:
            if not answer.problem:
                self._read(answer)
        return answers

    def finished(self, answers: int) -> None:
        """Log that so many answers are there, those of an earlier attempt included."""
        self.done = answers * len(self.settings.chain.steps)
        self.progress.log(self.done)

    def _count(self, places: Iterable[tuple[str, int]]) -> int:
        """Return the number of answers to some questions."""
        orders = (orders_of(self.questions[place], self.settings.orders) for place in places)
        return self.settings.samples * sum(orders)

    def _step(self, number: int, prompt: str, answers: Sequence[Answer]) -> None:
        """Respond to one prompt of the chain in every answer."""
        settings, name = self.settings, list(self.settings.chain.steps)[number]
        texts = [fill(prompt, {"question": self._question(a), **a.responses}) for a in answers]
        asked: list[tuple[Answer, Request]] = []
        for a, ids in zip(answers, self._prompts(texts), strict=True):
            room = min(settings.max_tokens - len(ids), settings.max_response_tokens or settings.max_tokens)
            if room < 1:
                a.problem = LONG
                continue
            place = (PARTS[settings.part], self.sets.index(a.set), a.index, a.order, a.sample, number)
            asked.append((a, Request(ids, room, stream(Purpose.SYSTEM2, settings.seed, *place))))
        mine = self.sampler.sample(
            [request for _, request in asked[rank() :: world_size()]],
            lambda ready: self.progress.log(self.done + ready * world_size()),
        )
        responses = gather_lists([(response.tokens, response.finished) for response in mine])
        decoded = self.tokenizer.texts([tokens for tokens, _ in responses])
        for (a, _), text, (tokens, finished) in zip(asked, decoded, responses, strict=True):
            a.responses[name], a.tokens = text, a.tokens + len(tokens)
            a.problem = "" if finished else CUT  # half an answer may look like another one

    def _read(self, answer: Answer) -> None:
        """Find the final answer in the last response."""
        found = group_in(self.settings.chain.answer, list(answer.responses.values())[-1])
        row = self.questions[answer.set, answer.index]
        if found is not None and row["choices"]:
            found = original_letter(found, row, answer.order)
        answer.answer = None if found is None else found.strip() or None
        answer.problem = UNREAD if answer.answer is None else ""

    def _question(self, answer: Answer) -> str:
        return shown(self.questions[answer.set, answer.index], answer.order)

    def _first(self, place: tuple[str, int], order: int) -> str:
        prompt = next(iter(self.settings.chain.steps.values()))
        return fill(prompt, {"question": shown(self.questions[place], order)})

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids for _, ids in self.template.prompts([(text, "") for text in texts])]
