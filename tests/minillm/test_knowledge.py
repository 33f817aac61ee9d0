"""The store of a teacher's knowledge: what is kept, what students learn from it, kills, and stores of other things."""

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from minillm.config import Knowledge, Sampled, Top
from minillm.errors import BAD_INPUT, StageError
from minillm.knowledge import shards
from minillm.knowledge.forms import bytes_per_token, keep, recall
from minillm.knowledge.store import Identity, KnowledgeStore, shard_starts
from minillm.models.batches import Limit, make_batch
from minillm.models.output_head import OutputHead, response_hidden
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.objectives.divergences import forward_kl
from minillm.objectives.losses import confidence_weight
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss
from minillm.stages.training import StoreKnowledge
from minillm.training.feeds import Models, teacher_of
from minillm.training.fixed_text import FixedText
from tests.minillm.direct import alone, group_of_one, run_stage
from tests.minillm.jobs import make_examples, make_tokenizer, run_worker, worker_command, worker_environment, write_job
from tests.minillm.test_learnt_turns import LIMITS, VOCABULARY, assert_alike, conversations, models, of_size
from tests.minillm.test_training import content
from tests.minillm.trainings import settings, text_inputs, weights
from tests.waiting import wait_for

HIDDEN = StoreKnowledge(precision="float32")
TOP = StoreKnowledge(top=Top(k=5), precision="float32")
SAMPLED = StoreKnowledge(sampled=Sampled(draws=8), precision="float32", seed=1)
FORMS = {"hidden": HIDDEN, "top": TOP, "sampled": SAMPLED}
LAW = torch.tensor([0.125, 0.5, 0.25, 0.125], dtype=torch.float64)


def lawful(law: torch.Tensor = LAW) -> tuple[torch.Tensor, OutputHead]:
    """Return one hidden state and a head that give a law over the vocabulary."""
    return torch.ones(1, 1, dtype=law.dtype), OutputHead(law.log()[:, None], None, len(law))


def kept_of(stage: StoreKnowledge, uniform: torch.Tensor | None = None) -> SparseTeacher:
    return recall(keep(stage, *lawful(), torch.tensor([2]), uniform))


@pytest.mark.parametrize(
    ("top", "entries"), [(Top(k=2), [1, 2]), (Top(mass=0.75), [1, 2]), (Top(mass=0.76), [1, 2, 0]), (Top(), [1])]
)
def test_the_likeliest_entries_and_the_tail_by_hand(top: Top, entries: list[int]):
    found = kept_of(StoreKnowledge(top=top, precision="float32"))
    assert found.entries.tolist() == [entries]
    torch.testing.assert_close(found.probability[0], LAW[entries].float(), rtol=1e-3, atol=0)
    assert float(found.tail) == pytest.approx(1 - float(LAW[entries].sum()), rel=2e-3)
    assert float(found.probability.sum() + found.tail) == pytest.approx(1, abs=1e-7)
    assert float(found.token_log_prob) == pytest.approx(-1.3863, abs=1e-4)


def test_numbers_of_entries_differ_by_token():
    hidden, head = lawful()
    kept = keep(TOP, hidden, head, torch.tensor([2]), None)
    one = keep(StoreKnowledge(top=Top(k=1), precision="float32"), hidden, head, torch.tensor([0]), None)
    found = recall({name: torch.cat([kept[name], one[name]]) for name in kept})
    assert found.entries.tolist() == [[1, 2, 0, 3], [1, 1, 1, 1]]
    assert found.kept.tolist() == [[True] * 4, [True, False, False, False]]
    assert found.tail.tolist() == pytest.approx([0, 0.5], abs=1e-4)


