"""One of the models that are talked to: how it is asked, what ends its answers, and the conversation so far."""

import functools
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from minillm.config import Template
from minillm.data.chat import ChatTemplate
from minillm.data.conversations import Message
from minillm.data.prompts import template_of
from minillm.data.text_template import TextTemplate
from minillm.errors import StageError
from minillm.files import local_path, require_readable
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.causal_lm import load_model, model_directory
from minillm.models.shared_tokenizer import named_end_tokens, share
from minillm.models.weight_files import require_fitting_weights
from minillm.nearest import suggestion
from minillm.preparation.architecture_check import require_faithful
from minillm.preparation.model_checks import build_skeleton, inspect_model, require_loadable
from minillm.preparation.tokenizer_checks import load_original_tokenizer, require_end
from minillm.store.manifest import read_manifest
from minillm.streams import Purpose, stream
from minillm.words import counted, number, short_count
from minillm.worker.processes import device

MESSAGE_ALONE = Template(without_context="{instruction}")
"""Template of a model that comes with none."""


@dataclass(frozen=True)
class Settings:
    """Settings that answers are drawn with."""

    decoding: Decoding
    seed: int
    max_tokens: int
    """Longest answer, in tokens."""
    context: int
    """Longest conversation with its answer, in tokens."""
    dtype: torch.dtype | Literal["auto"]
    """Precision of the weights."""


@dataclass(frozen=True)
class Answer:
    """An answer as far as it is drawn."""

    text: str = ""
    """Only whole characters."""
    tokens: int = 0
    """The end token included."""
    seconds: float = 0.0
    """Time that the model took, the prompt included."""
    ended: bool = False
    note: str = ""
    """Why it ended, unless with an end token."""

    @property
    def words(self) -> str:
        """Length, speed and end."""
        speed = f", {number(self.tokens / self.seconds)} a second" if self.tokens else ""
        return f"{counted(self.tokens, 'token')}{speed}{self.note and f'; {self.note}'}"


