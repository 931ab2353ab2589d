"""Tokenizers of .gguf files split and merge text as llama.cpp and transformers do."""

import pytest
from tokenizers import pre_tokenizers

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.gguf_pre_tokenizers import PRE_TOKENIZERS
from kvflow_jax.models.loading.gguf_tokenizer import build_tokenizer
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models import tiny

TEXT = "I'll pay 12345 €,  now\n\nHelloWorld it's\n"
SMALL = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["t h", "th e"]}


def fields_of(pre, tokens=(), **more):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fields = {"tokens": [*alphabet, "th", "the", *tokens], "pre": pre} | more
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return SMALL | {name: value for name, value in named.items() if value is not None}


def words(pre) -> list[str]:
    """Return the words that the text is split into before BPE merges."""
    backend = build_tokenizer(fields_of(pre), "f").backend_tokenizer
    return [TEXT[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(TEXT)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "I|'ll| pay| 12345| €,| | now|\n|\n|HelloWorld| it|'s|\n"),
        ("smollm", "I|'ll| pay| |1|2|3|4|5| €,| | now|\n|\n|HelloWorld| it|'s|\n"),
        ("llama-bpe", "I|'ll| pay| |123|45| €,| | now|\n\n|HelloWorld| it|'s|\n"),
        ("qwen2", "I|'ll| pay| |1|2|3|4|5| €,| | now|\n\n|HelloWorld| it|'s|\n"),
        ("tekken", "I|'ll| pay| |1|2|3|4|5| €,| | now|\n\n|Hello|World| it|'s|\n"),
        ("deepseek-coder", "I|'|ll| pay| |1|2|3|4|5| |€|,| | now|\n|\n|HelloWorld| it|'|s|\n"),
        ("seed-coder", "I|'ll| pay| |1|2|3|4|5| €,| | now|\n\n|HelloWorld| it|'s|\n"),
        ("gpt-4o", "I'll| pay| |123|45| €,| | now|\n\n|Hello|World| it's|\n"),
        ("default", "I|'|ll| pay| |123|45| €|,| | now|\n|\n|HelloWorld| it|'|s|\n"),
    ],
)
def test_each_pre_tokenizer_splits_text_into_its_words(pre, expected):
    assert "|".join(words(pre)) == expected


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_decoding_gives_back_the_text(pre):
    tokenizer = Tokenizer(build_tokenizer(fields_of(pre), "f"))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    stream = tokenizer.detokenizer()
    assert stream.push(tokenizer.encode(TEXT)) + stream.flush() == TEXT


def test_a_missing_pre_tokenizer_is_logged(caplog):
    build_tokenizer(fields_of(None), "some.gguf")
    assert "some.gguf names no pre-tokenizer; using llama.cpp's default" in caplog.text


def test_added_tokens_stay_whole():
    fields = fields_of(
        "qwen2", ["<|end|>", "<think>"], token_type=[1] * 258 + [3, 4], eos_token_id=258
    )
    tokenizer = Tokenizer(build_tokenizer(fields, "f"))
    ids = tokenizer.encode("a<think>b<|end|>")
    assert ids[1:] == [259, ids[2], 258]
    assert tokenizer.eos_token_ids == (258,)
    assert tokenizer.is_special(258)
    assert not tokenizer.is_special(259)


@pytest.mark.parametrize("bos", ["$0", "$A", "a b", ":1", "x:9999999999999999999999"])
def test_a_bos_may_be_spelled_as_a_piece_of_a_template(bos):
    fields = fields_of("qwen2", [bos], token_type=[1] * 258 + [3], bos_token_id=258)
    fields["tokenizer.ggml.add_bos_token"] = True
    assert Tokenizer(build_tokenizer(fields, "f")).encode("the") == [258, 257]


@pytest.mark.parametrize(
    ("pre", "add_bos", "expected"),
    [("qwen2", None, False), ("qwen2", True, True), ("llama-bpe", None, True),
     ("llama-bpe", False, False)],
)  # fmt: skip
def test_bos_is_added_by_the_field_or_the_pre_tokenizers_default(pre, add_bos, expected):
    fields = fields_of(pre, ["<s>"], token_type=[1] * 258 + [3], bos_token_id=258)
    if add_bos is not None:
        fields["tokenizer.ggml.add_bos_token"] = add_bos
    tokenizer = Tokenizer(build_tokenizer(fields, "f"))
    assert (tokenizer.encode("the") == [258, 257]) == expected
    assert tokenizer.encode("the", add_special_tokens=False) == [257]


def test_unused_tokens_at_the_end_are_no_tokens():
    """They pad the vocabulary to the embeddings: a text that spells one is none."""
    pads = ["[PAD258]", "[PAD259]"]
    types = [1] * 258 + [5] * 2
    tokenizer = Tokenizer(build_tokenizer(fields_of("llama-bpe", pads, token_type=types), "f"))
    assert tokenizer.vocab_size == 258
    assert len(tokenizer.encode("[PAD258]")) == 8
    assert tokenizer.decode([258, 257, 259]) == "the"


