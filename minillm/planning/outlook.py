"""Teacher and student on the same validation rows, as the verdict of a plan needs them: one record for each row."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.config import Metric, Runtime
from minillm.data.filtering import shown_examples
from minillm.data.learnt_turns import prompts_of
from minillm.data.rows import evenly
from minillm.files import write_json
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.metrics.by_name import METRICS_BY_NAME, UNSEEN_SHARE
from minillm.models.batches import lengths_of, make_batch
from minillm.models.causal_lm import model_directory
from minillm.models.output_head import output_head, response_hidden
from minillm.models.passes import in_step
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.objectives.agreement import CHUNK_TOKENS, entropy, top_overlap
from minillm.patterns import without
from minillm.planning.clock import agreed
from minillm.planning.extrapolation import Effort, Line
from minillm.planning.outlook_figures import MODELS, TOP
from minillm.planning.own_ways import own_ways
from minillm.planning.work import forward_operations
from minillm.stages.measuring import Outlook
from minillm.streams import Purpose, stream
from minillm.worker.processes import gather_lists, rank, world_size

if TYPE_CHECKING:
    from minillm.planning.timing import Measurement

KINDS = 6
"""Shares of the measuring time that the comparison may take; each kind of work that is timed takes one."""
ROWS = 50
"""Validation rows that are compared, if there is time."""
ANSWER_TOKENS = 128
"""Tokens of a response after which it is stopped, where there is no time for as many as the run lets it have."""
ROWS_AT_ONCE = (16, 8, 4)
"""Rows that go through both models before the clock is looked at: as many as there is probably time for."""
Record = dict[str, float]


def write_outlook(measurement: "Measurement", times: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Write outlook.json: some rows as they are learnt and, if it is asked for, the comparison of the models.

    Args:
        measurement: With both models as they were loaded.
        times: Its lines for both, which tell how many rows there is time for.
    """
    job, settings, shared = measurement.job, measurement.settings.outlook, measurement.shared
    found: dict[str, Any] = {"shown": shown_examples(job.inputs["examples"] / "train.parquet", shared.tokenizer)}
    if settings is not None:
        rows = prompts_of(pd.read_parquet(job.inputs["examples"] / "validation.parquet"))
        ends = {int(ids[-1]) for ids in rows["response_ids"]}
        folders = {name: model_directory(job.inputs[name]) for name in MODELS}
        ways = {name: own_ways(folder, shared, settings.template, ends) for name, folder in folders.items()}
        metric = settings.metric or metric_for(rows["response"].tolist())
        share = agreed(measurement.budget.share(KINDS))
        wanted = [(ROWS_AT_ONCE[0], settings.max_tokens), *((n, ANSWER_TOKENS) for n in ROWS_AT_ONCE)]
        fitting = (of for of in wanted if agreed(_expected(measurement, times, *of)) <= share)
        at_once, answer_tokens = next(fitting, (0, 0))
        models = {name: measurement.models[name] for name in MODELS}
        pair = Pair(models, shared, settings, metric, job.runtime, answer_tokens)
        measurement.say(f"comparing teacher and student for {share if at_once else 0:.0f} s at most")
        with in_step(*pair.models.values()):  # the processes have as many rows as there is time for
            mine = pair.compare(rows, at_once, share) if at_once else []
        found["records"] = [record for part in gather_lists([mine]) for record in part]
        found["ways"] = {name: way.model_dump() for name, way in ways.items() if way is not None}
        found["metric"] = metric
    if rank() == 0:
        write_json(job.output / "outlook.json", found)


def _expected(
    measurement: "Measurement", times: Mapping[tuple[str, str], Mapping[str, Any]], rows: int, tokens: int
) -> float:
    """Probable seconds of comparing some rows, each answered with so many tokens."""
    seconds, prompt, response = 0.0, measurement.prompt, measurement.response
    for (name, _), measured in times.items():
        facts = measurement.facts[name]
        at_once = measurement.runtime.rows_at_once(prompt + response)
        read = Effort(rows / at_once, forward_operations(facts, rows, prompt, response))
        answered = Effort(tokens, forward_operations(facts, rows, prompt, tokens))
        seconds += Line(**measured["scoring"]).at(read).value + Line(**measured["generating"]).at(answered).value
    return seconds


