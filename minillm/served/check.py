"""Stage `served_teacher`: whether an endpoint answers, has our tokens, and tells what methods read, before all else."""

from pathlib import Path

from minillm.data.encoding import encode_texts
from minillm.data.prompts import template_of
from minillm.data.rows import user_message
from minillm.endpoints.client import EndpointError, RefusedError
from minillm.errors import StageError
from minillm.files import write_json
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.preparation.tokenizer_checks import PROBE
from minillm.served.chat import Chat, RemoteModel
from minillm.served.scoring import Given, Scorer
from minillm.stages.base import Job, Summary
from minillm.stages.served import SERVED, CheckTeacher
from minillm.words import counted
from minillm.worker.progress import Progress

SERVERS = "docs/served-teacher.md names servers that tell log-probabilities of given text, and how they are started"
QUESTION = "Say yes."
TOLERANCE = 0.1
"""Largest difference, in nats, between what is told of one place in two ways; servers round, and batch differently."""
TRIES = 5
"""Beginnings of the probe that are tried until one is continued with an ordinary token."""


def run(job: Job[CheckTeacher]) -> Summary:
    """Write teacher.json.

    Raises:
        StageError: The endpoint denies access, has other tokens, or does not tell what is asked for.
    """
    settings = job.settings
    teacher = RemoteModel(settings.endpoint, job.runtime.store)
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    require_answer(teacher, job.output, max_tokens=8)
    if settings.log_probs is not None:
        _require_log_probs(teacher, shared, settings)
    write_json(Path(job.output) / SERVED, teacher.identity)
    return {**teacher.bill.figures(settings.endpoint.prices)}


def require_answer(model: RemoteModel, output: Path, max_tokens: int) -> None:
    """Require an answer to a plain question.

    Raises:
        StageError: There is none, or the endpoint denies access.
    """
    question, endpoint = user_message(QUESTION, ""), model.endpoint
    try:
        (said,) = model.say([Chat(question, max_tokens, seed=0)], Progress(output, 1, "questions").log)
    except EndpointError as error:  # nothing has begun, and a retry would wait as long again
        raise StageError(f"{error} Start its server, or see {endpoint.field}.base_url") from error
    if isinstance(said, str):
        raise StageError(f"{endpoint.base_url}: a plain chat question is {said}; see {endpoint.field}")


def _require_log_probs(teacher: RemoteModel, shared: SharedTokenizer, settings: CheckTeacher) -> None:
    """Require the probe's tokens to be ours, and their log-probabilities to be in the right places."""
    assert settings.log_probs is not None
    ((_, prompt),) = template_of(shared.tokenizer, settings.template, shared.ends).prompts([(PROBE, "")])
    tokens = [*prompt, *encode_texts(shared.tokenizer, [PROBE])[0]]
    scorer = Scorer(teacher, shared, settings.by_ids)

    def given(end: int) -> Given:
        return Given(tokens[:end], range(len(prompt), end), settings.log_probs or 1, "the probe text")

    try:
        places = scorer.probe(given(len(tokens))).scored(given(len(tokens)))
        if places is None:
            raise StageError(
                f"{settings.endpoint.base_url} answers without log-probabilities of all tokens of given text; use a "
                f"method that reads its text alone (seqkd), or another server: {SERVERS}"
            )
        if not all(of.likeliest for of in places):
            raise StageError(f"{settings.endpoint.base_url} tells no likely tokens of given text; {SERVERS}")
        told, wanted = max(len(of.likeliest) for of in places), min(settings.log_probs, shared.entries)
        if told < wanted:
            raise StageError(
                f"{settings.endpoint.base_url} tells {counted(told, 'likely token')} of a place in given text, and "
                f"{wanted} were asked for; let it tell more (vLLM: --max-logprobs), or lower teacher.knowledge.top.k"
            )
        for end in _ends(shared, tokens, len(prompt)):
            following = scorer.probe(given(end)).following
            if following is not None:
                _require_same(following, max(of for _, of in places[end - len(prompt)].likeliest), end, settings)
                return
    except (RefusedError, EndpointError) as error:
        what = "no token ids, which on_policy sends," if settings.by_ids else "no text"
        raise StageError(
            f"{settings.endpoint.base_url} takes {what} to tell log-probabilities of: {error}; use a method that "
            f"reads its text alone (seqkd), or another server: {SERVERS}"
        ) from error
    raise StageError(f"{settings.endpoint.base_url} does not continue the probe text, so nothing can be compared")


def _ends(shared: SharedTokenizer, tokens: list[int], prompt: int) -> list[int]:
    """Return places in the probe at which its beginning, as text, has the same tokens."""
    places = range(prompt + 1, len(tokens))
    texts = [str(shared.tokenizer.decode(tokens[prompt:place])) for place in places]
    again = encode_texts(shared.tokenizer, texts)
    return [place for place, ids in zip(places, again, strict=True) if ids == tokens[prompt:place]][:TRIES]


def _require_same(following: float, told: float, place: int, settings: CheckTeacher) -> None:
    """Require a place to be told of alike in the text's middle and at its end: some servers are one place off."""
    if abs(following - told) > TOLERANCE:
        raise StageError(
            f"{settings.endpoint.base_url}: the likeliest token at place {place} of the probe text has log-probability "
            f"{told:.3f}, but {following:.3f} where the text ends before it; the server's places are off. {SERVERS}"
        )
