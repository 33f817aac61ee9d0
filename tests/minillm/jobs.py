"""Small real inputs of stages, and helpers that run a stage as its worker process does."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.config import Runtime
from minillm.data.encoding import LearntTurn
from minillm.stages.base import Job, Stage
from tasks.running.forking import fork_worker
from tasks.running.process_group import Group
from tasks.running.supervision import free_port

ROOT = Path(__file__).parents[2]
WORDS = ["red", "blue", "green", "cat", "dog", "bird", "runs", "sleeps", "the", "a", "and", "say", "sing", "now"]


def make_tokenizer(directory: Path) -> Path:
    """Make a tokenizer of whole words, with token 0 as EOS."""
    vocabulary = {word: i for i, word in enumerate(["<|endoftext|>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<unk>"
    ).save_pretrained(directory)
    return directory


def make_examples(directory: Path, count: int = 40) -> Path:
    """Make training and validation examples: prompts that name words, and responses that say them in reverse."""
    directory.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for row in range(count):
        prompt = [int(t) for t in random.integers(2, 2 + len(WORDS), size=random.integers(2, 5))]
        response = [*prompt[::-1], 0]
        text = " ".join(WORDS[t - 2] for t in response[:-1])
        rows.append((row, "open_qa", "say", prompt, response, [LearntTurn(0, len(response), text)._asdict()]))
    columns = ["row", "category", "prompt", "prompt_ids", "response_ids", "turns"]
    table = pd.DataFrame(rows, columns=columns)
    table.iloc[: count - 8].to_parquet(directory / "train.parquet")
    table.iloc[count - 8 :].to_parquet(directory / "validation.parquet")
    return directory


def make_plain_text(directory: Path, block_tokens: int, blocks: int = 12) -> Path:
    """Make a packed corpus of random words."""
    directory.mkdir()
    tokens = np.random.default_rng(1).integers(2, 2 + len(WORDS), size=block_tokens * blocks).astype(np.uint16)
    np.save(directory / "tokens.npy", tokens)
    (directory / "meta.json").write_text(
        json.dumps({"tokens": len(tokens), "block_tokens": block_tokens}), encoding="utf-8"
    )
    return directory


def write_job(folder: Path, stage: Stage, inputs: dict[str, Path], **runtime: object) -> Path:
    """Write the spec file of a stage and make its folders; return the file's path."""
    (folder / "output").mkdir(parents=True, exist_ok=True)
    where = Runtime.model_validate({"threads": 1, **runtime})
    job = Job(kind=stage.kind, settings=stage, inputs=inputs, output=folder / "output", work=folder, runtime=where)
    (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    return folder / "job.json"


def worker_command(spec: Path, processes: int = 1) -> list[str]:
    """Return the command that runs a spec in one process or several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "minillm.worker", str(spec)]


def worker_environment(processes: int = 1) -> dict[str, str]:
    """Return the environment that the supervisor sets for a worker."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    environment = {**inherited, "DS_BUILD_OPS": "0", "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if processes == 1:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        environment |= alone
    return environment


def run_worker(spec: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a stage to its end, in one process or several; what it writes, to both streams, is in `stdout`."""
    port, groups = str(free_port()), []
    lines: list[str | None] = []
    with contextlib.ExitStack() as stack:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": port}
            groups.append(stack.enter_context(Group(fork_worker(spec, worker_environment(), **place))))
        for group in groups:
            lines += iter(lambda group=group: group.next_line(1), None)
    status = next((group.status for group in groups if group.status), 0)
    return subprocess.CompletedProcess([str(spec)], status, "\n".join(filter(None, lines)))


def make_constant_model(directory: Path, probabilities: dict[str, float]) -> Path:
    """Write a model of `make_tokenizer`'s words that gives each word a fixed probability, whatever precedes it.

    Args:
        directory: Folder to write the model into.
        probabilities: Probabilities of some words; all other tokens share the rest.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = 2 + len(WORDS)
    shared = (1 - sum(probabilities.values())) / (tokens - len(probabilities))
    law = [shared, shared, *(probabilities.get(word, shared) for word in WORDS)]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, n_embd=4, n_layer=1, n_head=1, n_positions=64))
    with torch.no_grad():  # the last hidden state is always (1, 0, 0, 0)
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        model.transformer.wte.weight[:, 0] = torch.tensor(law).log()
    model.save_pretrained(directory)
    return directory