@dataclass(frozen=True)
class Pair:
    """The two models, and how they are asked."""

    models: Mapping[str, PreTrainedModel]
    """`teacher` and `student`, in evaluation mode."""
    shared: SharedTokenizer
    settings: Outlook
    metric: Metric
    runtime: Runtime
    answer_tokens: int
    """Tokens of a response after which it is stopped, if the run lets it have more."""

    def compare(self, rows: pd.DataFrame, at_once: int, seconds: float) -> list[Record]:
        """Measure this process's rows while there is time.

        Args:
            rows: Validation rows, as `minillm.data.learnt_turns.prompts_of` returns them.
            at_once: One of `ROWS_AT_ONCE`; so many are measured in any case.
            seconds: Time to spend.

        Returns:
            What `measure` returns for each row.
        """
        number, parts = self.settings.part * world_size() + rank(), self.settings.parts * world_size()
        mine = rows.iloc[evenly(range(len(rows)), ROWS)[number::parts]]
        mine = mine.iloc[mine["response_ids"].map(len).argsort(kind="stable")]  # a slice has short and long ones
        slices, ends, expected = -(-len(mine) // at_once), time.monotonic() + seconds, 0.0
        records: list[Record] = []
        for first in range(slices):
            began = time.monotonic()
            if first and began + expected > ends:
                break
            records += self.measure(mine.iloc[first::slices])
            expected = time.monotonic() - began
        return records

    def measure(self, rows: pd.DataFrame) -> list[Record]:
        """Run both models over the references, and let both answer.

        Returns:
            For each row `tokens` of the reference, sums over them (NAME_loss, NAME_entropy in nats, shared_K,
            NAME_mass_K), NAME_end (probability of the reference's last token), and of the model's own response
            NAME_score (0–100), NAME_response (tokens), NAME_cut (1 if it did not end within the run's limit),
            NAME_stopped (1 if it was stopped before that limit) and NAME_longest (tokens that it may have had without
            that). K is one of `TOP`.
        """
        records: list[Record] = []
        lengths = lengths_of(rows["prompt_ids"], rows["response_ids"])
        at_once = self.runtime.rows_at_once(max(map(sum, lengths)))
        for start in range(0, len(rows), at_once):
            records += self._read(rows.iloc[start : start + at_once])
        for name in self.models:
            for record, answered in zip(records, self._answers(name, rows), strict=True):
                record |= {f"{name}_{figure}": value for figure, value in answered.items()}
        return records

    @torch.no_grad()
    def _read(self, rows: pd.DataFrame) -> list[Record]:
        batch = make_batch(rows["prompt_ids"].tolist(), rows["response_ids"].tolist())
        batch = batch.to(next(iter(self.models.values())).device)
        tokens = batch.response[batch.response_mask]  # (N,), N the tokens of all references
        hidden = {name: response_hidden(model, batch) for name, model in self.models.items()}  # (N, H) each
        heads = {name: output_head(model, self.shared.entries) for name, model in self.models.items()}
        parts = []
        for start in range(0, len(tokens), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logs = {n: heads[n].logits(hidden[n][part]).contiguous().log_softmax(dim=-1) for n in heads}  # (n, V) each
            parts.append(token_figures(logs["teacher"], logs["student"], tokens[part]))
        columns = {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}  # (N,) each
        lengths = [len(response) for response in rows["response_ids"]]
        found = [Record(tokens=float(length)) for length in lengths]
        for name, column in columns.items():
            for record, values in zip(found, column.split(lengths), strict=True):
                record[name] = float(values.sum())
                if name.endswith("_loss"):
                    record[name.replace("_loss", "_end")] = float((-values[-1]).exp())
        return found

    def _answers(self, name: str, rows: pd.DataFrame) -> list[Record]:
        # The random numbers of a validation in training, so that figures can be compared with its own.
        limits = [self.settings.max_tokens - len(prompt) for prompt in rows["prompt_ids"]]
        requests = [
            Request(prompt, min(self.answer_tokens, limit), stream(Purpose.VALIDATION_RESPONSES, 0, *place))
            for prompt, limit, place in zip(rows["prompt_ids"], limits, rows["place"], strict=True)
        ]
        model, size = self.models[name], self.runtime.generation_batch_size
        responses = Sampler(model, self.shared.ends, self.shared.entries, batch_size=size).sample(requests)
        texts = map(self._compared, self.shared.texts([of.tokens for of in responses]))
        references, metric = map(self._compared, rows["response"]), METRICS_BY_NAME[self.metric].compare
        records: list[Record] = []
        for text, reference, of, limit in zip(texts, references, responses, limits, strict=True):
            length, stopped = len(of.tokens), not of.finished and len(of.tokens) < limit
            records.append(
                Record(
                    score=100 * metric(text, [reference]),
                    response=float(length),
                    cut=float(not of.finished and not stopped),
                    stopped=float(stopped),
                    longest=float(limit if stopped else length),
                )
            )
        return records

    def _compared(self, text: str) -> str:
        """Return what is compared of a text."""
        return text if self.settings.strip is None else without(self.settings.strip, text)


def metric_for(references: Sequence[str]) -> Metric:
    """Return the first metric that sees nearly all references."""
    enough = (1 - UNSEEN_SHARE) * len(references)
    for name, metric in METRICS_BY_NAME.items():
        if metric.reads is None and sum(bool(metric.sees(text)) for text in references) >= enough:
            return name
    return "exact_match"


def token_figures(teacher_log: Tensor, student_log: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Return loss, entropy, shared top tokens and mass at each token, (n,) each; see `Pair.measure`.

    Args:
        teacher_log: Log-probabilities, (n, V).
        student_log: Log-probabilities, (n, V).
        tokens: Tokens of the references, (n,).
    """
    logs = {"teacher": teacher_log, "student": student_log}
    likeliest = {name: log.topk(min(max(TOP), log.shape[-1])).indices for name, log in logs.items()}  # (n, 20) each
    figures = {f"shared_{k}": top_overlap(student_log, teacher_log, k) for k in TOP}
    for name, other in (("teacher", "student"), ("student", "teacher")):
        on_top = logs[name].gather(-1, likeliest[other]).exp().cumsum(dim=-1)  # (n, 20), of the k likeliest at k − 1
        figures[f"{name}_loss"] = -logs[name].gather(-1, tokens[:, None])[:, 0]
        figures[f"{name}_entropy"] = entropy(logs[name])
        figures |= {f"{name}_mass_{k}": on_top[:, min(k, on_top.shape[-1]) - 1] for k in TOP}
    return figures