def gradients(teacher: Teacher | SparseTeacher) -> torch.Tensor:
    """Return divergence and gradient of a student at one token, in float64, as one vector."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(1, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    functional = None if isinstance(teacher, SparseTeacher) else forward_kl
    head = OutputHead(weight, None, 4)
    loss, _ = head_loss(hidden, head, torch.tensor([2]), lambda t, part: t.divergence, functional, teacher)
    return torch.cat([loss.detach()[None], *(of.flatten() for of in torch.autograd.grad(loss, [hidden, weight]))])


def test_draws_are_unbiased_in_value_and_gradient():
    """Every outcome of three draws from a law in eighths: each has the same probability."""
    eighths = [(number + 0.5) / 8 for number in range(8)]
    drawing = StoreKnowledge(sampled=Sampled(draws=3), precision="float32", seed=1)
    outcomes = [gradients(kept_of(drawing, torch.tensor([of]))) for of in itertools.product(eighths, repeat=3)]
    exact = gradients(Teacher(*lawful()))
    assert max(float((outcome - exact).norm()) for outcome in outcomes) > 0.5
    torch.testing.assert_close(torch.stack(outcomes).mean(dim=0), exact, rtol=1e-6, atol=1e-7)


def test_the_surer_model_has_the_larger_weight():
    student, teacher = torch.tensor([0.2, 0.3, 0.6]).log(), torch.tensor([0.8, 0.3, 0.2]).log()
    torch.testing.assert_close(confidence_weight(student, teacher, 0.5), torch.tensor([0.8, 0.5, 0.25]))
    torch.testing.assert_close(confidence_weight(student, teacher, 0.2), torch.tensor([0.5, 0.2, 0.2 / 2.6]))


def stored_in_memory(both: Models, rows: pd.DataFrame, stage: StoreKnowledge) -> Callable[..., Any]:
    """Keep the teacher's knowledge of each row alone, as the stage does, in the teacher's own precision."""
    head = OutputHead(both.teacher.get_output_embeddings().weight, None, VOCABULARY)  # type: ignore[union-attr,arg-type]
    kept = []
    for row in rows.to_dict("records"):
        ranges = [(turn["start"], turn["end"]) for turn in row["turns"]]
        batch = make_batch([row["prompt_ids"]], [row["response_ids"]], [ranges])
        with torch.no_grad():
            hidden = response_hidden(both.teacher, batch)  # type: ignore[arg-type]
        kept.append(keep(stage, hidden, head, batch.response[batch.response_mask], None))

    def of(rows: list[int], device: torch.device) -> Teacher | SparseTeacher:
        found = {name: torch.cat([kept[row][name] for row in rows]) for name in kept[0]}
        return Teacher(found["hidden"], head) if stage.form == "hidden" else recall(found)

    return of


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("weighting", ["constant", "confidence"])
def test_hidden_states_are_the_live_teacher(divergence: str, weighting: str):
    with group_of_one():
        rows, both = conversations(), models()
        kd = of_size("kd", len(rows), divergence=divergence, weighting=weighting)
        stored = stored_in_memory(both, rows, HIDDEN)
        feeds = [
            FixedText(both, kd, rows, 1),
            FixedText(Models(both.student, None, VOCABULARY, ()), kd, rows, 1, stored),
        ]
        assert_alike([(feed, limit) for feed in feeds for limit in LIMITS])


def test_all_entries_are_the_live_teacher_but_for_their_rounding():
    with group_of_one():
        rows, both = conversations(), models()
        kd = of_size("kd", len(rows), weighting="confidence")
        stored = stored_in_memory(both, rows, StoreKnowledge(top=Top(share=1.0), precision="float32"))
        totals = []
        for feed in (FixedText(both, kd, rows, 1), FixedText(both, kd, rows, 1, stored)):
            totals.append(feed.losses(0, Limit(rows=8))[0]()["loss"].item())
        assert totals[0] == pytest.approx(totals[1], rel=1e-3)


@pytest.fixture(scope="module")
def stores(inputs: dict[str, Path], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Store every form by a real worker."""
    folders = {}
    for form, stage in FORMS.items():
        folders[form] = tmp_path_factory.mktemp(form)
        done = run_worker(write_job(folders[form], stage, {**text_inputs(inputs), "model": teacher}))
        assert done.returncode == 0, done.stdout
    return {form: folder / "output" for form, folder in folders.items()}


def identity(inputs: dict[str, Path], teacher: Path) -> Identity:
    rows = pd.read_parquet(inputs["examples"] / "train.parquet")
    return Identity.of(load_shared_tokenizer(inputs["tokenizer"]).tokenizer, teacher, rows)


def test_a_store_on_disk_is_the_teacher(stores, inputs, teacher):
    from minillm.models.causal_lm import load_model

    rows = pd.read_parquet(inputs["examples"] / "train.parquet")
    chosen = [7, 2, 30]
    part = rows.iloc[chosen]
    batch = make_batch(part["prompt_ids"].tolist(), part["response_ids"].tolist())
    tokens = batch.response[batch.response_mask]
    live = teacher_of(Models(None, load_model(teacher, torch.float32).eval(), 16, ()), batch)
    log_probs = live.head.logits(live.hidden).log_softmax(dim=1)
    found: dict[str, Any] = {
        form: KnowledgeStore(path, form, identity(inputs, teacher)).of(chosen, torch.device("cpu"))
        for form, path in stores.items()
    }
    torch.testing.assert_close(found["hidden"].hidden, live.hidden, rtol=1e-5, atol=1e-5)
    assert torch.equal(found["hidden"].head.weight, live.head.weight[:16])
    for form in ("top", "sampled"):
        torch.testing.assert_close(found[form].token_log_prob, log_probs.gather(1, tokens[:, None])[:, 0])
    assert found["top"].entries.tolist() == log_probs.topk(5).indices.tolist()
    torch.testing.assert_close(found["top"].probability, log_probs.topk(5).values.exp(), rtol=1e-3, atol=1e-3)
    assert (found["sampled"].probability * 8).sum(dim=1).tolist() == [8.0] * len(tokens)


