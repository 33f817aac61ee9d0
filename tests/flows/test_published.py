"""A published configuration runs unchanged except for the size of models, data and schedule."""

from pathlib import Path

import pytest

from tests.flows.test_distill import distill
from tests.minillm.jobs import make_tokenizer
from tests.minillm.models_in_small import small_model
from tests.small import write_experiment

LENGTHS = ("teacher.training", "student.initial", "training", "methods.minillm.training")


def model_directory(folder: Path, seed: int) -> Path:
    """Make a small GPT-2 with its tokenizer, as a hub repository holds them."""
    small_model("gpt2", vocabulary=16, seed=seed).save_pretrained(folder)
    return make_tokenizer(folder)


@pytest.mark.long
def test_gpt2_base_in_small(tmp_path: Path, prefect_server: None):
    write_experiment(tmp_path)
    changes = [f"data.directory={tmp_path}", f"runtime.store={tmp_path / 'store'}", "runtime.parallel_stages=2"]
    changes += ["data.validation_size=4", "data.max_prompt_tokens=60", "data.max_tokens=100", "runtime.threads=1"]
    changes += ["evaluation.seeds=[10]", "evaluation.validation_prompts=2", "methods.minillm.policy.rollouts=8"]
    for seed, role in enumerate(("teacher", "student")):
        changes += [f"{role}.model.hub=null", f"{role}.model.path={model_directory(tmp_path / role, seed)}"]
    sources = {"data.instructions": "rows.jsonl", "data.plain_text": "text.txt"}
    benchmarks = {
        f"evaluation.benchmarks.{b}": "benchmark.jsonl" for b in ("dolly", "self_inst", "vicuna", "sni", "unni")
    }
    sources |= {f"{name}.source": file for name, file in benchmarks.items()}
    for name, file in sources.items():
        changes += [f"{name}.hub=null", f"{name}.file=null", f"{name}.path={file}"]
    changes += [f"evaluation.benchmarks.{name}.min_reference_tokens=0" for name in ("sni", "unni")]
    for training in LENGTHS:
        changes += [f"{training}.epochs=null", f"{training}.steps=2", f"{training}.batch_size=8"]
        changes += [f"{training}.evaluate_every=2"]
    arguments = [argument for change in changes for argument in ("--set", change)]
    done = distill(Path("configs/gpt2-base.yaml"), *arguments)
    assert done.status == 0, done.log[-5000:]
    table = [line.split("|")[1].strip() for line in done.output.splitlines() if line.startswith("| ")]
    assert table == ["method", "teacher", "sft", "kd", "seqkd", "minillm"]
