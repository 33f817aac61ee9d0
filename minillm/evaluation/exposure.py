"""Stage `exposure`: excess error that a student's own mistakes cause, on stored responses (method.md §7, paper §3.3).

With k_t = KL[p(·|y_<t) ‖ q(·|y_<t)], teacher p and student q, exact over the vocabulary,
R(l) = Σ_{t≤l} E_{y∼q} k_t over the student's responses, l·ε(l) = Σ_{t≤l} E_{y∼p} k_t over the teacher's, and
ExAccErr(l) = (R(l) − l·ε(l)) / (l·ε(l)) × 100 %. The first token is t = 1: nothing precedes it, so both sums agree
there. A response that has ended adds nothing more.

Along with it come the mean KL[q ‖ p] of a token of the student's responses and the mean k_t of one of the teacher's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from minillm.data.rows import evenly
from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.evaluation.uncertainty import Estimate, interval, ratio_of_sums
from minillm.models.batches import Limit, groups, lengths_of, make_batch
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.output_head import output_head, response_hidden
from minillm.models.passes import in_step
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.objectives.divergences import forward_kl, reverse_kl
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Exposure
from minillm.worker.processes import gather_lists, process_group, rank, world_size
from minillm.worker.progress import Progress

CURVES = ("student_text", "teacher_text", "exaccerr")
"""R(l) and l·ε(l) in nats, and ExAccErr(l) in percent."""
ALIKE = 16
"""Responses whose lengths fall into the same interval of this many tokens are batched by prompt length."""


@process_group()
def run(job: Job[Exposure]) -> Summary:
    """Write exposure.json, the curves for l = 1 … max_length with their intervals; return their last values."""
    settings = job.settings
    texts = read_texts(job.inputs, settings)
    vocabulary = load_shared_tokenizer(job.inputs["tokenizer"]).entries
    student, teacher = (
        load_frozen(job.inputs[name], dtype_of(settings.precision), job.runtime) for name in ("student", "teacher")
    )
    progress = Progress(job.output, len(texts), "responses")
    mine = texts.iloc[rank() :: world_size()]
    divergences = gather_lists(
        token_divergences(
            student,
            teacher,
            vocabulary,
            mine["prompt_ids"].tolist(),
            mine["response_ids"].tolist(),
            Limit.of(job.runtime),
            lambda done: progress.log(min(done * world_size(), len(texts))),
        )
    )
    require_numbers(divergences, settings.role)
    forward, reverse = zip(*divergences, strict=True)
    sums = accumulated(forward, settings.max_length)
    of_student = (texts["author"] == "student").to_numpy()
    prompts = texts["index"].to_numpy()
    curves = measure(*(prompt_means(sums[rows], prompts[rows]) for rows in (of_student, ~of_student)))
    per_token = {
        "reverse_kl": token_mean(reverse, prompts, of_student),
        "forward_kl": token_mean(forward, prompts, ~of_student),
    }
    means = {name: {end: getattr(of, end) for end in ("value", "low", "high")} for name, of in per_token.items()}
    facts = {"benchmark": settings.benchmark, "prompts": len(set(prompts)), "responses": len(texts) // 2}
    if rank() == 0:
        write_atomically(job.output / "exposure.json", json.dumps({**facts, **curves, "per_token": means}))
    last = {f"{name}_{end}": values[-1] for name, curve in curves.items() for end, values in curve.items()}
    summary: Summary = {name.removesuffix("_value"): value for name, value in last.items()}
    return summary | {name: of.value for name, of in per_token.items()}


def read_texts(inputs: Mapping[str, Path], settings: Exposure) -> pd.DataFrame:
    """Read the responses of both models to the chosen prompts or first turns, cut at `max_length` tokens.

    Returns:
        Columns author (student or teacher), index (of the prompt), prompt_ids, response_ids.

    Raises:
        StageError: There are no responses to this benchmark, or the two models were not asked the same.
    """
    parts = {}
    for author, name in (("student", "responses"), ("teacher", "teacher_responses")):
        path = inputs[name] / f"{settings.benchmark}.parquet"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in inputs[name].glob("*.parquet"))) or "none"
            raise StageError(
                f"the {author}'s responses have no benchmark {settings.benchmark}, but {known}; "
                "name one of these in evaluation.exposure_bias.benchmark"
            )
        parts[author] = pd.read_parquet(path).query("turn == 0")  # at later ones, each has its own answers before it
    asked = [set(zip(of["index"], of["seed"], of["prompt_ids"].map(tuple), strict=True)) for of in parts.values()]
    if asked[0] != asked[1]:
        raise StageError(
            f"benchmark {settings.benchmark}: student and teacher were not asked the same, the first difference is at "
            f"prompt {min(index for index, *_ in asked[0] ^ asked[1])}; generate both with the same template, "
            "tokenizer, limit and seeds"
        )
    chosen = evenly(sorted({index for index, *_ in asked[0]}), settings.prompts)
    texts = pd.concat([part.assign(author=author) for author, part in parts.items()], ignore_index=True)
    texts = texts.loc[texts["index"].isin(chosen)].reset_index(drop=True)
    return texts.assign(response_ids=texts["response_ids"].map(lambda ids: ids[: settings.max_length]))


@torch.no_grad()
def token_divergences(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    vocabulary: int,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    limit: Limit,
    report: Callable[[int], None] = lambda done: None,
) -> list[NDArray[np.float64]]:
    """Return k_t = KL[p ‖ q] and KL[q ‖ p] of the next-token distributions at every token of each response.

    Args:
        student: q, in evaluation mode.
        teacher: p, in evaluation mode.
        vocabulary: Entries of the tokenizer; further rows of the models are padding.
        prompts: Token ids.
        responses: Token ids, end tokens included.
        limit: Most of one forward pass.
        report: Called with the number of finished responses.

    Returns:
        (2, T) nats for each response of T tokens.
    """
    # Prompts are padded on the left and responses on the right, so both lengths should be alike within a batch.
    order = sorted(range(len(prompts)), key=lambda i: (len(responses[i]) // ALIKE, len(prompts[i])), reverse=True)
    found: dict[int, NDArray[np.float64]] = {}
    with in_step(student, teacher):
        for rows in groups(order, lengths_of(prompts, responses), limit, processes=1):
            batch = make_batch([prompts[i] for i in rows], [responses[i] for i in rows]).to(student.device)
            hidden = response_hidden(student, batch)  # (N, H), N the real response tokens of the batch
            other = Teacher(response_hidden(teacher, batch), output_head(teacher, vocabulary))
            tokens = batch.response[batch.response_mask]  # (N,), which divergences do not depend on

            head = output_head(student, vocabulary)
            terms = [
                head_loss(hidden, head, tokens, lambda terms, part: terms.divergence, divergence, other)[1]
                for divergence in (forward_kl, reverse_kl)
            ]
            both = torch.stack([of.divergence for of in terms])  # (2, N)
            ends = np.cumsum([len(responses[i]) for i in rows])[
                :-1
            ]  # (rows − 1,), where one response gives way to the next
            found |= dict(zip(rows, np.split(both.double().cpu().numpy(), ends, axis=1), strict=True))
            report(len(found))
    return [found[i] for i in range(len(prompts))]


def require_numbers(divergences: Sequence[NDArray[np.float64]], role: str) -> None:
    """Refuse divergences that are not numbers, since their sums would not be either.

    Raises:
        StageError: Some are not; the message says on how many responses.
    """
    if lost := sum(bool(np.isnan(of).any()) for of in divergences):
        raise StageError(
            f"the divergence of {role} from its teacher is not a number on {lost} of {len(divergences)} responses; "
            "set evaluation.precision: float32 or look at the weights of both"
        )


def accumulated(divergences: Sequence[NDArray[np.float64]], max_length: int) -> NDArray[np.float64]:
    """Return Σ_{t≤l} k_t of each response, (N, max_length), for l = 1 … max_length."""
    steps = np.zeros((len(divergences), max_length))  # zero after the end: a response that has ended adds nothing
    for row, values in zip(steps, divergences, strict=True):
        row[: len(values)] = values[:max_length]
    return steps.cumsum(axis=1)  # (N, max_length)


def prompt_means(sums: NDArray[np.float64], prompts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average over the responses to each of n prompts, (max_length, n), in the order of the prompts' numbers.

    Args:
        sums: Sums of each response, (N, max_length).
        prompts: Number of the prompt that each response answers, (N,).
    """
    return np.stack([sums[prompts == prompt].mean(axis=0) for prompt in np.unique(prompts)], axis=1)