def test_training_without_the_teacher_is_training_with_it(stores, inputs, teacher, tmp_path):
    given = {**text_inputs(inputs), "teacher": teacher}
    found = {}
    for form in ("live", *FORMS):
        kd = settings("kd", steps=8)
        # the first 24 of the 32 rows that the stores are of
        kd = kd.model_copy(update={"method": kd.method.model_copy(update={"teacher": form}), "rows": 24})
        knowledge = {} if form == "live" else {"knowledge": stores[form]}
        done = run_worker(write_job(tmp_path / form, kd, {**given, **knowledge}, micro_batch_size=3))
        assert done.returncode == 0, done.stdout
        found[form] = torch.cat([of.flatten() for of in weights(tmp_path / form).values()])
    apart = {form: float((found[form] - found["live"]).norm() / found["live"].norm()) for form in FORMS}
    assert apart["hidden"] < 1e-5
    assert 1e-4 < apart["top"] < 0.05
    assert 1e-4 < apart["sampled"] < 0.05


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rows": 33}, "ends after 32 of the 33 training rows; store it again"),
        ({"tokenizer": "0" * 64}, r"is of another tokenizer \(digest .*store it again, or train with teacher: live"),
        ({"teacher": "0" * 64}, "is of another teacher"),
        ({"text": "0" * 64}, "is of another training text"),
    ],
)
def test_a_store_of_something_else_is_refused_by_name(change, problem, stores, inputs, teacher):
    with pytest.raises(StageError, match=problem):
        KnowledgeStore(stores["top"], "top", identity(inputs, teacher).model_copy(update=change))


def test_a_store_of_another_form_is_refused(stores):
    with pytest.raises(StageError, match="holds the form top, but the method has teacher: sampled"):
        KnowledgeStore(stores["top"], "sampled", None)


def test_another_teacher_is_noticed_before_the_first_step(stores, inputs, teacher, tmp_path):
    kd = settings("kd")
    kd = kd.model_copy(update={"method": kd.method.model_copy(update={"teacher": "top"})})
    other = tmp_path / "other"
    other.mkdir()
    for path in teacher.rglob("*"):
        target = other / path.relative_to(teacher)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    (file,) = other.rglob("*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    given = {**text_inputs(inputs), "teacher": other, "knowledge": stores["top"]}
    done = run_worker(write_job(tmp_path / "run", kd, given))
    assert done.returncode == BAD_INPUT
    assert "is of another teacher" in (tmp_path / "run" / "error.txt").read_text(encoding="utf-8")
    assert not list((tmp_path / "run").rglob("metrics.jsonl")), "no step was taken"


def test_shards_end_where_rows_do():
    assert shard_starts([3, 3, 1, 9, 2, 2], 6) == (0, 2, 3, 4, 6)
    assert shard_starts([1], 6) == (0, 1)


SMALL_SHARDS = """import sys
import minillm.knowledge.shards
from minillm.worker.__main__ import main
minillm.knowledge.shards.SHARD_TOKENS = 64
sys.exit(main(sys.argv[1]))
"""


def test_a_killed_pass_continues_with_the_next_shard_and_more_processes(teacher, tmp_path):
    given = {"tokenizer": make_tokenizer(tmp_path / "t"), "examples": make_examples(tmp_path / "e", 1500)}
    specs = [write_job(tmp_path / name, SAMPLED, {**given, "model": teacher}) for name in ("killed", "whole")]
    (tmp_path / "worker.py").write_text(SMALL_SHARDS, encoding="utf-8")
    alone, several = ([*worker_command(specs[0], n)[:-3], str(tmp_path / "worker.py")] for n in (1, 2))
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen([*alone, str(specs[0])], env=worker_environment(), **quiet)
    shards = tmp_path / "killed" / "output"
    wait_for(lambda: len(list(shards.glob("shard-*"))) >= 2)
    first.kill()
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    assert not (shards / "index.json").exists()
    assert subprocess.run([*several, str(specs[0])], env=worker_environment(2), check=False, **quiet).returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    assert len(after) > len(before) + 2
    assert {name: after[name] for name in before} == before, "whole shards are not written again"
    assert subprocess.run([*alone, str(specs[1])], env=worker_environment(), check=False, **quiet).returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("vocabulary", "form", "expected"),
    [
        (50257, "hidden", 1600 * 2),
        (151936, "hidden", 1600 * 2),
        (50257, "top", 2513 * 4 + 12),
        (151936, "top", 7597 * 6 + 12),
        (50257, "sampled", 50 * 3 + 12),
        (151936, "sampled", 50 * 5 + 12),
    ],
)
def test_bytes_of_a_token_by_hand(vocabulary: int, form: str, expected: int):
    kept = {} if form == "hidden" else {form: getattr(Knowledge(), form)}
    stage = StoreKnowledge.model_validate({**kept, "precision": "bfloat16"})
    assert bytes_per_token(stage, vocabulary, 1600) == expected


def test_the_size_on_disk_is_what_was_said(inputs, teacher, tmp_path):
    with alone():
        output, summary = run_stage(TOP, {**text_inputs(inputs), "model": teacher}, tmp_path)
    shard = load_file(output / "shard-00000.safetensors")
    tokens = int(shard["token_ends"][-1])
    size = sum(of.numel() * of.element_size() for name, of in shard.items() if not name.endswith("_ends"))
    assert size == tokens * bytes_per_token(TOP, 16, 32)
    assert summary["tokens"] == tokens
    assert tokens < shards.SHARD_TOKENS
