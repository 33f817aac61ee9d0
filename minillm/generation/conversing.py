"""Conversations of several turns: each is asked with the answers that the model itself gave before."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.data.benchmark_prompts import TURNS
from minillm.data.chat import ChatTemplate
from minillm.data.guarded import NONCHARACTERS
from minillm.data.prompts import template_of
from minillm.data.turns import so_far
from minillm.errors import StageError
from minillm.files import read_json
from minillm.generation.slots import Request
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.stages.reading import EncodedPrompts

Answer = tuple[list[int], bool]
"""Tokens, and whether they end with an end token."""


@dataclass(frozen=True)
class Conversations:
    """The conversations of one benchmark."""

    name: str
    rows: Sequence[dict[str, Any]]
    """A row for each turn, those of a conversation one after another, with what is said and the tools."""
    settings: EncodedPrompts
    """Template and limits."""
    tokenizer: SharedTokenizer

    def answer(
        self, requests: Sequence[Request], sample: Callable[[Sequence[Request]], list[Answer]]
    ) -> tuple[list[Request], list[Answer]]:
        """Answer turn by turn: all first turns, then all second ones.

        Args:
            requests: A request for every row, for one seed after another; prompts of later turns are not read.
            sample: Samples an answer to each of some requests.

        Returns:
            The requests as they were made, and their answers, in the same order.

        Raises:
            StageError: The template refuses what a model has answered, or a prompt becomes too long by it.
        """
        template = template_of(self.tokenizer.tokenizer, self.settings.template, self.tokenizer.ends)
        assert isinstance(template, ChatTemplate), "the stage `prompts` has refused others"
        made, answers, texts = list(requests), [([], False)] * len(requests), [""] * len(requests)
        for turn in range(max(row["turn"] for row in self.rows) + 1):
            places = [place for place in range(len(made)) if self.rows[place % len(self.rows)]["turn"] == turn]
            for place in places:
                prompt = made[place].prompt
                if turn:
                    prompt = self._prompt(template, place % len(self.rows), texts[place - turn : place])
                made[place] = replace(made[place], prompt=prompt, max_tokens=self.settings.answer_tokens)
            found = sample([made[place] for place in places])
            written = self.tokenizer.texts([tokens for tokens, _ in found])
            for place, answer, text in zip(places, found, written, strict=True):
                answers[place], texts[place] = answer, text
        return made, answers

    def _prompt(self, template: ChatTemplate, index: int, answers: Sequence[str]) -> list[int]:
        row, turn = self.rows[index], len(answers)
        said = [of["messages"] for of in self.rows[index - turn : index + 1]]
        # Models may write what no text has; templates refuse it.
        clean = [re.sub(f"[{''.join(NONCHARACTERS)}]", "\N{REPLACEMENT CHARACTER}", answer) for answer in answers]
        try:
            prompt = template.prompt(so_far(said, clean), row["tools"])[1]
        except ValueError as error:
            raise StageError(f"benchmark {self.name}, prompt {index}, after the model's answers: {error}") from error
        if len(prompt) > self.settings.max_prompt_tokens:  # broken characters may have more tokens when written again
            raise StageError(
                f"benchmark {self.name}, prompt {index}, has {len(prompt)} tokens after the model's answers, above the "
                f"{self.settings.max_prompt_tokens} that are allowed; raise evaluation.max_prompt_tokens"
            )
        return prompt


def load_conversations(directory: Path, tokenizer: SharedTokenizer) -> dict[str, Conversations]:
    """Load the conversations of every benchmark that has some, from the artifact of the stage `prompts`."""
    if not (directory / TURNS).exists():
        return {}
    stored = read_json(directory / TURNS)
    settings = EncodedPrompts.model_validate(stored["settings"])
    return {name: Conversations(name, rows, settings, tokenizer) for name, rows in stored["benchmarks"].items()}