def test_a_padding_token_of_texts_is_not_skipped():
    """Converters write 0 where there is none; token 0 is an exclamation mark."""
    fields = fields_of("qwen2", token_type=[1] * 258, padding_token_id=0, unknown_token_id=0)
    tokenizer = Tokenizer(build_tokenizer(fields, "f"))
    assert tokenizer.encode("!") == [0]
    assert tokenizer.decode([257, 0]) == "the!"


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
WORDS = ["▁", "t", "h", "e", "th", "▁the", "▁th", "he", "c", "a", "at", "cat", "ca"]


def sentencepiece(words=WORDS, merges_in_token_order=False, **more):
    tokens = [*PIECES, *words]
    scores = [0.0] * len(PIECES) + [-float(i) for i in range(len(words))]
    types = [2, 3, 3] + [6] * 256 + [1] * len(words)
    fields = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in (fields | more).items()}
    return Tokenizer(build_tokenizer(named, "f", merges_in_token_order=merges_in_token_order))


def pieces(tokenizer, text):
    return tokenizer.hf.convert_ids_to_tokens(tokenizer.encode(text))


def test_sentencepiece_merges_the_best_token_first():
    # "th" is better than "he", "at" than "ca": so "c a t" becomes "c at", then "cat".
    assert pieces(sentencepiece(), "the cat") == ["<s>", "▁the", "▁", "cat"]


def test_sentencepiece_falls_back_to_bytes():
    tokenizer = sentencepiece()
    assert pieces(tokenizer, "é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    for text in ("the cat", "naïve 日本  the\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_unknown_token_is_a_special_one():
    tokenizer = sentencepiece()
    assert pieces(tokenizer, "the<unk>cat") == ["<s>", "▁the", "<unk>", "▁", "cat"]
    assert tokenizer.decode([0, 1]) == ""


def test_equal_scores_leave_the_order_of_the_tokens():
    scores = [-1000.0] * (len(PIECES) + len(WORDS))
    assert pieces(sentencepiece(scores=scores), "the cat") == pieces(sentencepiece(), "the cat")


def test_sentencepiece_without_a_space_prefix():
    assert pieces(sentencepiece(add_space_prefix=False), "the") == ["<s>", "th", "e"]


def test_gemma_merges_in_the_order_of_its_tokens():
    """Its scores are all 0, and its runs of spaces are stored as spaces."""
    words = ["▁", "  ", "t", "h", "e", "he", "th"]
    tokenizer = sentencepiece(
        words,
        merges_in_token_order=True,
        scores=[0.0] * (len(PIECES) + len(words)),
        token_type=[2, 3, 3] + [6] * 256 + [1, 4] + [1] * 5,
    )
    assert pieces(tokenizer, "the  the") == ["<s>", "t", "he", "▁▁", "t", "he"]
    assert tokenizer.decode(tokenizer.encode("the  the")) == "the  the"
    assert tokenizer.vocab_size == len(PIECES) + len(words)


def test_the_chat_template_is_that_of_the_file():
    fields = fields_of("gpt-2", ["<s>", "</s>"], token_type=[1] * 258 + [3, 3])
    fields["tokenizer.chat_template"] = tiny.CHAT_TEMPLATE
    tokenizer = Tokenizer(build_tokenizer(fields, "f"))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "the"}])
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>user: the</s><s>assistant: "


def test_a_missing_field_is_named():
    with pytest.raises(ModelLoadError, match=r"missing tokenizer\.ggml\.scores"):
        build_tokenizer({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a"]}, "f")


@pytest.mark.parametrize("merge", ["h t", "x1 t", "t", "", " ", "th th the"])
def test_merges_of_tokens_that_there_are_not_are_refused(merge):
    with pytest.raises(ModelLoadError, match="the tokenizer of f cannot be built"):
        build_tokenizer(fields_of("gpt-2", merges=["t h", merge]), "f")


@pytest.mark.parametrize(("strips", "expected"), [(True, [3, 4]), (False, [3, 6, 4])])
def test_control_tokens_take_the_white_space_behind_them_if_the_family_says_so(strips, expected):
    tokens = ["<unk>", "<s>", "</s>", "<|end|>", "<|user|>", "a", "\n", "<0x0A>"]
    fields = {
        "tokens": tokens,
        "model": "llama",
        "scores": [0.0] * len(tokens),
        "token_type": [2, 3, 3, 3, 3, 1, 1, 6],
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": False,
        "add_space_prefix": False,
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    hf = build_tokenizer(named, "f", strips_after_control=strips)
    assert hf.encode("<|end|>\n<|user|>") == expected
    assert hf.encode("<s>\n") == [1, 6]
