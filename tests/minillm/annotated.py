"""A small finished run as its store keeps it: a report with the prompts and responses that it was made from."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minillm.store.manifest import Artifact
from tests.conftest import ROOT
from tests.manifests import write_manifest

ROLES = ("teacher", "sft", "kd", "minillm")
SEEDS = (10, 20)


def response(role: str, benchmark: str, index: int, seed: int) -> str:
    """Return a response that identifies its method by a letter, without naming it."""
    return f"Reply {'ZYXW'[ROLES.index(role)]} to {benchmark} number {index}, sample {seed}."


def write_rows(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_responses(folder: Path, role: str, benchmark: str, texts: Callable[..., str], prompts: int) -> None:
    """Write the responses of one method as the stage `generate` does."""
    answers = [
        {"index": index, "seed": seed, "response": texts(role, benchmark, index, seed), "tokens": 5, "finished": True}
        for seed in SEEDS
        for index in range(prompts)
    ]
    write_rows(folder / f"{benchmark}.jsonl", answers)


def write_run(
    store: Path,
    texts: Callable[..., str] = response,
    prompts: int = 12,
    roles: Sequence[str] = ROLES,
    benchmarks: Sequence[str] = ("dolly", "self_inst"),
    instruction: str = "What is meant by {index}?",
    context: str = "",
) -> Path:
    """Write a finished run; return the path of its report.html."""
    artifacts = store / "artifacts"
    inputs = {"benchmarks": "benchmarks-b", **{f"responses/{role}": f"generate-{role}" for role in roles}}
    for benchmark in benchmarks:
        rows = [
            {"index": index, "instruction": instruction.format(index=index), "context": context, "references": ["x"]}
            for index in range(prompts)
        ]
        write_rows(artifacts / "benchmarks-b" / f"{benchmark}.jsonl", rows)
        for role in roles:
            write_responses(artifacts / f"generate-{role}", role, benchmark, texts, prompts)
    report = artifacts / "report-r"
    report.mkdir()
    facts = {
        name: Artifact(
            kind=folder.split("-")[0], key="0" * 64, path=f"/where/it/was/computed/{folder}", digest="0" * 64
        )
        for name, folder in inputs.items()
    }
    write_manifest(report, "report", inputs=facts)
    tables = {role: {"seeds": SEEDS} for role in roles}
    results = {"tables": tables, "compared": roles[-1], "benchmarks": benchmarks}
    (report / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (report / "report.html").write_text("", encoding="utf-8")
    return report / "report.html"


@contextmanager
def serving(report: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the page of a run in a process of its own; yield its address and process."""
    command = [sys.executable, "-m", "minillm.annotation", str(report), "--port", "0", *options]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not (found := re.search(r"http://\S+", lines[-1] if lines else "")):
                lines.append(process.stdout.readline())
                assert lines[-1], process.communicate()[1]
            yield found[0], process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