class Partner:
    """A model, the template that it is asked in, and its side of the conversation."""

    def __init__(self, label: str, directory: Path, settings: Settings, system: str | None = None) -> None:
        """Read and check everything but the values of the weights.

        Args:
            label: Name of the model on the screen and in errors.
            directory: Model directory or artifact with a model.
            settings: How answers are drawn.
            system: Message of the system, in place of the one that the model was trained with.

        Raises:
            StageError: It is no model that can be generated from here, or its template has no place for the system.
        """
        self.label, self.directory, self.settings = label, model_directory(directory), settings
        fields = require_loadable(label, self.directory)
        tokenizer = load_original_tokenizer(self.directory, label)
        require_end(tokenizer, self.directory, label)
        self.shared = share(tokenizer, named_end_tokens(self.directory))
        self.recorded = recorded_template(self.directory)
        self.choice = self.recorded or (Template() if tokenizer.chat_template else MESSAGE_ALONE)
        self.template = self.template_with(system)
        self.messages: list[Message] = []
        config, skeleton = build_skeleton(label, self.directory, self.shared.entries)
        require_fitting_weights(label, self.directory, fields, skeleton)
        self.facts = inspect_model(label, config, skeleton, self.shared.entries)
        self.context = min(settings.context, self.facts.positions or settings.context)
        require_faithful(label, config, skeleton, self.context, "--context")

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The sampler of every stage, on this process's device; the first use loads the weights."""
        model = load_model(self.directory, self.settings.dtype).to(device()).eval()  # type: ignore[arg-type]
        return Sampler(model, self.shared.ends, self.shared.entries, self.settings.decoding, batch_size=1)

    def template_with(self, system: str | None) -> TextTemplate | ChatTemplate:
        """Return the model's template, with another message of the system if one is given.

        Raises:
            StageError: The template has no place for it, or cannot be used at all.
        """
        choice = self.choice if system is None else self.choice.model_copy(update={"system": system})
        if system is not None and (choice.chat is False or choice.has_text or not self.shared.tokenizer.chat_template):
            raise StageError(f"{self.label} is asked in a text, without a message of the system; leave it out")
        try:
            template = template_of(self.shared.tokenizer, choice, self.shared.ends)
            template.prompts([("a", "")])
        except StageError as error:
            raise StageError(f"{self.label}: {error}") from error
        return template

    def request(self, message: str, turn: int) -> Request:
        """Return what to sample for the next answer.

        Args:
            message: Message of the user.
            turn: Number of the message, part of the name of the answer's random stream.

        Raises:
            StageError: The conversation is full, or the template refuses the message.
        """
        try:
            prompt = self._prompt([*self.messages, _said("user", message)])
        except ValueError as error:
            raise StageError(f"{self.label}: {error}") from error
        if len(prompt) >= self.context:
            raise StageError(
                f"{self.label}: the conversation has {len(prompt)} tokens, and at most {self.context} fit with the "
                "answer (--context, up to what the model has positions for); /reset begins a new one"
            )
        longest = min(self.settings.max_tokens, self.context - len(prompt))
        return Request(prompt, longest, stream(Purpose.CHAT, self.settings.seed, turn))

    def answer(self, message: str, request: Request) -> Generator[Answer]:
        """Yield the answer after each of its tokens; as far as it came, it belongs to the conversation."""
        answer, seconds, before = Answer(), 0.0, time.perf_counter()
        try:
            for response in self.sampler.stream(request):
                tokens = len(response.tokens)
                seconds += time.perf_counter() - before
                (text,) = self.shared.texts([response.tokens])
                cut = not response.finished and tokens == request.max_tokens
                if not (response.finished or cut):  # the last character may still lack some of its bytes
                    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
                note = self._cut(request) if cut else ""
                answer = Answer(text, tokens, seconds, response.finished or cut, note)
                yield answer
                before = time.perf_counter()
        finally:
            if answer.tokens:
                self.messages += [_said("user", message), _said("assistant", answer.text)]

    def _cut(self, request: Request) -> str:
        if request.max_tokens == self.settings.max_tokens:
            return f"cut at {request.max_tokens} tokens (--max-tokens)"
        return f"cut, since the conversation is full with {self.context} tokens (--context); /reset begins a new one"

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Return the tokens of a conversation; a text template knows of one message only."""
        if isinstance(self.template, ChatTemplate):
            return self.template.prompt(messages)[1]
        ((_, ids),) = self.template.prompts([(messages[-1]["content"], "")])
        return ids

    @property
    def words(self) -> str:
        """Description of the model, of how it is asked, and of what ends its answers."""
        dtype = str(self.sampler.model.dtype).removeprefix("torch.")
        ends = " or ".join(str(self.shared.tokenizer.convert_ids_to_tokens(end)) for end in self.shared.ends)
        return (
            f"{self.label}: {self.directory}, {short_count(self.facts.parameters)} weights in {dtype} on {device()}. "
            f"{self._template_words}. Its answers end with {ends}."
        )

    @property
    def _template_words(self) -> str:
        if isinstance(self.template, ChatTemplate):
            system = "" if self.template.system is None else f", with the system message {self.template.system!r}"
            given = ", ".join(f"{name}={value!r}" for name, value in self.template.variables.items())
            return f"Asked in its own chat template{system}{given and f', with {given}'}"
        if self.recorded is not None:
            return "Asked in the text that it was trained with, every message by itself"
        return "Without a chat template, or a record of a text that it was trained with: every message is all it sees"


def find_model(place: str, store: str) -> Path:
    """Return the directory of a model: the one that is named or, by its name in a store, an artifact.

    Raises:
        StageError: There is neither.
    """
    path, artifacts = local_path(place), local_path(store) / "artifacts"
    if path.exists() or "/" in place or not artifacts.is_dir():
        require_readable(path)
        return path
    known = [folder.name for kind in ("model", "train") for folder in artifacts.glob(f"{kind}-*")]
    if place not in known:
        raise StageError(
            f"{place} is neither a directory here nor a model in {store} (`minillm store ls` has their names); "
            f"{suggestion(place, known)}"
        )
    return artifacts / place


def recorded_template(directory: Path) -> Template | None:
    """Return the template that a run of this project trained a model in; None if its directory has no record.

    The record is the manifest of the artifact, which an exported directory has inside and a trained one around it. A
    model that was pre-trained on plain text alone has none in it.
    """
    for folder in (directory, directory.parent):
        with suppress(StageError):
            template = (read_manifest(folder).config.get("data") or {}).get("template")
            return None if template is None else Template.model_validate(template)
    return None


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}
