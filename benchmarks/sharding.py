"""A teacher whose weights are shared out, against one that every process holds: `python -m benchmarks.sharding`.

For 1, 2 and 4 processes and each precision: the weights that a process holds between passes, how much it grows while it
loads them, in MB, and the differences of rollouts and losses from those of the whole teacher in the same processes.
"""

import argparse
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.generation.rollouts import RolloutSampler
from minillm.generation.slots import Request, Response
from minillm.models.batches import make_batch
from minillm.models.causal_lm import load_model
from minillm.models.output_head import output_head, response_hidden
from minillm.models.sharding import load_sharded
from minillm.objectives.divergences import reverse_kl
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss
from minillm.streams import Purpose, stream
from minillm.worker.processes import peak_bytes, process_group

SIZES = {"small": (32, 2, 101), "large": (256, 8, 4096)}
"""Width, layers and vocabulary of the teacher; the student has half of the first two."""
PROCESSES = (1, 2, 4)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
ROLLOUTS, LONGEST = 8, 16


def make_model(folder: Path, width: int, layers: int, vocabulary: int) -> None:
    """Write a model with random weights whose distributions are far from even."""
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=2 / width**0.5,
    )
    torch.manual_seed(width)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def held_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that this process holds between passes."""
    tensors = [tensor for p in model.parameters() for tensor in (p.data, getattr(p, "ds_tensor", None))]
    return sum(of.numel() * of.element_size() for of in tensors if of is not None)


def answers(student: PreTrainedModel, teacher: PreTrainedModel, requests: list[Request]) -> list[Response]:
    """Sample rollouts in two batches or more, so that processes end at different steps."""
    vocabulary = student.config.vocab_size
    return RolloutSampler(student, teacher, (0,), vocabulary, 0.4, 1.0, 2).sample(requests, stream(Purpose.COINS, 1, 0))


@torch.no_grad()
def losses(student: PreTrainedModel, teacher: PreTrainedModel, texts: list[list[int]]) -> torch.Tensor:
    """Return the reverse KL at every token of some texts, (N,)."""
    batch, vocabulary = make_batch([of[:2] for of in texts], [of[2:] for of in texts]), student.config.vocab_size
    of_teacher = Teacher(response_hidden(teacher, batch), output_head(teacher, vocabulary))
    hidden, tokens = response_hidden(student, batch), batch.response[batch.response_mask]
    divergences = head_loss(
        hidden, output_head(student, vocabulary), tokens, lambda terms, part: terms.divergence, reverse_kl, of_teacher
    )
    return divergences[1].divergence


def measure(rank: int, processes: int, port: int, folder: Path, names: list[str]) -> None:
    """Compare both teachers in one of the processes, precision by precision, and write what was found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group():
        rows = [{"precision": name, "processes": processes, "process": rank, **_of(folder, name)} for name in names]
    for row in rows[1:]:
        del row["loading"]  # the peak may be that of the precision before
    (folder / f"{processes}-{rank}.json").write_text(json.dumps(rows))


def _of(folder: Path, name: str) -> dict[str, Any]:
    dtype, rank, processes = DTYPES[name], dist.get_rank(), dist.get_world_size()
    before = psutil.Process().memory_info().rss
    teacher = load_sharded(folder / "teacher", dtype)
    grown = peak_bytes() - before
    student, whole = (load_model(folder / of, dtype).eval() for of in ("student", "teacher"))
    vocabulary = student.config.vocab_size
    numbers = np.random.default_rng(1).integers(1, vocabulary, (ROLLOUTS, LONGEST + 8)).tolist()
    requests = [
        Request(tokens[: 2 + row % 5], 3 + 7 * row % LONGEST, stream(Purpose.ROLLOUTS, 1, 0, row))
        for row, tokens in enumerate(numbers)
    ][rank::processes]
    got, want = ([(of.tokens, of.log_prob) for of in answers(student, t, requests)] for t in (teacher, whole))
    values, right = (losses(student, of, numbers[rank::processes]) for of in (teacher, whole))
    return {
        "held": held_bytes(teacher),
        "whole": held_bytes(whole),
        "head": output_head(whole, vocabulary).weight.numel() * dtype.itemsize,
        "loading": grown,
        "tokens": [len(tokens) for tokens, _ in got],
        "same_tokens": [tokens for tokens, _ in got] == [tokens for tokens, _ in want],
        "log_prob": max(difference(a, b) for (_, a), (_, b) in zip(got, want, strict=True)),
        "loss": difference(values, right),
    }


def difference(values: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest difference, relative to values above one."""
    return float(((values - right).abs() / right.abs().clamp(min=1)).max())


def compare(size: str, names: list[str]) -> list[dict[str, Any]]:
    """Measure every number of processes; return a row for each precision and process."""
    width, layers, vocabulary = SIZES[size]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "teacher", width, layers, vocabulary)
        make_model(folder / "student", width // 2, layers // 2, vocabulary)
        for processes in PROCESSES:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            start_processes(measure, (processes, port, folder, names), nprocs=processes, start_method="fork")
            for rank in range(processes):
                rows += json.loads((folder / f"{processes}-{rank}.json").read_text())
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return a row for each precision and number of processes, in Markdown."""
    lines = []
    for name, processes in dict.fromkeys((row["precision"], row["processes"]) for row in rows):
        of = [row for row in rows if (row["precision"], row["processes"]) == (name, processes)]
        most = {key: max(row[key] for row in of) for key in ("held", "whole", "head", "log_prob", "loss")}
        grown = [row["loading"] / 1e6 for row in of if "loading" in row]  # in the first precision alone
        growth = [f"{max(part):.0f}" for part in (grown[:1], grown[1:]) if part]
        lines.append(
            {
                "precision": name,
                "processes": processes,
                "weights": f"{most['held'] / 1e6:.1f} of {most['whole'] / 1e6:.1f}",
                "of them the head": f"{most['head'] / 1e6:.1f}",
                "growth while loading": "; others ".join(growth),
                "same responses": "yes" if all(row["same_tokens"] for row in of) else "no",
                "difference of log p": f"{most['log_prob']:.0e}",
                "of losses": f"{most['loss']:.0e}",
            }
        )
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", type=Path, help="file for the rows of all processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = compare(options.size, options.precisions)
    if options.json:
        options.json.write_text(json.dumps(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
