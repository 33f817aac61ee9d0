"""Stage `asked_answers`: a served teacher's responses to every benchmark, once per seed, stored as by `generate`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from minillm.data.benchmarks import load_benchmarks
from minillm.data.conversations import Message
from minillm.data.encoding import encode_texts, load_prompts
from minillm.data.rows import user_message
from minillm.data.turns import so_far
from minillm.endpoints.asking import stop_when_asked
from minillm.generation.answering import make_requests, write_answers
from minillm.generation.conversing import Answer, load_conversations
from minillm.generation.slots import Request
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.served.chat import Chat, RemoteModel, with_system
from minillm.stages.base import Job, Summary
from minillm.stages.served import AskAnswers
from minillm.words import counted
from minillm.worker.progress import Progress


def run(job: Job[AskAnswers]) -> Summary:
    """Ask benchmark by benchmark; an answer that is refused or malformed is empty, and counted.

    Raises:
        StageError: It would cost more than the budget, or the endpoint denies access.
    """
    stop_when_asked()
    settings, missing = job.settings.generate, Counter[str]()
    tokenizer, teacher = (
        load_shared_tokenizer(job.inputs["tokenizer"]),
        RemoteModel(job.settings.endpoint, job.runtime.store),
    )
    prompts, benchmarks = load_prompts(job.inputs["prompts"]), load_benchmarks(job.inputs["benchmarks"])
    conversations = load_conversations(job.inputs["prompts"], tokenizer)
    for number, name in enumerate(prompts):
        rows, requests = benchmarks[name], make_requests(prompts[name], settings, number)
        asked = Asked(job, teacher, tokenizer, rows, Progress(job.output, len(requests), f"responses to {name}"))
        if name in conversations:
            requests, responses = conversations[name].answer(requests, asked.sample)
        else:
            responses = asked.sample(requests)
        missing[name] = asked.missing
        texts = [asked.texts[request.stream[0], request.stream[2]] for request in requests]
        write_answers(job.output / f"{name}.jsonl", requests, texts, responses, [row.get("turn", 0) for row in rows])
    return {
        "responses": sum(map(len, prompts.values())) * len(settings.seeds),
        **{f"unanswered/{name}": float(count) for name, count in missing.items()},
        **teacher.bill.figures(job.settings.endpoint.prices),
    }


class Asked:
    """The questions of one benchmark and the answers so far, which later turns of a conversation continue."""

    def __init__(
        self,
        job: Job[AskAnswers],
        teacher: RemoteModel,
        tokenizer: SharedTokenizer,
        rows: Sequence[dict[str, Any]],
        progress: Progress,
    ) -> None:
        self.settings, self.system = job.settings.generate, job.settings.system
        self.teacher, self.tokenizer = teacher, tokenizer
        self.rows, self.progress = rows, progress
        self.texts: dict[tuple[int, int], str] = {}
        """Answers by seed and row."""
        self.missing = 0

    def sample(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the tokens of an answer to each request, and whether it ended by itself."""
        greedy = self.settings.strategy == "greedy"
        chats = [
            Chat(
                messages=with_system(self.system, self._messages(request.stream[0], request.stream[2])),
                max_tokens=request.max_tokens,
                seed=request.stream[0],
                temperature=0.0 if greedy else self.settings.temperature,
                top_p=self.settings.top_p,
                tools=self.rows[request.stream[2]].get("tools"),
            )
            for request in requests
        ]
        answers: list[Answer] = []
        for request, said in zip(requests, self.teacher.say(chats, self.progress.log), strict=True):
            text = "" if isinstance(said, str) else said.text or ""
            ended = not isinstance(said, str) and said.finish != "length"
            self.missing += isinstance(said, str)
            self.texts[request.stream[0], request.stream[2]] = text
            tokens = encode_texts(self.tokenizer.tokenizer, [text])[0]
            answers.append(([*tokens, self.tokenizer.eos] if ended else tokens, ended))
        if self.missing:
            print(f"{counted(self.missing, 'answer')} refused or malformed: empty", flush=True)
        return answers

    def _messages(self, seed: int, index: int) -> Sequence[Message]:
        row = self.rows[index]
        if "turn" not in row:
            return user_message(row["instruction"], row["context"])
        talk = range(index - row["turn"], index + 1)
        return so_far([self.rows[of]["messages"] for of in talk], [self.texts[seed, of] for of in talk[:-1]])
