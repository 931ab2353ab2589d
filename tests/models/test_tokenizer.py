import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    """All pieces that one token at a time gives, and the flushed rest."""
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
    """SentencePiece tokens of a text, every byte by fallback."""
    return [3 + byte for byte in text.encode()]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_stream_to_their_decode(smollm2, data):
    """Concatenation equals decode, whatever the tokens and however they are grouped."""
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
    """Streamed text is what decode adds to the prompt's own, leading spaces included."""
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


def test_an_unfinished_character_waits():
    ids = BYTE_LEVEL.encode("你")
    assert stream(BYTE_LEVEL, ids) == (["", "", "你"], "")
    assert stream(BYTE_LEVEL, ids[:2]) == (["", ""], "\ufffd")


def test_invalid_bytes_do_not_stall():
    """Continuation bytes with no lead, for ever: each becomes U+FFFD at once, memory stays flat."""
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


def test_ids_past_the_vocabulary_are_silent():
    assert stream(BYTE_LEVEL, [100_000]) == ([""], "")


def test_embedded_tokenizer_splits_digits_and_keeps_spaces(smollm2):
    tokenizer = smollm2.tokenizer
    assert len(tokenizer.encode("2024")) == 4
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_token_ids == (2,)
    generator = random.Random(0)
    for _ in range(50):
        text = "".join(chr(generator.randrange(32, 0x2FFF)) for _ in range(40))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template(smollm2):
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
def test_template_that_refuses(messages, part):
    with pytest.raises(InvalidRequestError, match=part) as caught:
        BYTE_LEVEL.apply_chat_template(messages)
    assert caught.value.param == "messages"


def test_no_template():
    tokenizer = Tokenizer(tiny.byte_level_tokenizer(chat_template=None))
    with pytest.raises(InvalidRequestError, match="has no chat template: send a plain prompt"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_unsupported_decoder():
    from tokenizers import decoders

    hf = tiny.byte_level_tokenizer()
    hf.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelLoadError, match=r"WordPiece is not supported; supported: ByteLevel"):
        Tokenizer(hf)
