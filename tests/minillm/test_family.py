"""A base and a chat model of one family: `tokenizer.from` says whose template and end tokens count."""

from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer

from minillm.config import Template
from minillm.errors import StageError
from minillm.files import read_json, write_json
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.reading import TOKENIZER, Filter, Prepare
from tests.minillm.direct import run_stage, write_lines
from tests.minillm.templates import save_family
from tests.minillm.test_chat_rows import COLOURS

ENDS = {"base": ["</s>"], "chat": ["<|end|>", "<s>"]}
ROWS = [{"instruction": f"Name a {c} thing.", "context": "", "response": f"A {c} hat."} for c in COLOURS]


def prepared(models: dict[str, Path], owner: str, folder: Path) -> Path:
    stage = Prepare(
        tokenizer=owner, template=Template(), models=dict.fromkeys(models), max_tokens=200, generation_tokens=200
    )
    return run_stage(stage, models, folder)[0] / TOKENIZER


def filtered(tokenizer: Path, folder: Path) -> Path:
    benchmarks = write_lines(
        folder / "benchmarks" / "asked.jsonl",
        [{"index": 0, "instruction": "Unrelated?", "context": "", "references": ["x"], "topic": ""}],
    ).parent
    stage = Filter(
        template=Template(), max_prompt_tokens=200, max_tokens=250, max_malformed_share=0.0,
        validation_size=1, test_size=1, seed=1,
    )  # fmt: skip
    inputs = {"instructions": write_lines(folder / "rows.jsonl", ROWS), "tokenizer": tokenizer}
    return run_stage(stage, inputs | {"benchmarks": benchmarks}, folder / "run")[0]


@pytest.mark.parametrize("owner", ["teacher.model", "student.model"])
@pytest.mark.parametrize("names", [("base", "chat"), ("chat", "base")])
def test_it_is_accepted_in_every_direction_and_the_owner_counts(names, owner, tmp_path, capsys):
    family = save_family(tmp_path)
    models = {role: family[name] for role, name in zip(("teacher.model", "student.model"), names, strict=True)}
    counts = models[owner].name
    shared = load_shared_tokenizer(prepared(models, owner, tmp_path / "prepared"))
    assert [shared.tokenizer.convert_ids_to_tokens(end) for end in shared.ends] == ENDS[counts]
    theirs = AutoTokenizer.from_pretrained(family[counts])
    assert shared.tokenizer.chat_template == theirs.chat_template
    assert shared.tokenizer.bos_token == theirs.bos_token
    told = {"base": "'<|end|>' and '<s>'", "chat": "'</s>'"}[counts]
    assert f"also ends with {told}, which ends nothing here; data.end_tokens can add it" in capsys.readouterr().out
    row = pd.read_parquet(filtered(tmp_path / "prepared" / "output" / TOKENIZER, tmp_path) / "train.parquet").iloc[0]
    begins = {"base": "Below is an instruction", "chat": "<|start|>user\nName a"}[counts]
    assert row["prompt"].startswith(begins)
    assert shared.tokenizer.convert_ids_to_tokens(int(row["response_ids"][-1])) == ENDS[counts][0]


@pytest.mark.parametrize("owner", ["teacher.model", "student.model"])
def test_ids_that_differ_are_no_family(owner, tmp_path):
    models = {
        f"{role}.model": path for role, path in zip(("teacher", "student"), save_family(tmp_path).values(), strict=True)
    }
    file = models["student.model"] / "tokenizer.json"
    fields = read_json(file)
    ids = fields["model"]["vocab"]
    first = min(ids["x"], ids["z"])
    ids["x"], ids["z"] = ids["z"], ids["x"]
    write_json(file, fields)
    other = next(name for name in models if name != owner)
    with pytest.raises(StageError, match=f"{owner} and {other} have different tokenizers: token {first} is '[xz]' in"):
        prepared(models, owner, tmp_path / "prepared")
