"""The benchmarks, at a size that only shows that they run; TRL's side needs environments that `make bench` makes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.comparisons import HEAD, Comparison, measure
from benchmarks.protocol import ROOT, Contender
from minillm.models.causal_lm import bfloat16_is_slow


def test_a_tiny_run_writes_its_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--steps", "2", "--dtypes", "float32"]
    done = subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    names = [result["name"] for result in record["results"]]
    assert {"reference procedure, float32", "transformers generate, float32", "rouge-score, 50 pairs"} <= set(names)
    for result in record["results"]:
        assert result["faster"] == result["medians"][1] / result["medians"][0]
        assert all(seconds > 0 for side in result["seconds"] for seconds in side)
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in names)
    assert record["machine"]["torch"] in page


def test_both_sides_of_the_generation_make_the_same_number_of_tokens(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.json"
    lengths.write_text(json.dumps([[3, 5], [7, 2], [4, 9]]), encoding="utf-8")
    settings = {"student": [32, 1], "vocabulary": 300, "batch_size": 2, "dtype": "float32", "threads": 1}
    for by in ("engine", "generate"):
        with Contender("generation", {**settings, "lengths": str(lengths), "by": by}) as contender:
            assert contender.step()["tokens"] == 16


def test_all_sides_of_the_head_take_the_same_gradients() -> None:
    found = []
    for by in ("closed form", "autograd", "checkpoint"):
        with Contender("head_loss", {**HEAD, "tokens": 300, "vocabulary": 70, "by": by}) as contender:
            found.append(contender.step())
    assert [side["loss"] for side in found] == pytest.approx([found[0]["loss"]] * 3, rel=1e-5)
    assert [side["gradient_norm"] for side in found] == pytest.approx([found[0]["gradient_norm"]] * 3, rel=1e-5)


def test_a_missing_environment_leaves_its_comparison_out(monkeypatch) -> None:
    monkeypatch.setitem(measure.__globals__["TRL_ENVIRONMENTS"], "trl_gkd", "never-made")
    assert measure(Comparison("x", ("minillm_step", {}), ("trl_gkd", {}), 2), 1, tiny=True) is None


def test_what_is_measured_on_a_gpu_runs_in_small_on_the_cpu(tmp_path: Path, monkeypatch) -> None:
    if bfloat16_is_slow():
        monkeypatch.setitem(gpu.STEP, "dtype", "float32")
    planned = [of for of in gpu.measurements(gpu.TINY, (12,), "cpu", tmp_path) if "4 B" in of.pair]
    step, generation = (next(of for of in planned if of.what == what) for what in ("MiniLLM step", "generation"))
    profile = gpu.measure(dataclasses.replace(step, what="profile", module="profile"), 600)
    rows = [gpu.measure(step, 600), gpu.measure(generation, 600), gpu.measure(generation, 0)]
    assert rows[0]["of them rollouts"] < rows[0]["seconds"]
    assert 0 < rows[0]["% of the product's rate"] < 100
    assert rows[1]["tokens drawn per second"] * rows[1]["seconds"] == sum(1 + 7 * i % 9 for i in range(32))
    assert rows[2]["left out"] == "no time left"
    page = gpu.page({"device": "CPU", "command": "test", "rows": rows, "profile": profile})
    assert "| no time left" in page
    assert "sampling: bodies" in page
