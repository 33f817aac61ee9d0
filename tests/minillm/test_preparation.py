import json
import pickle
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from minillm.config import Lora, Template
from minillm.data.encoding import encode_texts
from minillm.errors import StageError
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.batches import make_batch
from minillm.models.causal_lm import build_model, load_model, parameter_count, save_model
from minillm.models.output_head import output_head, response_hidden
from minillm.models.shared_tokenizer import load_shared_tokenizer, share
from minillm.models.tokenizers_bpe import train_bpe
from minillm.objectives.vocabulary import token_log_probs
from minillm.preparation.tokenizer_checks import has_tokenizer
from minillm.stages.reading import TOKENIZER, Prepare
from tests.minillm.direct import PLAIN, encode_prompts, real_data, run_stage, write_lines
from tests.minillm.models_in_small import ARCHITECTURES, LLAMA_LIKE
from tests.minillm.templates import TURNS, save_chat_tokenizer

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 64}
T5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
BARE = Template(with_context="{instruction} {context}", without_context="{instruction}")
TEXTS = ["the red cat runs", "the blue dog sleeps and the red bird sings", "Naïve café №3 答え 🙂\n\n  tabs\t"]


def settings(
    teacher: dict | None, student: dict | None, max_tokens: int = 64, tokenizer: str | int = "teacher.model"
) -> Prepare:
    """Return settings for a teacher and a student to initialise at random, or None if the model is an input."""
    return Prepare(
        tokenizer=tokenizer,
        template=Template(**PLAIN),
        models={"teacher.model": teacher, "student.model": student},
        max_tokens=max_tokens,
        generation_tokens=32,
    )


ALONE = Prepare(
    tokenizer="model", template=Template(**PLAIN), models={"model": None}, max_tokens=64, generation_tokens=32
)


def instructions(folder: Path) -> dict[str, Path]:
    rows = [{"instruction": text, "context": "", "response": text} for text in TEXTS]
    return {"instructions": write_lines(folder / "rows.jsonl", rows)}


def model_directory(folder: Path, tokenizer: PreTrainedTokenizerFast, **fields: object) -> Path:
    """Write a randomly initialised model with its tokenizer."""
    save_model(build_model({**GPT2, **fields}, tokenizer, seed=1), share(tokenizer), folder)
    return folder


