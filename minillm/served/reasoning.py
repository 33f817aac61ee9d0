"""Stage `asked_chain`: answers by a chain of prompts from a reasoner, a model behind an endpoint."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from minillm.data.rows import user_message
from minillm.endpoints.asking import stop_when_asked
from minillm.served.chat import Chat, Outcome, RemoteModel, with_system
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import AskReasoner
from minillm.streams import Purpose, generator, stream
from minillm.system2.asking import CUT, Answer, Responded, ask_all, read_questions


def run(job: Job[AskReasoner]) -> Summary:
    """Ask for what the store lacks; a response that is refused, malformed or cut leaves its answer without a final one.

    Raises:
        StageError: It would cost more than the budget, the endpoint denies access, or no answer can be read.
    """
    stop_when_asked()
    model = ServedModel(job)
    summary = ask_all(job.settings, job.output, read_questions(job.inputs["questions"]), model)
    return {**summary, **model.remote.bill.figures(job.settings.reasoner.prices)}


class ServedModel:
    """A model that responds behind an endpoint."""

    limits: ClassVar[str] = "reasoner.max_tokens"

    def __init__(self, job: Job[AskReasoner]) -> None:
        self.settings, self.remote = job.settings, RemoteModel(job.settings.reasoner, job.runtime.store)

    def respond(self, asked: Sequence[tuple[Answer, str]], report: Callable[[int], None]) -> list[Responded]:
        """Return responses, from the store where it has them."""
        said = self.remote.say([self._chat(answer, prompt) for answer, prompt in asked], report)
        return [_responded(outcome) for outcome in said]

    def _chat(self, answer: Answer, prompt: str) -> Chat:
        settings, reasoner = self.settings, self.settings.reasoner
        name = stream(Purpose.REASONER, settings.seed, answer.sample)
        return Chat(
            messages=with_system(settings.system, user_message(prompt, "")),
            max_tokens=reasoner.max_tokens,
            seed=int(generator(name).integers(2**31)),  # the largest that every server takes
            temperature=reasoner.temperature,
        )


def _responded(outcome: Outcome) -> Responded:
    if isinstance(outcome, str):
        return Responded(None, problem=outcome)
    return Responded(outcome.text or "", outcome.tokens, CUT if outcome.finish == "length" else "")
