"""The talk: a message goes to every model, their answers are drawn in turn, a token each, and the next may follow."""

import contextlib
import dataclasses
import itertools
import signal
import sys
from collections.abc import Iterator, Sequence

from minillm.chat.display import Display
from minillm.chat.partner import Answer, Partner
from minillm.errors import StageError
from minillm.nearest import suggestion

PROMPT = "> "
STOPPED = "stopped"
COMMANDS = {
    "/reset": "begins a new conversation",
    "/system": "begins one with another message of the system: /system TEXT",
    "/quit": "leaves, as does Ctrl-D",
}


def converse(partners: Sequence[Partner], display: Display) -> None:
    """Answer messages from standard input, one a line, until it ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # `input` edits lines with it
    interactive = sys.stdin.isatty() and display.on_terminal
    if interactive:
        display.tell(" ".join(f"{name} {does}." for name, does in COMMANDS.items()) + " Ctrl-C stops an answer.\n")
    for turn in itertools.count():
        try:
            line = input(PROMPT if interactive else "").rstrip()
        except EOFError:
            break
        except KeyboardInterrupt:  # as in a shell: the line is dropped
            print()
            continue
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return
        try:
            if line.startswith("/"):
                display.tell(_command(partners, name, rest.strip()))
            elif line:
                answers = ask(partners, line, turn, display)
                display.leave(answers)
        except StageError as error:
            display.tell(f"{error}\n")
    if interactive:
        print()


def ask(partners: Sequence[Partner], message: str, turn: int, display: Display) -> list[Answer]:
    """Let every model answer a message; Ctrl-C stops those that have not ended.

    Args:
        partners: The models.
        message: Message of the user.
        turn: Its number.
        display: Where the answers are shown while they are drawn.

    Raises:
        StageError: One of them cannot be asked, so none is.
    """
    message = message.encode(errors="replace").decode()  # bytes that are no text reach Python as surrogates
    requests = [partner.request(message, turn) for partner in partners]
    streams = {
        place: partner.answer(message, request)
        for place, (partner, request) in enumerate(zip(partners, requests, strict=True))
    }
    answers = [Answer()] * len(partners)
    with _noted() as interrupts, display.live() as show:
        while streams and not interrupts:
            for place, drawn in list(streams.items()):
                answer = next(drawn, None)
                if answer is None:
                    del streams[place]
                else:
                    answers[place] = answer
            show(answers)
    for place, drawn in streams.items():
        drawn.close()
        if not answers[place].ended:
            answers[place] = dataclasses.replace(answers[place], note=STOPPED)
    return answers


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """Note Ctrl-C instead of raising an exception, which would leave half of a picture or of a step behind."""
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _command(partners: Sequence[Partner], name: str, rest: str) -> str:
    """Do what a line that begins with a slash says; return what was done."""
    if name not in COMMANDS:
        raise StageError(f"{name} is no command: {suggestion(name, COMMANDS)} (a message may begin with a blank)")
    if name == "/system" and not rest:
        raise StageError("/system needs a text: /system You are brief.")
    if name == "/system":
        for partner, template in zip(partners, [partner.template_with(rest) for partner in partners], strict=True):
            partner.template = template
    for partner in partners:
        partner.messages = []
    return "A new conversation.\n"