def test_a_trained_tokenizer_loads_as_any_other_and_loses_nothing(tmp_path):
    output, summary = run_stage(settings(GPT2, GPT2, tokenizer=400), instructions(tmp_path), tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(output / TOKENIZER)
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|endoftext|>"
    assert summary["vocabulary"] == len(tokenizer) <= 400
    for text in [*TEXTS, "unseen: Ωμέγα\u2028\x00"]:
        assert tokenizer.decode(encode_texts(tokenizer, [text])[0]) == text
    assert len(encode_texts(tokenizer, ["the red"])[0]) < len("the red")
    built = build_model(GPT2, tokenizer, seed=1)
    assert json.loads((output / "models.json").read_text(encoding="utf-8"))["student.model"] == {
        "model_type": "gpt2",
        "parameters": parameter_count(built),
        "body_parameters": parameter_count(built) - 8 * (len(tokenizer) + 64),
        "matrix_edges": (8 + 24) + (8 + 8) + (8 + 32) + (32 + 8),
        "layers": 1,
        "width": 8,
        "cache_width": 16,
        "embedding_rows": len(tokenizer),
        "tokenizer_entries": len(tokenizer),
        "positions": 64,
    }


def test_adapters_that_cannot_work_are_found_before_any_training(tmp_path):
    def prepare(**adapters: tuple[Lora, ...]) -> str:
        stage = settings(GPT2, GPT2, tokenizer=300)
        stage = stage.model_copy(update={"adapters": {f"{name}.model": of for name, of in adapters.items()}})
        output, _ = run_stage(stage, instructions(tmp_path), Path(mkdtemp(dir=tmp_path)))
        return (output / "models.json").read_text(encoding="utf-8")

    fitting = (Lora(), Lora(modules=("c_attn",)))
    assert prepare(teacher=fitting, student=fitting) == prepare()
    with pytest.raises(StageError, match=r"^student\.model: training\.lora\.modules \['q_proj'\]: gpt2 has none of"):
        prepare(teacher=fitting, student=(*fitting, Lora(modules=("q_proj",))))
    with pytest.raises(StageError, match=r"^teacher\.model: training\.lora\.modules: lm_head is an embedding or"):
        prepare(teacher=(Lora(modules=("c_attn", "lm_head")),))


def test_training_a_tokenizer_twice_gives_the_same_bytes(tmp_path):
    first, second = (
        run_stage(settings(GPT2, GPT2, tokenizer=300), instructions(tmp_path), tmp_path / name)[0] / TOKENIZER
        for name in ("once", "twice")
    )
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


def test_only_training_rows_and_the_plain_text_teach_the_tokenizer(tmp_path):
    rows = [{"instruction": word * 3, "response": word} for word in ("qqqq", "zzzz")]
    inputs = {
        "instructions": write_lines(tmp_path / "rows.jsonl", rows),
        "split": write_lines(tmp_path / "split.jsonl", [{"row": 0, "split": "train"}, {"row": 1, "split": "test"}]),
        "plain_text": tmp_path / "plain.txt",
    }
    inputs["plain_text"].write_text("jjjj jjjj\n" * 3, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(
        run_stage(settings(GPT2, GPT2, tokenizer=280), inputs, tmp_path / "run")[0] / TOKENIZER
    )
    vocabulary = tokenizer.get_vocab()
    assert "qq" in vocabulary
    assert "jj" in vocabulary
    assert "zz" not in vocabulary


def test_special_tokens_written_in_a_text_stay_text():
    tokenizer = train_bpe(TEXTS, 300)
    ids = encode_texts(tokenizer, ["stop <|endoftext|> here"])[0]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "stop <|endoftext|> here"


def test_prompts_open_with_bos_only_where_the_tokenizer_adds_it():
    plain = train_bpe(TEXTS, 300)
    assert encode_prompts(plain, BARE, [("the", "")]) == encode_texts(plain, ["the"])
    opening = train_bpe(TEXTS, 300)
    opening.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    assert encode_prompts(opening, BARE, [("the", "")]) == [[0, *encode_texts(plain, ["the"])[0]]]
    assert encode_texts(opening, ["the"]) == encode_texts(plain, ["the"])


def test_the_teachers_tokenizer_is_taken_and_more_embedding_rows_are_fine(tmp_path):
    tokenizer = train_bpe(TEXTS, 300)
    teacher = model_directory(tmp_path / "teacher", tokenizer, vocab_size=len(tokenizer) + 64)
    student = model_directory(tmp_path / "student", tokenizer)
    inputs = {"teacher.model": teacher, "student.model": student}
    output, summary = run_stage(settings(None, None), inputs, tmp_path / "run")
    assert summary["tokenizer"] == "teacher.model"
    assert load_shared_tokenizer(output / TOKENIZER).tokenizer.get_vocab() == tokenizer.get_vocab()
    facts = json.loads((output / "models.json").read_text(encoding="utf-8"))
    rows = {name: fact["embedding_rows"] for name, fact in facts.items()}
    assert rows == {"teacher.model": len(tokenizer) + 64, "student.model": len(tokenizer)}


def test_different_tokenizers_are_refused_at_the_first_differing_token(tmp_path):
    ours, theirs = train_bpe(TEXTS, 262), train_bpe(["zz zz zz", *TEXTS[2:]], 262)
    inputs = {
        "teacher.model": model_directory(tmp_path / "teacher", ours),
        "student.model": model_directory(tmp_path / "student", theirs),
    }
    vocabularies = [{i: t for t, i in tokenizer.get_vocab().items()} for tokenizer in (ours, theirs)]
    first = next(i for i in range(300) if vocabularies[0].get(i) != vocabularies[1].get(i))
    with pytest.raises(StageError, match=r"teacher\.model and student\.model have different tokenizers") as error:
        run_stage(settings(None, None), inputs, tmp_path / "run")
    assert f"token {first} is {vocabularies[0][first]!r} in teacher.model" in str(error.value)


def test_tokenizers_that_differ_only_in_how_they_part_a_text_are_refused(tmp_path):
    ours, theirs = train_bpe(TEXTS, 300), train_bpe(TEXTS, 300)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inputs = {
        "teacher.model": model_directory(tmp_path / "teacher", ours),
        "student.model": model_directory(tmp_path / "student", theirs),
    }
    with pytest.raises(StageError, match="different tokenizers: the encoding of 'Naïve café"):
        run_stage(settings(None, None), inputs, tmp_path / "run")


def test_embeddings_smaller_than_the_tokenizer_are_refused(tmp_path):
    tokenizer = train_bpe(TEXTS, 300)
    small = {**GPT2, "vocab_size": 100}
    inputs = {"teacher.model": model_directory(tmp_path / "teacher", tokenizer)}
    with pytest.raises(StageError, match=f"student.model has 100 embedding rows, fewer .* {len(tokenizer)} entries"):
        run_stage(settings(None, small), inputs, tmp_path / "run")


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(tmp_path / "tok")
    with pytest.raises(StageError, match=r"tokenizer\.from: the tokenizer in .*tok has no end-of-sequence token"):
        run_stage(
            settings(GPT2, GPT2, tokenizer="tokenizer.from"), {"tokenizer.from": tmp_path / "tok"}, tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("student", "max_tokens", "message"),
    [
        ({**GPT2, "n_positions": 48}, 64, r"student.model \(gpt2\) sees at most 48 tokens, but data.max_tokens is 64"),
        ({**GPT2, "n_positions": 24}, 24, "longest benchmark prompt with its response 32"),
        ({"model_type": "gtp2"}, 64, r"model_type 'gtp2' is unknown; did you mean `gpt2`\?"),
        (T5, 64, "t5 is an encoder–decoder model"),
        ({"model_type": "vit"}, 64, "vit is not a causal language model"),
        ({**GPT2, "n_embed": 16}, 64, r"architecture\.n_embed is no field of gpt2; did you mean `n_embd`\?"),
        ({**GPT2, "n_head": 3}, 64, "student.model: transformers cannot build it .*3"),
    ],
)
def test_models_that_cannot_serve_are_refused(tmp_path, student, max_tokens, message):
    stage = settings(GPT2, student, max_tokens, tokenizer=300)
    with pytest.raises(StageError, match=message):
        run_stage(stage, instructions(tmp_path), tmp_path / "run")


def test_a_model_directory_without_weights_is_refused(tmp_path):
    tokenizer = train_bpe(TEXTS, 300)
    teacher = model_directory(tmp_path / "teacher", tokenizer)
    (teacher / "model.safetensors").unlink()
    with pytest.raises(StageError, match=r"teacher has no weights \(model\.safetensors"):
        run_stage(settings(None, GPT2), {"teacher.model": teacher}, tmp_path / "run")


def test_one_model_alone_brings_its_own_tokenizer(tmp_path):
    tokenizer = train_bpe(TEXTS, 300)
    model = model_directory(tmp_path / "mine", tokenizer)
    output, summary = run_stage(ALONE, {"model": model}, tmp_path / "run")
    assert load_shared_tokenizer(output / TOKENIZER).tokenizer.get_vocab() == tokenizer.get_vocab()
    assert list(json.loads((output / "models.json").read_text(encoding="utf-8"))) == ["model"]
    assert summary["parameters/model"] == build_model(GPT2, tokenizer, seed=1).num_parameters()


def test_a_model_that_needs_code_of_its_own_is_refused_and_none_is_run(tmp_path):
    model = model_directory(tmp_path / "mine", train_bpe(TEXTS, 300))
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    own = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Lm"}}
    (model / "config.json").write_text(json.dumps(fields | own), encoding="utf-8")
    (model / "strange.py").write_text("raise SystemExit('code of the model ran')", encoding="utf-8")
    with pytest.raises(StageError, match=r"^model: .*mine is of an architecture of its own \(strange\) and needs code"):
        run_stage(ALONE, {"model": model}, tmp_path / "run")


def test_weights_in_pickles_serve_unless_they_hold_code(tmp_path):
    model = model_directory(tmp_path / "mine", train_bpe(TEXTS, 300))
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert run_stage(ALONE, {"model": model}, tmp_path / "run")[1]["tokenizer"] == "model"
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Printing(), protocol=2))
    with pytest.raises(
        StageError, match=r"^model: .*pytorch_model\.bin cannot be read as weights alone .* safetensors"
    ):
        run_stage(ALONE, {"model": model}, tmp_path / "again")


