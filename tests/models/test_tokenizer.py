"""Tokenizers, chat templates, and text streamed from tokens."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from kvflow_jax.errors import InvalidRequestError, ModelLoadError
from kvflow_jax.models.tokenizer import Tokenizer
from tests.models import tiny

BYTE_LEVEL = Tokenizer(tiny.byte_level_tokenizer())
SENTENCEPIECE = Tokenizer(tiny.sentencepiece_tokenizer())

TEXTS = (
    "plain words, and  two spaces ",
    "naïve café 100 °C",
    "你好世界。吾輩は猫である",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 emoji of many code points",
    "\n\ttabs\r\nand \x00 control",
    "a real replacement character: \ufffd here, and at the end \ufffd",
)


def stream(tokenizer, ids, **options):
    """Return the text of each token, pushed one at a time, and the flushed rest."""
    detokenizer = tokenizer.detokenizer(**options)
    return [detokenizer.push([token_id]) for token_id in ids], detokenizer.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_stream(smollm2, text):
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE, smollm2.tokenizer):
        ids = tokenizer.encode(text) if tokenizer is not SENTENCEPIECE else byte_pieces(text)
        pieces, rest = stream(tokenizer, ids)
        assert "".join(pieces) == text
        assert rest == ""
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


def byte_pieces(text):
    """Return the SentencePiece tokens of a text, every byte by fallback."""
    return [3 + byte for byte in text.encode()]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_stream_to_their_decode(smollm2, data):
    """For all tokens in groups of any size."""
    tokenizer = data.draw(st.sampled_from([BYTE_LEVEL, smollm2.tokenizer]))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=60))
    skip = data.draw(st.booleans())
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    text, rest = "", ids
    while rest:
        size = data.draw(st.integers(1, 5))
        text, rest = text + detokenizer.push(rest[:size]), rest[size:]
    assert text + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(max_size=8), text=st.text(max_size=30))
def test_output_continues_its_prompt(smollm2, prompt, text):
    """Streamed text is what decode adds to the text of the prompt, with leading spaces."""
    for tokenizer in (BYTE_LEVEL, smollm2.tokenizer):
        before, after = tokenizer.encode(prompt), tokenizer.encode(text)
        pieces, rest = stream(tokenizer, after)
        whole = tokenizer.decode(before + after)
        assert "".join(pieces) + rest == whole.removeprefix(tokenizer.decode(before))


def test_sentencepiece_keeps_the_space_that_decode_strips():
    the, cat = 3 + 256 + 1, 3 + 256 + 2
    assert SENTENCEPIECE.decode([the, cat]) == "the cat"
    assert stream(SENTENCEPIECE, [cat]) == ([" cat"], "")


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.one_of(st.sampled_from(["▁the", "cat", "é", "▁"]), st.text(max_size=2))))
def test_sentencepiece_pieces_and_bytes_mix(words):
    ids = []
    for word in words:
        token_id = SENTENCEPIECE.hf.backend_tokenizer.token_to_id(word)
        ids += byte_pieces(word) if token_id is None else [token_id]
    pieces, rest = stream(SENTENCEPIECE, [3 + ord("x"), *ids])
    assert "".join(pieces) + rest == SENTENCEPIECE.decode([3 + ord("x"), *ids])


def test_an_incomplete_character_is_buffered():
    ids = BYTE_LEVEL.encode("你")
    assert stream(BYTE_LEVEL, ids) == (["", "", "你"], "")
    assert stream(BYTE_LEVEL, ids[:2]) == (["", ""], "\ufffd")


def test_invalid_bytes_do_not_stall():
    """Each continuation byte without a lead becomes U+FFFD at once: none are buffered."""
    invalid = next(i for i in range(256) if BYTE_LEVEL.token_bytes(i) == b"\x80")
    pieces, rest = stream(BYTE_LEVEL, [invalid] * 50)
    assert pieces == ["\ufffd"] * 50
    assert rest == ""


def test_special_tokens_are_skipped_unless_wanted(smollm2):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert stream(tokenizer, ids)[0] == ["", "hi", ""]
    assert "".join(stream(tokenizer, ids, skip_special_tokens=False)[0]) == (
        "<|im_start|>hi<|im_end|>"
    )
    assert tokenizer.is_special(2)
    assert not tokenizer.is_special(500)


def test_a_text_that_is_no_token_is_not_the_unknown_token(smollm2):
    texts = ["<think>", "<|im_end|>", "the"]
    assert smollm2.tokenizer.special_token_ids(texts) == {"<|im_end|>": 2}


def test_ids_past_the_vocabulary_have_no_text():
    assert stream(BYTE_LEVEL, [100_000]) == ([""], "")


def test_embedded_tokenizer_splits_digits_and_keeps_spaces(smollm2):
    tokenizer = smollm2.tokenizer
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_token_ids == (2, 0)
    generator = random.Random(0)
    for _ in range(50):
        text = "".join(chr(generator.randrange(32, 0x2FFF)) for _ in range(40))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_chat_template_renders_a_conversation(smollm2):
    ids = smollm2.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    text = smollm2.tokenizer.decode(ids, skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    bare = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=False
    )
    assert len(bare) < len(ids)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([{"role": "robot", "content": "x"}], "no role robot"),
        ([{"role": "user", "content": ["x"]}], "chat template refused"),
    ],
)
def test_a_template_that_refuses_the_messages_is_an_invalid_request(messages, part):
    with pytest.raises(InvalidRequestError, match=part) as caught:
        BYTE_LEVEL.apply_chat_template(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_fault_of_the_template_is_an_invalid_request(template):
    tokenizer = Tokenizer(tiny.byte_level_tokenizer(chat_template=template))
    with pytest.raises(InvalidRequestError, match="chat template refused"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_a_missing_template_is_an_invalid_request():
    tokenizer = Tokenizer(tiny.byte_level_tokenizer(chat_template=None))
    with pytest.raises(InvalidRequestError, match="has no chat template: send a plain prompt"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_an_unsupported_decoder_is_an_error():
    from tokenizers import decoders

    hf = tiny.byte_level_tokenizer()
    hf.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelLoadError, match=r"WordPiece is not supported; supported: ByteLevel"):
        Tokenizer(hf)


def test_a_folder_gives_the_tokenizer_and_its_end_tokens(tmp_path):
    tiny.byte_level_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    tokenizer = Tokenizer.from_folder(tmp_path, eos_token_ids=(9, 11))
    own = tiny.byte_level_tokenizer().eos_token_id
    assert tokenizer.eos_token_ids == (9, 11, 7, own)
    assert tokenizer.encode("abc") == BYTE_LEVEL.encode("abc")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer.json; download it"),
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"generation_config.json": "[]"}, "generation_config.json is not a JSON object"),
    ],
)
def test_a_folder_without_a_readable_tokenizer_is_an_error(tmp_path, files, message):
    if "generation_config.json" in files:
        tiny.byte_level_tokenizer().save_pretrained(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_a_text_has_at_least_its_bytes_over_the_longest_token():
    text = "the cat " * 20
    assert len(BYTE_LEVEL.encode(text)) >= len(text.encode()) / BYTE_LEVEL.max_token_bytes
    assert BYTE_LEVEL.max_token_bytes > 1


@pytest.mark.parametrize("token", ["<0xZZ>", "<0x+D>", "<0x\x02D>"])
def test_a_token_that_only_looks_like_a_byte_is_a_text(token):
    hf = tiny.sentencepiece_tokenizer()
    model = json.loads(hf.backend_tokenizer.to_str())
    model["model"]["vocab"][token] = len(hf)
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(model)))
    )
    assert tokenizer.token_bytes(len(hf)) == token.encode()
    assert tokenizer.max_token_bytes >= 6
