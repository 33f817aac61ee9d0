"""Draw pairs of answers to the same prompt from the stored responses behind a report."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.annotation.judgements import Compared
from minillm.data.benchmarks import load_benchmarks
from minillm.errors import StageError
from minillm.evaluation.responses import read_responses
from minillm.files import read_json
from minillm.nearest import suggestion
from minillm.store.artifacts import CLOCKED
from minillm.store.manifest import MANIFEST, read_manifest, text_digest
from minillm.streams import Purpose, generator, stream

PAPER_BENCHMARK = "self_inst"
"""The benchmark that the paper's annotators were shown."""


@dataclass(frozen=True)
class Pair:
    """Answers of two methods to one prompt."""

    compared: Compared
    instruction: str
    context: str
    texts: tuple[str, str]
    """Answers of `compared.method` and of `compared.other`."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as far as the page and the judgements need it."""

    store: Path
    roles: Sequence[str]
    """Rows of its table; the first is the teacher."""
    compared: str
    """The method that its report compares with the others."""
    seed: int
    """First seed of the generation."""
    prompts: Mapping[str, Sequence[Mapping[str, Any]]]
    """Prompts by benchmark."""
    responses: Mapping[str, Path]
    """Folder of the stored responses of each method."""


def newest_report(store: Path) -> Path:
    """Return the report that was made last.

    Raises:
        StageError: The store has none.
    """
    reports = list(store.glob(f"artifacts/report-*/{MANIFEST}"))
    if not reports:
        raise StageError(f"there is no report in {store}; run `make demo` first, or give the path of a report.html")
    return max(reports, key=lambda path: path.stat().st_mtime).parent


def read_report(path: Path) -> FinishedRun:
    """Read the run behind a report, given its folder or its page.

    Raises:
        StageError: It is not the report of a finished run, or its inputs are gone.
    """
    folder = (path.parent if path.is_file() else path).resolve()
    if not (folder / MANIFEST).is_file() or not (folder / "results.json").is_file():
        raise StageError(f"{path} is not the report of a run; give the path of the report.html that the run printed")
    inputs = read_manifest(folder).inputs
    results = read_json(folder / "results.json")
    # in a store that was moved or copied they are still side by side
    places = {name: folder.parent / Path(artifact.path).name for name, artifact in inputs.items()}
    roles = list(results["tables"])
    needed = {name: places[name] for name in ("benchmarks", *(f"responses/{role}" for role in roles))}
    if missing := [str(place) for place in needed.values() if not place.is_dir()]:
        raise StageError(f"{path} was made from {', '.join(missing)}, which is gone; run its configuration again")
    prompts = load_benchmarks(needed.pop("benchmarks"))
    return FinishedRun(
        store=folder.parents[1],
        roles=roles,
        compared=results["compared"],
        seed=results["tables"][roles[0]]["seeds"][0],
        prompts={name: prompts[name] for name in results["benchmarks"]},
        responses={name.removeprefix("responses/"): place for name, place in needed.items()},
    )


def draw_pairs(
    run: FinishedRun, method: str | None, against: Sequence[str], benchmark: str | None, prompts: int, seed: int
) -> list[Pair]:
    """Draw prompts at random and pair their answers, in random order; more prompts of a seed include the fewer.

    Args:
        run: The run whose answers are compared.
        method: The method that wins or loses; by default the one that the report compares.
        against: The others; by default the first other student, or else the teacher.
        benchmark: By default the paper's or, if the run does not have it, the first.
        prompts: Number of prompts drawn; all if the benchmark has fewer.
        seed: Seed of the prompts drawn and of their order.

    Raises:
        StageError: The run has no such method or benchmark, or a method is compared with itself.
    """
    method = method or run.compared
    students_first = [role for role in (*run.roles[1:], run.roles[0]) if role != method]
    others = list(dict.fromkeys(against or students_first[:1]))
    benchmark = benchmark or (PAPER_BENCHMARK if PAPER_BENCHMARK in run.prompts else next(iter(run.prompts)))
    _require_known(run, [method, *others], benchmark)
    if method in others or not others:
        raise StageError(f"{method} is compared with itself; name another method in --against")
    rows = list(run.prompts[benchmark])
    draw = generator(stream(Purpose.ANNOTATED, seed))
    draw.shuffle(rows)
    pairs = [_pair(run, method, other, benchmark, row) for row in rows[:prompts] for other in others]
    draw.shuffle(pairs)
    return pairs


def _require_known(run: FinishedRun, methods: Sequence[str], benchmark: str) -> None:
    for role in methods:
        if role not in run.roles:
            raise StageError(f"the run has no method {role}; {suggestion(role, run.roles)}")
    if benchmark not in run.prompts:
        raise StageError(f"the run has no benchmark {benchmark}; {suggestion(benchmark, run.prompts)}")


def _pair(run: FinishedRun, method: str, other: str, benchmark: str, row: Mapping[str, Any]) -> Pair:
    index, seed = row["index"], run.seed
    text, its = (read_answers(run.responses[role], benchmark)[index, seed] for role in (method, other))
    digest = answers_digest(text, its)
    compared = Compared(benchmark=benchmark, index=index, seed=seed, method=method, other=other, answers=digest)
    return Pair(compared, row["instruction"], row["context"], (text, its))


read_answers = functools.cache(read_responses)
"""Responses of a file, which is read once however many pairs need it."""


def answers_digest(text: str, other_text: str) -> str:
    """Return the digest by which judged answers are recognised in a run."""
    return text_digest([text, other_text])[:16]


def mismatch(compared: Compared, responses: Mapping[str, Path]) -> str | None:
    """Say why judged answers are not among a run's; None if they are.

    Args:
        compared: The judged answers.
        responses: Folder of the stored responses of each method of the run.
    """
    for role in (compared.method, compared.other):
        if role not in responses:
            return f"the run has no method {role}; {suggestion(role, responses)}"
    names = [path.stem for path in responses[compared.method].glob("*.jsonl") if path.name not in CLOCKED]
    if compared.benchmark not in names:
        return f"the run has no benchmark {compared.benchmark}; {suggestion(compared.benchmark, names)}"
    texts = [
        read_answers(responses[role], compared.benchmark).get((compared.index, compared.seed))
        for role in (compared.method, compared.other)
    ]
    if texts[0] is None or texts[1] is None:
        return f"the run has no answer to prompt {compared.index} of {compared.benchmark} with seed {compared.seed}"
    if answers_digest(texts[0], texts[1]) != compared.answers:
        return (
            f"the answers of {compared.method} and {compared.other} to prompt {compared.index} of "
            f"{compared.benchmark} are not those that were judged"
        )
    return None
