"""Stage `asked_responses`: a served teacher's responses to the training prompts, filtered and tokenised (SeqKD)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import ServedTeacher
from minillm.data.chat import ChatTemplate
from minillm.data.conversations import Conversation
from minillm.data.encoding import Encoded
from minillm.data.learnt_turns import prompts_of
from minillm.data.prompts import template_of
from minillm.data.rows import Row, read_examples
from minillm.data.text_template import TextTemplate
from minillm.endpoints.asking import stop_when_asked
from minillm.errors import StageError
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.patterns import matches
from minillm.served.chat import Chat, Outcome, RemoteModel, Said, with_system
from minillm.stages.base import Job, Summary
from minillm.stages.served import AskResponses
from minillm.words import counted
from minillm.worker.progress import Progress


def run(job: Job[AskResponses]) -> Summary:
    """Write responses.parquet and dropped.csv.

    Raises:
        StageError: It would cost more than the budget, the endpoint denies access, or no response can be used.
    """
    settings, endpoint = job.settings, job.settings.endpoint
    stop_when_asked()
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    template = template_of(shared.tokenizer, settings.template, shared.ends)
    prompts = prompts_of(pd.read_parquet(job.inputs["examples"] / "train.parquet"))
    rows = _rows(job, set(prompts["row"]))
    asked = [
        _question(template, rows[row], prompt.tolist())
        for row, prompt in zip(prompts["row"], prompts["prompt_ids"], strict=True)
    ]
    chats = [
        Chat(
            messages=with_system(settings.template.system, question.messages[:-1]),
            max_tokens=settings.max_tokens - len(prompt),
            seed=settings.seed,
            temperature=endpoint.temperature,
            tools=None if question.conversation is None else question.conversation.tools,
        )
        for question, prompt in zip(asked, prompts["prompt_ids"], strict=True)
    ]
    teacher = RemoteModel(endpoint, job.runtime.store)
    said = teacher.say(chats, Progress(job.output, len(chats), "responses").log)
    found = list(_usable(template, asked, prompts, said, settings))
    dropped = Counter(reason for reason in found if isinstance(reason, str))
    for reason, count in dropped.most_common():
        print(f"dropped {counted(count, 'response')}: {reason}", flush=True)
    usable = [of for of in found if isinstance(of, Encoded)]
    if not usable:
        raise StageError(
            f"{endpoint.model} gave no usable response to {counted(len(found), 'prompt')} "
            f"({', '.join(f'{reason}: {count}' for reason, count in dropped.items())}); look at what it writes "
            "(`minillm chat`), at teacher.model.endpoint.refusals, or raise data.max_tokens"
        )
    _write(job.output, prompts, found)
    counts: Summary = {f"dropped/{reason}": float(count) for reason, count in sorted(dropped.items())}
    mean = sum(of.learnt for of in usable) / len(usable)
    return {"responses": len(usable), "mean_tokens": mean, **counts, **teacher.bill.figures(endpoint.prices)}


def _rows(job: Job[AskResponses], wanted: set[int]) -> dict[int, Row]:
    """Read the rows that are trained on again, as messages, by number."""
    read = read_examples(job.inputs["instructions"], job.settings.fields)
    return {row.row: row for row in read if isinstance(row, Row) and row.row in wanted}


def _question(template: TextTemplate | ChatTemplate, row: Row, prompt: list[int]) -> Row:
    """Return a row up to the answer that a prompt of it leads to, which is known by having the same tokens.

    Raises:
        StageError: There is none.
    """
    if isinstance(template, TextTemplate) or row.conversation is None:
        return row
    answers = [number for number, message in enumerate(row.messages) if message["role"] == "assistant"]
    for answer in reversed(answers):
        before = row.messages[:answer]
        with suppress(ValueError):  # the filter has left out an answer whose prompt the template refuses
            if template.prompt(before, row.conversation.tools)[1] == prompt:
                return replace(row, conversation=Conversation((*before, row.messages[answer]), row.conversation.tools))
    raise StageError(
        f"row {row.row} ({row.file}:{row.line}): the messages before none of its answers have the tokens of the "
        "prompt that was filtered; filter the rows again (`minillm store gc`)"
    )


def _usable(
    template: TextTemplate | ChatTemplate,
    asked: Sequence[Row],
    prompts: pd.DataFrame,
    said: Sequence[Outcome],
    settings: AskResponses,
) -> Iterator[Encoded | str]:
    """Yield each response as it is trained on, or why it is dropped."""
    known: set[str] = set()
    for row, prompt, outcome in zip(asked, prompts["prompt_ids"], said, strict=True):
        if isinstance(outcome, str):
            yield outcome
            continue
        if reason := _objection(outcome, known, settings.endpoint):
            yield reason
            continue
        encoded = template.examples([_answered(row, outcome.text or "")])[0]
        if isinstance(encoded, str) or encoded.prompt_ids != prompt.tolist():
            yield "the template writes it otherwise"
        elif len(prompt) + len(encoded.response_ids) > settings.max_tokens:
            yield "longer than data.max_tokens"
        else:
            yield encoded


def _objection(said: Said, known: set[str], endpoint: ServedTeacher) -> str:
    """Return why a text is not learnt; nothing if nothing speaks against it, and it is known from then on."""
    text = (said.text or "").strip()
    if said.finish == "length":
        return "cut by the length limit"
    if not text:
        return "empty"
    if any(matches(pattern, text) for pattern in endpoint.refusals):
        return "refusal"
    if endpoint.duplicate_characters is not None and len(text) >= endpoint.duplicate_characters:
        if text in known:
            return "duplicate"
        known.add(text)
    return ""


def _answered(row: Row, text: str) -> Row:
    if row.conversation is None:
        return replace(row, response=text)
    answer: Mapping[str, Any] = {"role": "assistant", "content": text}
    return replace(row, conversation=Conversation((*row.messages[:-1], answer), row.conversation.tools))


def _write(folder: Path, prompts: pd.DataFrame, found: Sequence[Encoded | str]) -> None:
    kept = [isinstance(of, Encoded) for of in found]
    encoded = [of for of in found if isinstance(of, Encoded)]
    rows = prompts.loc[kept, ["row", "category", "prompt_ids"]]
    turns = [[turn._asdict() for turn in of.turns] for of in encoded]
    rows = rows.assign(response_ids=[of.response_ids for of in encoded], turns=turns)
    rows.reset_index(drop=True).to_parquet(folder / "responses.parquet")
    reasons = [(row, of) for row, of in zip(prompts["row"], found, strict=True) if isinstance(of, str)]
    pd.DataFrame(reasons, columns=["row", "reason"]).to_csv(folder / "dropped.csv", index=False)
