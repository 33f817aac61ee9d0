"""Stage `questions`: reads multiple-choice sets into one format, with the tokens of their prompts and choices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minillm.config import MultipleChoice
from minillm.data.encoding import encode_texts
from minillm.data.prompts import fit_prompts, template_of
from minillm.data.rows import evenly, read_set, text_field
from minillm.errors import StageError
from minillm.files import write_json_lines
from minillm.stages.base import Job, Summary
from minillm.stages.reading import Questions


def run(job: Job[Questions]) -> Summary:
    """Write NAME.jsonl for each set, with rows {"index", "prompt", "choices", "answer", "prompt_ids", "choice_ids"}.

    The summary has the number of rows of each set, and how many prompts had their beginning cut off.

    Raises:
        StageError: A set has no rows, a row lacks question, choices or right answer, or a prompt or choice is too long.
    """
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    summary: Summary = {}
    for name, record in settings.sets.items():
        rows = read_questions(name, job.inputs[f"calibration/{name}"], record)
        encoded, cut = encode_questions(name, rows, tokenizer, settings)
        write_json_lines(job.output / f"{name}.jsonl", encoded)
        summary |= {name: float(len(encoded)), f"cut_prompts/{name}": float(cut)}
    return summary


def read_questions(name: str, path: Path, record: MultipleChoice) -> list[dict[str, Any]]:
    """Read rows {"index", "instruction", "context", "choices", "answer"}; the answer is a choice's number from 0.

    Raises:
        StageError: There is no row, or one lacks question, choices or right answer.
    """
    return evenly(read_set(f"calibration {name}", path, lambda row: _parse(row, record)), record.prompts)


def encode_questions(
    name: str, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, settings: Questions
) -> tuple[list[dict[str, Any]], int]:
    """Return the rows as they are stored, and how many prompts were cut.

    Raises:
        StageError: A prompt is too long and must not be cut, or a choice does not fit after it.
    """
    template = template_of(tokenizer, settings.template)
    asked = template.prompts([(row["instruction"], row["context"]) for row in rows])
    prompts, cut = fit_prompts(f"calibration {name}", [ids for _, ids in asked], settings, template.opening)
    room = settings.max_tokens - settings.max_prompt_tokens
    encoded = []
    for row, (text, _), prompt in zip(rows, asked, prompts, strict=True):
        choices = encode_texts(tokenizer, row["choices"])
        if (longest := max(map(len, choices))) > room:
            raise StageError(
                f"calibration {name}: a choice of row {row['index']} has {longest} tokens, but only {room} fit behind "
                "a prompt; raise data.max_tokens or leave the set out"
            )
        kept = {field: row[field] for field in ("index", "choices", "answer")}
        encoded.append({**kept, "prompt": text, "prompt_ids": prompt, "choice_ids": choices})
    return encoded, cut


def _parse(value: Mapping[str, Any], record: MultipleChoice) -> dict[str, Any]:
    fields, instruction = record.fields, record.instruction
    if "{question}" in instruction:
        instruction = instruction.replace("{question}", text_field(value, fields.question))
    context = text_field(value, fields.context) if fields.context else ""
    texts, labels = (list(record.choices), []) if record.choices else read_choices(value, fields.choices)
    answer = right_choice(value, fields.answer, texts, labels)
    different = list(dict.fromkeys(texts))  # MMLU has choices that stand twice, and either is right
    if len(different) < 2:
        raise ValueError("fewer than two different choices")
    return {
        "instruction": instruction,
        "context": context,
        "choices": different,
        "answer": different.index(texts[answer]),
    }


def read_choices(value: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    """Return the texts, without surrounding white space, and their labels, if they have any."""
    if name not in value:
        raise ValueError(f"no field `{name}`")
    found, labels = value[name], []
    if isinstance(found, Mapping):
        found, labels = found.get("text"), found.get("label")
        if not isinstance(found, list) or not isinstance(labels, list) or len(found) != len(labels):
            raise ValueError(f"`{name}` must have a `text` and a `label` for each choice, as two lists")
    if not isinstance(found, list):
        raise ValueError(f"`{name}` is {type(found).__name__}, not a list of texts")
    return [text_field({name: text}, name).strip() for text in found], [str(label) for label in labels]


def right_choice(value: Mapping[str, Any], name: str, texts: Sequence[str], labels: Sequence[str]) -> int:
    """Return the number of the right choice, given by its label if there are labels, or else by its text or number."""
    if name not in value:
        raise ValueError(f"no field `{name}`")
    answer = value[name]
    if labels:
        if str(answer) in labels:
            return labels.index(str(answer))
        raise ValueError(f"`{name}` {answer!r} is no label of a choice; there are {', '.join(labels)}")
    if isinstance(answer, str) and answer.strip() in texts:  # a number is never a text: 2 may stand among 3, 2 and 1
        return texts.index(answer.strip())
    number = str(int(answer) if isinstance(answer, bool) else answer).strip()
    if number in map(str, range(len(texts))):
        return int(number)
    raise ValueError(f"`{name}` {answer!r} is none of the {len(texts)} choices; give its text, or its number from 0")
