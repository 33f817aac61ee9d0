"""Forms of a teacher's stored knowledge against the live teacher: `python -m benchmarks.knowledge` (minutes).

Bytes on disk, error and bias of the gradient, and the time of a training step, at two vocabularies and two teachers.
Final scores are a run's: `minillm distill configs/without-teacher.yaml`.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.contenders.models import random_model
from minillm.config import Method, Runtime, Sampled, Top, Training
from minillm.knowledge import writing
from minillm.knowledge.forms import keep, recall
from minillm.knowledge.store import KnowledgeStore
from minillm.models.batches import Limit
from minillm.models.output_head import HeadedModel, OutputHead
from minillm.objectives.divergences import forward_kl
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss
from minillm.stages.base import Job
from minillm.stages.training import StoreKnowledge
from minillm.training.engine import in_turn, make_engine, take_step
from minillm.training.feeds import Models
from minillm.training.fixed_text import FixedText
from minillm.worker.processes import process_group

VOCABULARIES = (50257, 151936)
STUDENT, TEACHERS = (256, 4), {"6 × 512": (512, 6), "12 × 768": (768, 12)}
ROWS, PROMPT, RESPONSE = 16, 32, 32
DRAWS, STEPS = 20, 7
"""Independent draws of the form that is sampled, for its bias; timed steps of each form, in turn."""
FORMS = {
    "hidden": StoreKnowledge(precision="float32"),
    "top 5 %": StoreKnowledge(top=Top(share=0.05), precision="float32"),
    "top 64": StoreKnowledge(top=Top(k=64), precision="float32"),
    "sampled 50": StoreKnowledge(sampled=Sampled(draws=50), precision="float32", seed=1),
}


def zipf_head(width: int, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor, OutputHead]:
    """Return hidden states (N, H), tokens and a head whose laws are a language's: few likely tokens, a long tail."""
    hidden = torch.randn(ROWS * RESPONSE, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5
    rank = 1 + torch.randperm(vocabulary, generator=generator)
    tokens = torch.randint(vocabulary, (len(hidden),), generator=generator)
    return hidden, tokens, OutputHead(weight, -1.2 * rank.log(), vocabulary)


def gradients(vocabulary: int) -> pd.DataFrame:
    """Compare the gradients of a student's hidden states, token by token; intervals are 95 % over tokens.

    What is left in the mean of many stores is bias, and 1/√DRAWS of the error of an unbiased one.
    """
    generator = torch.Generator().manual_seed(1)
    hidden, tokens, head = zipf_head(TEACHERS["6 × 512"][0], vocabulary, generator)
    states, _, student = zipf_head(STUDENT[0], vocabulary, generator)

    def gradient(teacher: Teacher | SparseTeacher) -> Tensor:
        given = states.clone().requires_grad_()
        functional = forward_kl if isinstance(teacher, Teacher) else None
        loss, _ = head_loss(given, student, tokens, lambda terms, part: terms.divergence, functional, teacher)
        return torch.autograd.grad(loss, given)[0]  # (N, H)

    live, rows = gradient(Teacher(hidden, head)), []
    for name, stage in FORMS.items():
        numbers = np.random.default_rng(1)
        found, size = [], 0
        for _ in range(DRAWS if stage.sampled else 1):
            uniform = torch.from_numpy(numbers.random((len(tokens), stage.sampled.draws if stage.sampled else 0)))
            kept = keep(stage, hidden, head, tokens, uniform)
            size = sum(of.numel() * of.element_size() for of in kept.values())
            found.append(gradient(Teacher(kept["hidden"], head) if stage.form == "hidden" else recall(kept)))
        once, mean = ((of - live).norm(dim=1) / live.norm(dim=1) for of in (found[0], torch.stack(found).mean(dim=0)))
        rows.append([name, f"{size / len(tokens):.0f}", interval(once), interval(mean)])
    headers = ["form", "bytes a token", "error of the gradient", f"error of the mean of {DRAWS} stores"]
    return pd.DataFrame(rows, columns=headers)


def interval(values: Tensor) -> str:
    """Mean and half a 95 % interval, in percent."""
    return f"{100 * values.mean():.2f} ± {196 * values.std() / len(values) ** 0.5:.2f} %"


def stores(vocabulary: int, teacher: PreTrainedModel, examples: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Write every form by its stage, and say at what speed."""
    words = Tokenizer(WordLevel({str(entry): entry for entry in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0").save_pretrained(folder / "tokenizer")
    teacher.save_pretrained(folder / "model")
    (folder / "examples").mkdir()
    examples.to_parquet(folder / "examples" / "train.parquet")
    inputs = {name: folder / name for name in ("tokenizer", "model", "examples")}
    for number, (form, stage) in enumerate(FORMS.items()):
        work = folder / str(number)
        (work / "output").mkdir(parents=True)
        began = time.perf_counter()
        told = writing.run(
            Job(kind=stage.kind, settings=stage, inputs=inputs, output=work / "output", work=work, runtime=Runtime())
        )
        rate = float(told["tokens"]) / (time.perf_counter() - began)
        print(f"{form}: {told['bytes_per_token']:.0f} bytes a token on disk, {rate:.0f} tokens a second", flush=True)
    return {form: folder / str(number) / "output" for number, form in enumerate(FORMS)}


def steps(vocabulary: int, name: str, folder: Path) -> dict[str, str]:
    """Time training steps with the live teacher and from each form on disk, in turn: median and range, in seconds."""
    student, teacher = (
        random_model(size, vocabulary, PROMPT + RESPONSE, seed) for seed, size in enumerate((STUDENT, TEACHERS[name]))
    )
    ids = np.random.default_rng(1).integers(1, vocabulary, (ROWS, PROMPT + RESPONSE))
    turns = [{"start": 0, "end": RESPONSE, "text": ""}]
    rows = [(number, row[:PROMPT], row[PROMPT:], turns) for number, row in enumerate(ids)]
    examples = pd.DataFrame(rows, columns=["row", "prompt_ids", "response_ids", "turns"])
    written = stores(vocabulary, teacher, examples, folder)
    training = Training(learning_rate=1e-5, batch_size=ROWS, steps=10**6, evaluate_every=10**6)
    kd = Method(text="dataset", divergence="forward_kl", training=training)
    seconds: dict[str, list[float]] = {form: [] for form in ("live", *written)}
    with process_group():
        engine = make_engine(HeadedModel(student, vocabulary), training, 10**6, Runtime())
        models = Models(engine, teacher.requires_grad_(False), vocabulary, ())
        feeds = {"live": FixedText(models, kd, examples, 1)}
        for form, path in written.items():
            feeds[form] = FixedText(models, kd, examples, 1, KnowledgeStore(path, FORMS[form].form, None).of)
        for step in range(1 + STEPS):
            for form, feed in feeds.items():
                began = time.perf_counter()
                engine.train()
                for losses in in_turn(engine, feed.losses(step, Limit(rows=8))):
                    engine.backward(losses["loss"])
                take_step(engine)
                seconds[form] += [time.perf_counter() - began] if step else []
    return {form: f"{statistics.median(of):.2f} ({min(of):.2f}–{max(of):.2f})" for form, of in seconds.items()}


def main() -> None:
    """Print the tables of each vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, help="entries of the vocabulary")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS), help="layers × width")
    chosen = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for vocabulary in chosen.vocabularies:
        print(f"\n{vocabulary} entries, {ROWS * RESPONSE} tokens\n\n{gradients(vocabulary).to_markdown(index=False)}\n")
        found = {}
        # DeepSpeed keeps the first process group that it sees, so each teacher has a process of its own.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as alone:
            for name in chosen.teachers:
                with tempfile.TemporaryDirectory() as folder:
                    found[name] = alone.submit(steps, vocabulary, name, Path(folder)).result()
        print(f"\nseconds a step, by teacher\n\n{pd.DataFrame.from_dict(found, orient='index').to_markdown()}\n")


if __name__ == "__main__":
    main()
