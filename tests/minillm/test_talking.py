"""A person's messages to a student and its teacher: what they are asked, what is drawn, and what is seen of it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cli.app import app
from minillm.chat.display import Display, visible
from minillm.chat.partner import Partner, Settings, find_model
from minillm.chat.session import STOPPED, ask
from minillm.errors import StageError
from minillm.generation.drawing import Decoding
from tests.conftest import ROOT
from tests.manifests import write_manifest
from tests.minillm.talking import HELLO, random_model, scripted_model
from tests.minillm.templates import INSTRUCTIONS, TURNS
from tests.terminal import terminal

FOX = "A \N{FOX FACE}!"
RED = "Be \x1b[31mred\x1b[0m [bold]now[/bold]!"


def settings(**changes: Any) -> Settings:
    drawn = {"decoding": Decoding("greedy"), "seed": 3, "max_tokens": 40, "context": 128, "dtype": torch.float32}
    return Settings(**{**drawn, **changes})


def tokens(partner: Partner, messages: list[dict[str, str]]) -> Any:
    """Return a prompt as the tokenizer itself makes it."""
    return partner.shared.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def asked(partner: Partner, message: str) -> str:
    """Return the text of the next prompt."""
    return str(partner.shared.tokenizer.decode(list(partner.request(message, 0).prompt)))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted"), TURNS, FOX, RED)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("random"), TURNS)


def test_answers_are_those_of_the_sampler_alone_and_beside_each_other(scripted: Path, chatty: Path):
    drawn = settings(decoding=Decoding(temperature=0.8, top_p=0.9))
    partners = [Partner("student", scripted, drawn), Partner("teacher", chatty, drawn)]
    requests = [partner.request("Hello", 5) for partner in partners]
    answers = ask(partners, "Hello", 5, Display(["student", "teacher"]))
    for partner, request, answer in zip(partners, requests, answers, strict=True):
        (response,) = partner.sampler.sample([request])
        assert partner.shared.texts([response.tokens]) == [answer.text]
        assert answer.tokens == len(response.tokens)
        assert answer.note == ("" if response.finished else "cut at 40 tokens (--max-tokens)")
        assert request.prompt == tokens(partner, HELLO)
    assert len(answers[1].text) > 10
    again = [partner.sampler.sample([partner.request("Hello", 6)])[0].tokens for partner in partners]
    assert len(again[1]) > 0
    assert partners[1].request("Hello", 5).stream != partners[1].request("Hello", 6).stream


def test_an_end_token_ends_an_answer_and_no_character_is_shown_in_part(scripted: Path):
    partner = Partner("student", scripted, settings())
    drawn = list(partner.answer("Hello", partner.request("Hello", 0)))
    assert [answer.text for answer in drawn] == ["A", "A ", "A ", "A ", "A ", "A \N{FOX FACE}", FOX, FOX]
    assert [answer.tokens for answer in drawn] == list(range(1, 9))
    assert {answer.note for answer in drawn} == {""}


def test_the_second_message_follows_the_first_answer_as_the_template_writes_it(scripted: Path):
    partner = Partner("student", scripted, settings())
    first, second = (ask([partner], "Hello", turn, Display(["student"]))[0].text for turn in (0, 1))
    assert (first, second) == (FOX, RED)
    talk = [*HELLO, {"role": "assistant", "content": FOX}, *HELLO, {"role": "assistant", "content": RED}]
    assert partner.messages == talk
    wanted = tokens(partner, [*talk, {"role": "user", "content": "Thank you!"}])
    partner.context = 200
    assert partner.request("Thank you!", 2).prompt == wanted
    partner.context = len(wanted)
    with pytest.raises(StageError, match=rf"student: the conversation has {len(wanted)} tokens, and at most"):
        partner.request("Thank you!", 2)
    partner.context += 2
    *_, last = partner.answer("Thank you!", partner.request("Thank you!", 2))
    assert last.tokens == 2
    assert last.note.startswith(f"cut, since the conversation is full with {len(wanted) + 2} tokens")


def test_what_is_stopped_belongs_to_the_conversation(chatty: Path):
    class Impatient(Display):
        def live(self) -> Any:
            return _stopping()

    partner = Partner("student", chatty, settings())
    (answer,) = ask([partner], "Hello", 0, Impatient(["student"]))
    assert (answer.tokens, answer.note) == (3, STOPPED)
    assert partner.messages[1] == {"role": "assistant", "content": answer.text}


class _stopping:  # noqa: N801
    """Stands for a display at which somebody presses Ctrl-C after three tokens."""

    def __enter__(self) -> Any:
        def show(answers: Sequence[Any]) -> None:
            if answers[0].tokens == 3:
                signal.raise_signal(signal.SIGINT)

        return show

    def __exit__(self, *_: object) -> None:
        pass


def test_a_message_of_the_system(chatty: Path, tmp_path: Path):
    partner = Partner("student", chatty, settings(), "Be brief.")
    assert asked(partner, "Hello").startswith("<|start|>system\nBe brief.")
    assert "with the system message 'Be brief.'" in partner.words
    strict = random_model(tmp_path / "strict", INSTRUCTIONS, 64)
    with pytest.raises(StageError, match=r"teacher: .*'a': the chat template refuses it: only user"):
        Partner("teacher", strict, settings(), "Be brief.")


def test_without_a_chat_template_a_message_is_asked_as_trained_or_alone(tmp_path: Path):
    bare = random_model(tmp_path / "bare", "")
    partner = Partner("student", bare, settings())
    assert asked(partner, "Hello") == "Hello"
    assert "Without a chat template" in partner.words
    with pytest.raises(StageError, match="student is asked in a text, without a message of the system"):
        partner.template_with("Be brief.")
    trained = random_model(tmp_path / "store" / "artifacts" / "train-00000000" / "model", "")
    config = {"data": {"template": {"with_context": "{instruction} {context}?", "without_context": "{instruction}?"}}}
    write_manifest(trained.parent, "train", "0" * 64, config=config)
    partner = Partner("student", find_model("train-00000000", str(tmp_path / "store")), settings())
    ask([partner], "Hello", 0, Display(["student"]))
    assert asked(partner, "Hello") == "Hello?", "every message by itself"
    assert "Asked in the text that it was trained with" in partner.words


def test_a_model_that_was_pretrained_on_plain_text_is_asked_the_message_alone(tmp_path: Path):
    trained = random_model(tmp_path / "store" / "artifacts" / "train-00000000" / "model", "")
    write_manifest(trained.parent, "train", "0" * 64, config={"data": {"plain_text": {"path": "plain.txt"}}})
    partner = Partner("student", find_model("train-00000000", str(tmp_path / "store")), settings())
    assert asked(partner, "Hello") == "Hello"
    assert "Without a chat template" in partner.words


def test_a_model_that_is_not_there_is_named_with_what_is_near(tmp_path: Path):
    (tmp_path / "artifacts" / "model-0123456789abcdef").mkdir(parents=True)
    assert find_model("model-0123456789abcdef", str(tmp_path)).is_dir()
    with pytest.raises(StageError, match="did you mean `model-0123456789abcdef`"):
        find_model("model-0123456789abcde", str(tmp_path))
    with pytest.raises(StageError, match="/nowhere/model does not exist"):
        find_model("/nowhere/model", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\x1b[2Jb\x1b[1;31mc", "abc"),
        ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
        ("a\x1b[b\rc\x08d\x7f\x00e\x9b2Jf", "acde2Jf"),
        ("line\n\tend", "line\n\tend"),
        ("\u202etxt.exe\u2066", "txt.exe"),
        ("न\u200dमस्ते \N{FOX FACE}", "न\u200dमस्ते \N{FOX FACE}"),
    ],
)
def test_nothing_that_a_model_writes_controls_a_terminal(text: str, seen: str):
    assert visible(text) == seen


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "cli", "chat", "--temperature", "0", "--context", "128", *map(str, arguments)]


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**plain, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), input=said, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8"
    )


def test_once_answers_a_script(scripted: Path):
    done = run(scripted, scripted, "--once", "Hello")
    assert (done.returncode, done.stdout) == (0, f"student: {FOX}\nteacher: {FOX}\n")
    assert "student: 8 tokens, " in done.stderr
    assert "Asked in its own chat template. Its answers end with </s> or <|end|>." in done.stderr
    arguments = ["chat", str(scripted), "--once", "Hello", "--json", "--max-tokens", "2", "--temperature", "0"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)["student"]
    assert found.pop("seconds") > 0
    assert found == {"answer": "A ", "tokens": 2, "note": "cut at 2 tokens (--max-tokens)"}


def test_messages_from_a_pipe_are_one_conversation(scripted: Path):
    done = run(scripted, said="Hello\n\nHello\n/reset\nHello\n/quit\nHello\n")
    assert (done.returncode, done.stdout) == (0, f"{FOX}\n{RED}\n{FOX}\n")


def test_two_models_on_a_terminal(scripted: Path, tmp_path: Path):
    singer = scripted_model(tmp_path, TURNS, "la " * 160, positions=512)
    arguments = command(scripted, singer, "--context", "512", "--max-tokens", "450")
    with terminal(arguments, 100, 30, ROOT, environment()) as there:

        def ask(tokens: int) -> list[str]:
            """Say hello, stop the teacher when the student has ended, and return what is left below the message."""
            ended = f"student  {tokens} tokens"
            there.type("Hello\n")
            there.until(lambda screen: any(line.startswith(ended) for line in screen))
            there.type("\x03")
            screen = there.until(lambda screen: screen[-1:] == [">"] and any(STOPPED in line for line in screen))
            return screen[max(place for place, line in enumerate(screen) if line.startswith("student  ")) :]

        there.until(lambda screen: screen[-1:] == [">"])
        first = ask(8)
        assert re.fullmatch(r"student  8 tokens, .* a second +teacher  \d+ tokens, .* a second; stopped", first[0])
        assert re.fullmatch(f"{FOX} +la la .*", first[1])
        there.resize(40, 30)
        second = ask(32)
        assert second[1] == "Be red [bold]now[/bold]!"
        assert next(line.split()[0] for line in second[2:] if line) == "teacher", "below each other where it is narrow"
        there.type("/quit\n")
        assert there.wait() == 0
    assert "\x1b[31m" not in there.written
