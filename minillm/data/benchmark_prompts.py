"""Stage `prompts`: tokenises the prompts of every benchmark, and refuses or cuts those that are too long."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from transformers import AutoTokenizer

from minillm.data.benchmarks import load_benchmarks
from minillm.data.chat import ChatTemplate
from minillm.data.prompts import fit_prompts, template_of
from minillm.data.text_template import TextTemplate
from minillm.data.turns import so_far
from minillm.errors import StageError
from minillm.files import write_json
from minillm.stages.base import Job, Summary
from minillm.stages.reading import EncodedPrompts

TURNS = "turns.json"
"""File with the conversations of the benchmarks that have some, for whoever holds them."""


def run(job: Job[EncodedPrompts]) -> Summary:
    """Write NAME.parquet for each benchmark; the summary has how many of its prompts were cut.

    Raises:
        StageError: A prompt is too long and must not be cut, or the template refuses it or cannot render conversations.
    """
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    template, cut = template_of(tokenizer, settings.template), {}
    turns: dict[str, list[dict[str, Any]]] = {}
    for name, rows in load_benchmarks(job.inputs["benchmarks"]).items():
        if "turn" in rows[0]:
            prompts, cut[name] = encode_turns(name, rows, template, settings), 0
            turns[name] = [{field: row[field] for field in ("turn", "messages", "tools")} for row in rows]
        else:
            try:
                encoded = template.prompts([(row["instruction"], row["context"]) for row in rows])
            except StageError as error:
                raise StageError(f"benchmark {name}, {error}") from error
            asked = [ids for _, ids in encoded]
            prompts, cut[name] = fit_prompts(f"benchmark {name}", asked, settings, template.opening)
        pd.DataFrame({"prompt_ids": prompts}).to_parquet(job.output / f"{name}.parquet")
    write_json(job.output / "cut_prompts.json", cut)
    if turns:
        write_json(job.output / TURNS, {"settings": settings.model_dump(mode="json"), "benchmarks": turns})
    return {f"cut_prompts/{name}": float(count) for name, count in cut.items()}


def encode_turns(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    template: TextTemplate | ChatTemplate,
    settings: EncodedPrompts,
) -> list[list[int]]:
    """Return a prompt for every turn, with the first references as the answers before it.

    A model's own answers take their place when it is asked. An answer without a reference is left empty here. The limit
    must hold with the references, and whatever a model answers: every earlier answer counts `answer_tokens`.

    Raises:
        StageError: A prompt may become too long, or the template cannot render conversations.
    """
    if isinstance(template, TextTemplate):
        raise StageError(
            f"benchmark {name} has conversations, which only a chat template can render, and data.template is a text: "
            "take models that have one, and leave data.template out"
        )
    prompts: list[list[int]] = []
    most: list[int] = []
    for index, row in enumerate(rows):
        talk = rows[index - row["turn"] : index + 1]
        said, tools = [of["messages"] for of in talk], row["tools"]
        try:
            empty = template.prompt(so_far(said, [""] * row["turn"]), tools)[1]
            right = [next(iter(of["references"]), "") for of in talk[:-1]]
            prompts.append(template.prompt(so_far(said, right), tools)[1])
        except ValueError as error:
            raise StageError(f"benchmark {name}, conversation {row['conversation']}: {error}") from error
        most.append(max(len(prompts[-1]), len(empty) + row["turn"] * settings.answer_tokens))
    longer = [index for index, tokens in enumerate(most) if tokens > settings.max_prompt_tokens]
    if longer:
        row = rows[longer[0]]
        raise StageError(
            f"benchmark {name}: {len(longer)} prompts may become longer than {settings.max_prompt_tokens} tokens, the "
            f"first is turn {row['turn']} of conversation {row['conversation']}, both counted from 0, with "
            f"{most[longer[0]]} if every earlier answer has {settings.answer_tokens} or is its reference; raise "
            "evaluation.max_prompt_tokens"
        )
    return prompts
