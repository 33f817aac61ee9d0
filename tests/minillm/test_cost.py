"""Cost of generation for several models, measured by one worker."""

import json

from transformers import GPT2Config, GPT2LMHeadModel

from minillm.stages.measuring import Cost
from tests.minillm.direct import encode, generation, read_lines, write_lines
from tests.minillm.jobs import WORDS, make_tokenizer, run_worker, write_job

MAX_TOKENS = 24
WIDTH = {"large": 512, "small": 32}


def test_each_model_is_measured_by_itself_on_its_own_answers(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    rows = [{"index": i, "instruction": word, "context": "", "references": [word]} for i, word in enumerate(WORDS)]
    benchmarks = write_lines(tmp_path / "benchmarks" / "words.jsonl", rows).parent
    prompts = encode(tmp_path / "prompts", tokenizer, benchmarks)
    gib = {}
    for name, width in WIDTH.items():
        config = GPT2Config(vocab_size=16, n_embd=width, n_layer=8, n_head=2, n_positions=64)
        model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / name)
        gib[name] = 4 * model.num_parameters() / 2**30
    stage = Cost(roles=("large", "small"), benchmark="words", generate=generation(MAX_TOKENS))
    inputs = {f"{what}/{role}": path for role in stage.roles for what, path in (
        ("model", tmp_path / role), ("tokenizer", tokenizer), ("prompts", prompts)
    )}  # fmt: skip
    done = run_worker(write_job(tmp_path / "cost", stage, inputs, generation_batch_size=8))
    assert done.returncode == 0, done.stdout
    facts = json.loads((tmp_path / "cost" / "output" / "cost.json").read_text(encoding="utf-8"))
    summary = json.loads((tmp_path / "cost" / "summary.json").read_text(encoding="utf-8"))
    assert (facts["benchmark"], facts["at_once"]) == ("words", 8)
    assert list(facts["models"]) == ["large", "small"]

    given = {"model": tmp_path / "small", "tokenizer": tokenizer, "prompts": prompts}
    answered = run_worker(write_job(tmp_path / "generate", stage.generate, given))
    assert answered.returncode == 0, answered.stdout
    answers = read_lines(tmp_path / "generate" / "output" / "words.jsonl")
    small, large = facts["models"]["small"], facts["models"]["large"]
    assert small["tokens"] == sum(answer["tokens"] for answer in answers if answer["seed"] == 10)
    for role, found in facts["models"].items():
        assert found["responses"] == len(WORDS)
        assert 0 < found["slowest"] <= found["tokens_per_second"] <= found["fastest"]
        assert summary[f"tokens_per_second/{role}"] == found["tokens_per_second"]
        assert summary[f"peak_memory_gib/{role}"] == found["peak_memory_gib"]
    assert large["tokens_per_second"] < small["tokens_per_second"]
    assert large["peak_memory_gib"] - small["peak_memory_gib"] > 0.8 * (gib["large"] - gib["small"]), (
        "the second model's memory does not count the first's"
    )
