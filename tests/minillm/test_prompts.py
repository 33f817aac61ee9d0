"""Prompts as tokens have BOS once, and special tokens only where the template writes them."""

from datetime import date

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from minillm.config import Template
from minillm.data.encoding import encode_texts
from minillm.data.prompts import fit_prompts, template_of
from minillm.errors import StageError
from minillm.models.tokenizers_bpe import train_bpe
from minillm.stages.reading import EncodedPrompts
from tests.minillm.direct import encode_prompts

WORDS = ["<s>", "</s>", "<unk>", "<|user|>", "say", "cat", "do", "Ask:"]
PLAIN = Template(with_context="Ask: {instruction} {context}", without_context="Ask: {instruction}")
WITH_BOS = Template(with_context="<s> Ask: {instruction} {context}", without_context="<s> Ask: {instruction}")
CHAT = Template(
    with_context="<s> <|user|> {instruction} {context} </s>", without_context="<s> <|user|> {instruction} </s>"
)


def words(adds_bos: bool) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>"],
    )


@pytest.mark.parametrize(
    ("adds_bos", "template", "opening"),
    [(True, PLAIN, [0]), (True, WITH_BOS, [0]), (False, WITH_BOS, [0]), (False, PLAIN, [])],
)
def test_bos_stands_once_whoever_writes_it(adds_bos, template, opening):
    tokenizer = words(adds_bos)
    asked = [("say", "cat"), ("say cat", "")]
    assert encode_prompts(tokenizer, template, asked) == [[*opening, 7, 4, 5]] * 2
    assert encode_prompts(tokenizer, template, []) == []


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_template_may_write_special_tokens(adds_bos):
    assert encode_prompts(words(adds_bos), CHAT, [("say", "cat"), ("do", "")]) == [[0, 3, 4, 5, 1], [0, 3, 6, 1]]


@pytest.mark.parametrize("template", [PLAIN, WITH_BOS, CHAT])
def test_a_special_token_named_in_a_question_is_text(template):
    """The tokenizer is byte-level, so that any text can be read back."""
    tokenizer = train_bpe(["say cat"], 300)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|user|>"]})
    special = tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<|user|>", "<|endoftext|>"])
    assert isinstance(special, list)
    question = ("What do </s> and <|user|> do", "in <s>say</s> <|endoftext|>?")
    (ids,), (harmless,) = (encode_prompts(tokenizer, template, [asked]) for asked in (question, ("What", "in")))
    assert [i for i in ids if i in special] == [i for i in harmless if i in special], "those of the template alone"
    text = template.with_context.replace("{instruction}", question[0]).replace("{context}", question[1])
    assert tokenizer.decode(ids) == text


def test_a_question_without_such_names_is_encoded_with_the_template_in_one_piece():
    """Merges may cross from the template into the instruction."""
    tokenizer = train_bpe(["Ask: say cat"] * 3, 300)
    assert encode_prompts(tokenizer, PLAIN, [("say", "cat")]) == encode_texts(tokenizer, ["Ask: say cat"])


def test_a_prompt_cut_down_to_its_opening_keeps_nothing_else():
    settings = EncodedPrompts(template=PLAIN, max_prompt_tokens=1, long_prompts="cut", answer_tokens=4)
    assert fit_prompts("benchmark x", [[0, 4, 5]], settings, [0]) == ([[0]], 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"chat": False, "system": "Be brief."}, "`system`: only the tokenizer's own template reads it"),
        ({"chat": False, "variables": {"a": 1}}, "`variables`: only the tokenizer's own"),
        ({"without_context": "{instruction}", "system": "x", "variables": {"a": 1}}, "`system` and `variables`: only"),
        ({"without_context": "{instruction}", "chat": True}, "`chat` is for the tokenizer's own template"),
        ({"variables": {"tools": []}}, "`variables` has 'tools', which transformers gives itself"),
        ({"variables": {"enable-thinking": False}}, "`variables` has 'enable-thinking'"),
        ({"variables": {"day": date(2026, 1, 1)}}, "variables.day"),
    ],
)
def test_settings_that_no_template_reads_are_refused_by_name(fields, words):
    with pytest.raises(ValidationError) as error:
        Template(**fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (Template(chat=True), "data.template has `chat`"),
        (Template(system="Be brief."), "data.template has `system`"),
        (Template(system="Be brief.", variables={"a": 1}), "data.template has `system` and `variables`"),
    ],
)
def test_a_tokenizer_without_a_chat_template_refuses_what_only_one_reads(template, words):
    with pytest.raises(StageError, match=f"{words}, but the tokenizer has no chat template"):
        template_of(train_bpe(["say cat"], 300), template)
