"""Loss and next-token calibration on given text, against transformers' own loss and whole logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minillm.data.plain_text import PlainText
from minillm.errors import StageError
from minillm.evaluation.reliability import binned, calibration_error
from minillm.stages.measuring import HeldOut
from minillm.stages.reading import HeldOutTexts
from tests.minillm.direct import alone, encode, real_data, run_stage, write_lines
from tests.minillm.jobs import WORDS, make_constant_model, make_tokenizer, run_worker, write_job
from tests.minillm.models_in_small import small_model

BLOCK = 16
ROOM = 12


def stage(**changes) -> HeldOut:
    fixed = {"role": "sft", "benchmarks": ("dolly",), "texts": ("story",), "precision": "float32"}
    return HeldOut.model_validate({**fixed, "max_tokens": ROOM, "block_tokens": BLOCK, **changes})


def make_inputs(folder: Path, model: Path | None = None) -> dict[str, Path]:
    """Make a benchmark with a reference longer than the limit, a packed text, and a model."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    draw = np.random.default_rng(0)

    def words(count):
        return " ".join(draw.choice(WORDS, count))

    rows = [
        {"index": i, "instruction": words(1 + i % 3), "context": "", "references": [words(1 + 2 * i), "x"], "topic": ""}
        for i in range(7)
    ]
    write_lines(folder / "benchmarks" / "dolly.jsonl", rows)
    (folder / "story.txt").write_text("\n".join(words(20) for _ in range(9)), encoding="utf-8")
    sources = {"tokenizer": tokenizer, "held_out/story": folder / "story.txt"}
    texts, summary = run_stage(HeldOutTexts(texts=("story",), block_tokens=BLOCK), sources, folder / "texts")
    assert summary == {"story": 9 * 21 // BLOCK}
    if model is None:
        model = folder / "random"
        small_model("gpt2", vocabulary=16, spread=0.8).save_pretrained(model)
    prompts = encode(folder / "prompts", tokenizer, folder / "benchmarks")
    read = {"benchmarks": folder / "benchmarks", "prompts": prompts, "texts": texts}
    return {"model": model, "tokenizer": tokenizer, **read}


def run(folder: Path, inputs: dict[str, Path], **changes) -> tuple[dict, dict]:
    with alone():
        output, summary = run_stage(stage(**changes), inputs, folder, micro_batch_size=3)
    return json.loads((output / "held_out.json").read_text(encoding="utf-8")), summary


def letters(text: str) -> int:
    return len(text.replace(" ", ""))


def sequences(inputs: dict[str, Path]) -> dict[str, list[tuple[list[int], int, float]]]:
    """Make, without the stage, each sequence's token ids, the number of given ones, and its text's bytes per letter."""
    tokenizer = AutoTokenizer.from_pretrained(inputs["tokenizer"])
    rows = [
        json.loads(line) for line in (inputs["benchmarks"] / "dolly.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    asked = []
    for row in rows:
        prompt = tokenizer(row["instruction"] + ">")["input_ids"]
        reference = row["references"][0]
        tokens = [*prompt, *tokenizer(reference)["input_ids"], 0][:ROOM]
        asked.append((tokens, len(prompt), len(reference) / letters(reference)))
    lines = (inputs["texts"].parents[1] / "story.txt").read_text(encoding="utf-8").splitlines()
    spread = sum(map(len, lines)) / sum(map(letters, lines))
    text = PlainText(inputs["texts"] / "story", BLOCK)
    return {"dolly": asked, "story": [(text.block(i).tolist(), 1, spread) for i in range(len(text))]}


def test_loss_is_that_of_transformers_and_calibration_that_of_whole_logits(tmp_path):
    inputs = make_inputs(tmp_path)
    found, summary = run(tmp_path / "run", inputs)
    model = AutoModelForCausalLM.from_pretrained(inputs["model"])
    tokenizer = AutoTokenizer.from_pretrained(inputs["tokenizer"])
    for name, of_set in sequences(inputs).items():
        measured = {**found["benchmarks"], **found["texts"]}[name]
        losses, counts, sure, right, written = [], [], [], [], 0
        for tokens, given, spread in of_set:
            ids = torch.tensor([tokens])
            labels = torch.where(torch.arange(len(tokens)) < given, -100, ids)
            with torch.no_grad():
                output = model(ids, labels=labels)
            law = output.logits[0, given - 1 : -1].softmax(dim=-1)
            losses.append(float(output.loss))
            counts.append(len(tokens) - given)
            written += spread * letters(tokenizer.decode([token for token in tokens[given:] if token]))
            sure += law.amax(dim=-1).tolist()
            right += (law.argmax(dim=-1) == ids[0, given:]).tolist()
        assert measured["tokens"] == sum(counts)
        assert measured["loss"]["value"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
        bits = np.dot(losses, counts) / np.log(2)
        assert measured["bits_per_byte"]["value"] == pytest.approx(bits / written, rel=1e-5)
        assert summary[f"bits_per_byte/{name}"] == measured["bits_per_byte"]["value"]
        assert measured["ece"]["value"] == pytest.approx(float(calibration_error(binned(sure, right))), rel=1e-4)
        assert 0 < sum(right) < len(right)
        assert summary[f"held_out_loss/{name}"] == measured["loss"]["value"]
        assert summary[f"perplexity/{name}"] == pytest.approx(np.exp(measured["loss"]["value"]))
        assert summary[f"next_token_ece/{name}"] == measured["ece"]["value"]


def test_two_processes_find_the_same(tmp_path):
    inputs = make_inputs(tmp_path)
    done = run_worker(write_job(tmp_path / "two", stage(), inputs, micro_batch_size=4), processes=2)
    assert done.returncode == 0, done.stdout[-3000:]
    one, two = (
        run(tmp_path / "one", inputs)[1],
        json.loads((tmp_path / "two" / "summary.json").read_text(encoding="utf-8")),
    )
    assert one == pytest.approx(two, rel=1e-5)


def test_a_model_with_known_probabilities(tmp_path):
    tokens = 2 + len(WORDS)
    uniform = make_constant_model(tmp_path / "uniform", {})
    found, summary = run(tmp_path / "run", make_inputs(tmp_path, uniform))
    assert summary["perplexity/story"] == pytest.approx(tokens, rel=1e-5)
    loss = found["texts"]["story"]["loss"]
    assert loss["interval"] == [None, None], "every token is as likely, which says nothing of other texts"
    assert found["texts"]["story"]["tokens"] == (BLOCK - 1) * (9 * 21 // BLOCK)


def test_a_text_shorter_than_a_block_is_refused(tmp_path):
    inputs = make_inputs(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    sources = {"tokenizer": inputs["tokenizer"], "held_out/empty": tmp_path / "empty.txt"}
    with pytest.raises(StageError, match=r"empty.txt has 0 tokens, less than one block of 16.*leave it out"):
        run_stage(HeldOutTexts(texts=("empty",), block_tokens=BLOCK), sources, tmp_path / "texts-again")


def test_the_real_wikitext_is_held_out_text(tmp_path):
    text = real_data() / "corpus" / "wikitext-2" / "valid.txt"
    sources = {"held_out/wikitext": text, "tokenizer": make_tokenizer(tmp_path / "tokenizer")}
    _, summary = run_stage(HeldOutTexts(texts=("wikitext",), block_tokens=320), sources, tmp_path / "run")
    words = len(text.read_text(encoding="utf-8").split())
    blocks = float(summary["wikitext"])
    assert words // 320 <= blocks <= (words + 3760) // 320, "every word, and an end per document"