class Printing:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return print, ("code of the pickle ran",)


@pytest.mark.parametrize(
    ("vocabulary", "rows", "message"),
    [
        (256, ["a"], "train_vocabulary is 256; every byte needs an entry: set 257 or more"),
        (300, [], "has no usable row; .*rows.jsonl:1: no field `response`"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_is_refused(tmp_path, vocabulary, rows, message):
    values = [{"instruction": row, "response": row} for row in rows] or [{"instruction": "a"}]
    inputs = {"instructions": write_lines(tmp_path / "rows.jsonl", values)}
    with pytest.raises(StageError, match=message):
        run_stage(settings(GPT2, GPT2, tokenizer=vocabulary), inputs, tmp_path / "run")


def test_training_a_tokenizer_for_weights_that_have_one_is_refused(tmp_path):
    inputs = {**instructions(tmp_path), "student.model": model_directory(tmp_path / "student", train_bpe(TEXTS, 300))}
    with pytest.raises(StageError, match=r"train_vocabulary is 300, but student\.model has weights made for"):
        run_stage(settings(GPT2, None, tokenizer=300), inputs, tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", "3", '{"added_tokens_decoder": []}', "{"])
def test_a_broken_tokenizer_configuration_is_refused_by_its_folder(tmp_path, content):
    model = model_directory(tmp_path / "mine", train_bpe(TEXTS, 300))
    (model / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=r"^model: .*mine has no tokenizer that transformers can load \(\w+Error: "):
        run_stage(ALONE, {"model": model}, tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"^model: .*config\.json holds no JSON object; get the file again"),
        ("3", "^model: transformers cannot read the configuration in .*mine: TypeError"),
        ("{", "^model: transformers cannot read the configuration in .*mine: OSError"),
        ('{"auto_map": {}, "model_type": []}', "is of an architecture of its own"),
    ],
)
def test_a_broken_configuration_is_refused_by_its_folder(tmp_path, content, message):
    model = model_directory(tmp_path / "mine", train_bpe(TEXTS, 300))
    (model / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(StageError, match=message):
        run_stage(ALONE, {"model": model}, tmp_path / "run")


def test_a_tokenizer_directory_of_the_users_choice_serves(tmp_path):
    files = real_data() / "tokenizers" / "gpt2"
    chosen = tmp_path / "gpt2"
    chosen.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (chosen / name).write_bytes((files / name).read_bytes())
    (chosen / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    stage = settings(GPT2, GPT2, tokenizer="tokenizer.from")
    output, summary = run_stage(stage, {"tokenizer.from": chosen}, tmp_path / "run")
    assert summary["vocabulary"] == 50257.0
    assert AutoTokenizer.from_pretrained(output / TOKENIZER)("Hello world").input_ids == [15496, 995]


def family(folder: Path, end: str, added: tuple[str, ...] = ()) -> Path:
    """A model of a family whose tokenizers have the same tokens; `end` is the name of its EOS, `added` are its own."""
    names = ["<|endoftext|>", "<|im_end|>", "red", "cat", "runs"]
    raw = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|endoftext|>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=end, additional_special_tokens=["<|endoftext|>", "<|im_end|>", *added]
    )
    return model_directory(folder, tokenizer, vocab_size=12)


def test_a_tokenizer_with_bos_goes_with_one_without(tmp_path):
    teacher, student = (family(tmp_path / name, "<|im_end|>") for name in ("teacher", "student"))
    opening = AutoTokenizer.from_pretrained(student)
    opening.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    opening.save_pretrained(student)
    inputs = {"teacher.model": teacher, "student.model": student}
    output, _ = run_stage(settings(None, None), inputs, tmp_path / "run")
    assert encode_prompts(load_shared_tokenizer(output / TOKENIZER).tokenizer, BARE, [("red cat", "")]) == [[2, 3]]


def test_added_tokens_may_be_in_one_tokenizer_alone_but_not_under_another_id(tmp_path):
    with_tools = family(tmp_path / "tools", "<|im_end|>", ("<|tool|>", "<|image|>"))
    plain = family(tmp_path / "plain", "<|im_end|>")
    inputs = {"teacher.model": with_tools, "student.model": plain}
    assert run_stage(settings(None, None), inputs, tmp_path / "first")[1]["vocabulary"] == 7
    inputs = {"teacher.model": plain, "student.model": with_tools}
    assert run_stage(settings(None, None), inputs, tmp_path / "second")[1]["vocabulary"] == 5
    other = family(tmp_path / "other", "<|im_end|>", ("<|image|>",))
    inputs = {"teacher.model": with_tools, "student.model": other}
    with pytest.raises(StageError, match=r"token 5 is '<\|tool\|>' in teacher\.model and '<\|image\|>' in student"):
        run_stage(settings(None, None), inputs, tmp_path / "third")


def test_a_tokenizer_that_lacks_ordinary_tokens_is_another(tmp_path):
    more, fewer = train_bpe(TEXTS, 300), train_bpe(TEXTS, 280)
    inputs = {
        "teacher.model": model_directory(tmp_path / "teacher", fewer),
        "student.model": model_directory(tmp_path / "student", more),
    }
    with pytest.raises(StageError, match=r"token 280 is absent in teacher\.model and .* take another teacher or"):
        run_stage(settings(None, None), inputs, tmp_path / "run")


HOLES = {"<unk>": 0, "red": 1, "cat": 2, "runs": 3, "sings": 4, "<eos>": 30}


def with_holes() -> PreTrainedTokenizerFast:
    """Make a tokenizer of six tokens, the last with id 30."""
    raw = Tokenizer(models.WordLevel(HOLES, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>")


def test_ids_with_holes_count_up_to_the_largest(tmp_path):
    """EOS has an id above the number of tokens; it must still be drawn, trained on and stored."""
    tokenizer = with_holes()
    model = build_model(GPT2, tokenizer, seed=1)
    assert (len(tokenizer), model.config.vocab_size) == (6, 31)
    directory = model_directory(tmp_path / "model", tokenizer, vocab_size=40)
    output, summary = run_stage(ALONE, {"model": directory}, tmp_path / "run")
    assert summary["vocabulary"] == 31
    assert json.loads((output / "models.json").read_text(encoding="utf-8"))["model"]["tokenizer_entries"] == 31
    shared = load_shared_tokenizer(output / TOKENIZER)
    assert (shared.entries, shared.ends) == (31, (30,))
    loaded = load_model(directory).eval()
    responses = Sampler(loaded, shared.ends, shared.entries).sample([Request([1, 2], 12, (1, i)) for i in range(300)])
    drawn = [token for response in responses for token in response.tokens]
    assert max(drawn) == 30
    assert 0.5 / 31 < drawn.count(30) / len(drawn) < 2 / 31, "of a random model, about as often as any other"
    batch = make_batch([[1, 2]], [[3, 30]])
    got, _ = token_log_probs(response_hidden(loaded, batch), output_head(loaded, shared.entries), torch.tensor([3, 30]))
    with torch.no_grad():
        logits = loaded(torch.tensor([[1, 2, 3, 30]])).logits[0, 1:3, :31]
    want = logits.log_softmax(dim=-1)[[0, 1], [3, 30]]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    # an id without a token is an entry too, and writes nothing
    assert shared.texts([[1, 17, 2, 30]]) == ["red cat"]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.values(), {**LLAMA_LIKE, "model_type": "gemma"}])
def test_every_token_has_an_embedding_that_learns_when_training_from_scratch(architecture):
    """By default the padding token is 0 in Gemma's configuration and 1 in OPT's; here these are EOS and `!`."""
    model: Any = build_model(architecture, train_bpe(TEXTS, 257), seed=1)
    rows = model.get_input_embeddings().weight
    assert (rows.norm(dim=1) > 0).all()
    hidden = model.base_model(input_ids=torch.arange(257)[None, :200]).last_hidden_state
    hidden.square().sum().backward()
    assert (rows.grad.norm(dim=1) > 0).tolist() == [True] * 200 + [False] * 57


def test_a_checkpoint_that_pads_with_a_real_token_learns_it_too(tmp_path):
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**LLAMA_LIKE, model_type="llama", vocab_size=20, pad_token_id=5, eos_token_id=5)
    )
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = 0.5
    model.save_pretrained(tmp_path / "model")
    loaded: Any = load_model(tmp_path / "model")
    loaded.base_model(input_ids=torch.tensor([[3, 5, 4]])).last_hidden_state.square().sum().backward()
    gradient = loaded.get_input_embeddings().weight.grad
    assert gradient.norm(dim=1).nonzero().flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("file", "found"),
    [("spiece.model", True), ("vocab.txt", True), ("tekken.json", True), ("model.safetensors", False)],
)
def test_a_tokenizer_is_seen_whatever_its_files_are_called(tmp_path, file, found):
    """A model's tokenizer that is not seen would not be compared with the shared one."""
    (tmp_path / file).touch()
    assert has_tokenizer(tmp_path) == found


def test_end_tokens_are_those_of_the_tokenizers_folder_and_those_named(tmp_path: Path):
    given = {"tokenizer.from": save_chat_tokenizer(tmp_path / "tokenizer", TURNS)}
    chosen = settings(GPT2, GPT2, tokenizer="tokenizer.from")
    output, summary = run_stage(chosen, given, tmp_path / "run")
    assert summary["end_tokens"] == "</s> <|end|>"
    named = chosen.model_copy(update={"end_tokens": ("[INST]", "</s>")})
    output, summary = run_stage(named, given, tmp_path / "named")
    assert set(str(summary["end_tokens"]).split()) == {"</s>", "<|end|>", "[INST]"}
    assert load_shared_tokenizer(output / TOKENIZER).tokenizer.chat_template == TURNS
    wrong = chosen.model_copy(update={"end_tokens": ("[INTS]",)})
    with pytest.raises(
        StageError, match=r"data.end_tokens: the tokenizer has no token '\[INTS\]'; did you mean `\[INST"
    ):
        run_stage(wrong, given, tmp_path / "wrong")
