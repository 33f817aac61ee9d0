"""Weights that are damaged, incomplete, quantised or of another model are refused before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from minillm.errors import StageError
from minillm.models.causal_lm import load_model
from minillm.models.model_files import require_weights
from minillm.models.tokenizers_bpe import train_bpe
from minillm.models.weight_files import require_fitting_weights
from minillm.preparation.model_checks import build_skeleton
from tests.minillm.direct import run_stage
from tests.minillm.test_preparation import ALONE, TEXTS, model_directory

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM, MATRIX = "transformer.h.0.ln_1.weight", "transformer.h.0.mlp.c_fc.weight"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("whole") / "mine", train_bpe(TEXTS, 300))


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "mine")


def store(model: Path, weights: Weights, file: str = FILE) -> None:
    save_file(weights, model / file, metadata={"format": "pt"})


def rewrite(change: Callable[[Weights], Weights]) -> Callable[[Path], None]:
    return lambda model: store(model, change(load_file(model / FILE)))


def shard(model: Path) -> None:
    """Replace the weight file by two shards with their index."""
    weights = load_file(model / FILE)
    names = sorted(weights)
    places = {name: FIRST if i < len(names) // 2 else SECOND for i, name in enumerate(names)}
    for file in (FIRST, SECOND):
        store(model, {name: weights[name] for name in names if places[name] == file}, file)
    (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    (model / FILE).unlink()


def sharded(damage: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda model: (shard(model), damage(model))


def cut(model: Path) -> None:
    content = (model / FILE).read_bytes()
    (model / FILE).write_bytes(content[: len(content) // 2])


def configure(**fields: object) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")

    return change


def reindex(model: Path) -> None:
    index = json.loads((model / INDEX).read_text(encoding="utf-8"))
    index["weight_map"][NORM] = next(f for f in (FIRST, SECOND) if f != index["weight_map"][NORM])
    (model / INDEX).write_text(json.dumps(index), encoding="utf-8")


SERVING: dict[str, Callable[[Path], object]] = {
    "as it was saved": lambda model: None,
    "in shards": shard,
    "in half precision": rewrite(lambda w: {n: t.bfloat16() for n, t in w.items()}),
    "under the names of its body, with masks and constants that older versions saved": rewrite(
        lambda w: (
            {n.removeprefix("transformer."): t for n, t in w.items()}
            | {"h.0.attn.bias": torch.ones(1, 1, 64, 64).bool(), "h.0.attn.masked_bias": torch.tensor(-1e4)}
        )
    ),
    "with the tied head": rewrite(lambda w: w | {"lm_head.weight": w["transformer.wte.weight"].clone()}),
    "in a pickle": lambda model: (
        torch.save(load_file(model / FILE), model / "pytorch_model.bin"),
        (model / FILE).unlink(),
    ),
}
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "of a compiled model": (
        rewrite(lambda w: {f"_orig_mod.{n}": t for n, t in w.items()}),
        r"does not hold the weights of the gpt2 .*: 17 missing \(.*; 15 left over \(_orig_mod\.",
    ),
    "one tensor missing": (
        rewrite(lambda w: {n: t for n, t in w.items() if n != MATRIX}),
        rf"1 missing \({MATRIX}\)\. Missing weights would be random",
    ),
    "one tensor too many": (rewrite(lambda w: w | {"v_head.weight": torch.ones(1, 8)}), r"1 left over \(v_head"),
    "another shape": (
        rewrite(lambda w: w | {MATRIX: torch.ones(8, 16)}),
        rf"1 of another shape \({MATRIX} \(8, 16\), not \(8, 32\)\)",
    ),
    "git-lfs": (
        lambda model: (model / FILE).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", encoding="utf-8"
        ),
        r"model\.safetensors is a pointer of git-lfs, .*git lfs pull",
    ),
    "half a file": (
        cut,
        r"model\.safetensors cannot be read as weights \(SafetensorError: .*\); it .* not downloaded to the end ",
    ),
    "an empty file": (lambda model: (model / FILE).write_bytes(b""), "is empty; download it again"),
    "another format": (
        lambda model: (model / FILE).write_bytes(b"\x10" + bytes(40)),
        r"\(SafetensorError: .* in header: .*\); it .* has another format",
    ),
    "eight bits": (
        rewrite(lambda w: w | {MATRIX: w[MATRIX].to(torch.int8)}),
        rf"are quantised \({MATRIX} is int8\), .* in bfloat16 or float32",
    ),
    "eight bits with a fraction": (
        rewrite(lambda w: w | {MATRIX: w[MATRIX].to(torch.float8_e4m3fn)}),
        rf"are quantised \({MATRIX} is float8_e4m3fn\)",
    ),
    "quantised, it says": (configure(quantization_config={"quant_method": "gptq"}), r"are quantised \(gptq\)"),
    "a shard missing": (
        sharded(lambda model: (model / SECOND).unlink()),
        rf"names 2 files, of which 1 are not beside it \({SECOND}\)",
    ),
    "a shard too many": (
        sharded(lambda model: store(model, {"x": torch.ones(1)}, "model-00003-of-00003.safetensors")),
        r"and model-00003-of-00003\.safetensors beside it would not be read",
    ),
    "no index": (
        sharded(lambda model: (model / INDEX).unlink()),
        rf"has {FIRST}, {SECOND}, but neither model\.safetensors nor",
    ),
    "a torn index": (
        sharded(lambda model: (model / INDEX).write_text('{"weight_map": {', encoding="utf-8")),
        r"index\.json is no index of shards",
    ),
    "an index of another version": (sharded(reindex), rf"the index beside it disagree on {NORM}"),
    "an adapter beside them": (
        lambda model: (model / "adapter_config.json").write_text("{}", encoding="utf-8"),
        r"holds an adapter \(adapter_config\.json\), .* merge it into its base",
    ),
    "a pickle of the whole training": (
        lambda model: (
            torch.save({"model": load_file(model / FILE), "step": 3}, model / "pytorch_model.bin"),
            (model / FILE).unlink(),
        ),
        r"pytorch_model\.bin holds more than tensors by name",
    ),
}


@pytest.mark.parametrize("name", SERVING)
def test_weights_that_serve(name, model, tmp_path):
    SERVING[name](model)
    run_stage(ALONE, {"model": model}, tmp_path / "run")
    load_model(model)


GPTJ = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "rotary_dim": 4}
FALCON = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MASK = torch.ones(1, 1, 32, 32).bool()
OLDER: dict[str, tuple[dict, Weights]] = {
    "gptj": (GPTJ, {"attn.bias": MASK, "attn.masked_bias": torch.tensor(-1e9)}),
    "codegen": (GPTJ, {"attn.causal_mask": MASK}),
    "falcon": (FALCON, {"self_attention.maybe_rotary.inv_freq": torch.ones(4)}),
}
"""Fields of small models, and what older versions of transformers also saved in their first block."""


@pytest.mark.parametrize("name", OLDER)
def test_what_older_versions_saved_and_newer_ones_compute_is_no_left_over(name, tmp_path):
    fields, computed = OLDER[name]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=20, **fields)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / FILE) | {f"transformer.h.0.{part}": tensor for part, tensor in computed.items()}
    store(tmp_path, weights)
    _, skeleton = build_skeleton("model", tmp_path, 20)
    require_fitting_weights("model", tmp_path, {}, skeleton)
    load_model(tmp_path)
    left = "transformer.h.0.attn.q_proj.bias"
    store(tmp_path, weights | {left: torch.ones(16)})
    with pytest.raises(StageError, match=rf"1 left over \({left}\)"):
        require_fitting_weights("model", tmp_path, {}, skeleton)


@pytest.mark.parametrize("name", DAMAGED)
def test_weights_that_do_not_serve_are_refused(name, model, tmp_path):
    damage, message = DAMAGED[name]
    damage(model)
    with pytest.raises(StageError, match=message):
        run_stage(ALONE, {"model": model}, tmp_path / "run")


@pytest.mark.parametrize("name", ["of a compiled model", "one tensor missing", "one tensor too many", "another shape"])
def test_nothing_is_loaded_with_random_weights(name, model):
    damage, message = DAMAGED[name]
    damage(model)
    with pytest.raises(StageError, match=message):
        load_model(model)


def test_an_adapter_is_found_before_anything_starts(model):
    (model / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StageError, match="holds an adapter"):
        require_weights(model)
    with pytest.raises(StageError, match="holds an adapter"):
        load_model(model)
