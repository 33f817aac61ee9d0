"""Command that lets a person talk to a model, and to a second one beside it."""

from typing import Annotated, Literal

import typer

from cli.options import STORE, Store, examples, new_app
from minillm.worker.startup import let_threads_sleep

app = new_app()


@app.command(
    epilog=examples(
        ("minillm chat models/mine", "type messages, read the answers"),
        ("minillm chat model-3f2a91c0e5d6a7b8 models/teacher", "student and teacher side by side"),
        ('minillm chat models/mine --once "Why is the sky blue?"', "one answer, for scripts"),
    )
)
def chat(
    student: Annotated[
        str,
        typer.Argument(metavar="STUDENT", help="Model directory, or a model in the store by its name there."),
    ],
    teacher: Annotated[
        str | None, typer.Argument(metavar="TEACHER", help="A second one, with its own tokenizer and template.")
    ] = None,
    once: Annotated[
        str | None, typer.Option(metavar="MESSAGE", help="Answer this message and leave.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: a line of JSON.")] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Message of the system, in place of the trained one.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Divisor of the logits; 0 takes the likeliest token.")
    ] = 1.0,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this total probability.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 32) - 1, help="Same seed and messages, same answers.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="COUNT", help="Longest answer, in tokens.")] = 512,
    context: Annotated[
        int, typer.Option(min=2, metavar="COUNT", help="Longest conversation with its answer, in tokens.")
    ] = 2048,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Precision of the weights, instead of the stored one.")
    ] = None,
    store: Store = STORE,
) -> None:
    """Talk to a student, and to its teacher beside it.

    Answers are drawn as in the evaluation, from the model's own template to one of its end tokens. A chat template
    sees the conversation so far, and each model its own answers; a text template sees each message by itself.
    """
    if as_json and once is None:
        raise typer.BadParameter("it goes with --once", param_hint="--json")
    if once is not None and not once.strip():
        raise typer.BadParameter("the message is empty", param_hint="--once")
    if 0 < temperature < 0.01 or top_p == 0:
        raise typer.BadParameter(
            "too small; 0 as the temperature takes the likeliest token", param_hint="--temperature or --top-p"
        )
    let_threads_sleep()
    from minillm.chat.display import Display
    from minillm.chat.partner import Partner, Settings, find_model
    from minillm.chat.session import STOPPED, ask, converse
    from minillm.generation.drawing import Decoding
    from minillm.models.causal_lm import DTYPES

    decoding = Decoding(temperature=temperature, top_p=top_p) if temperature else Decoding("greedy")
    settings = Settings(decoding, seed, max_tokens, context, DTYPES[dtype] if dtype else "auto")
    places = {"student": student, "teacher": teacher}
    found = {label: find_model(place, store) for label, place in places.items() if place is not None}
    partners = [Partner(label, directory, settings, system) for label, directory in found.items()]
    display = Display(list(found))
    for partner in partners:
        display.tell(partner.words)
    if once is None:
        converse(partners, display)
        return
    answers = ask(partners, once, 0, display)
    (display.leave_json if as_json else display.leave)(answers)
    if any(answer.note == STOPPED for answer in answers):
        raise typer.Exit(130)