def token_mean(
    divergences: Sequence[NDArray[np.float64]], prompts: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> Estimate:
    """Estimate the mean over the tokens of the chosen responses.

    Args:
        divergences: Nats at each token of each response.
        prompts: Number of the prompt that each response answers, (N,).
        chosen: Responses that count, (N,).
    """
    sums = np.array([(of.sum(), len(of)) for of in divergences])  # (N, 2)
    return ratio_of_sums(
        [np.stack([sums[chosen & (prompts == prompt)].sum(axis=0) for prompt in np.unique(prompts)]).T]
    )


def curves_of(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R, l·ε and ExAccErr, (…, 3, L), from the mean sums on the student's and teacher's text, (…, 2, L)."""
    of_student, of_teacher = np.moveaxis(means, -2, 0)  # (…, L) each
    more = of_student - of_teacher  # (…, L)
    # A student that equals its teacher has no error to exceed.
    excess = np.divide(more, of_teacher, out=np.zeros_like(more), where=more != 0)
    return np.stack([of_student, of_teacher, 100 * excess], axis=-2)


def measure(student_text: NDArray[np.float64], teacher_text: NDArray[np.float64]) -> dict[str, dict[str, list[float]]]:
    """Return value, low and high of each curve by l; too few prompts give no interval, so no low and high.

    Args:
        student_text: Σ_{t≤l} k_t on the student's responses, averaged over each prompt's responses, (L, n).
        teacher_text: The same on the teacher's responses to the same prompts, (L, n).
    """
    sums = np.stack([student_text, teacher_text]).transpose(2, 0, 1)  # (n, 2, L)
    found = {"value": curves_of(sums.mean(axis=0))}
    ends = interval(sums, curves_of)
    if ends is not None:
        found |= dict(zip(("low", "high"), ends, strict=True))
    return {name: {end: of[row].tolist() for end, of in found.items()} for row, name in enumerate(CURVES)}
