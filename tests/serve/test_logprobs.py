from __future__ import annotations

import math

from kvflow_jax.requests.outputs import TokenLogprobs
from kvflow_jax.serve.logprobs import LOWEST, LogprobWriter, TextOffsets
from tests.serve.serve_fakes import FakeTokenizer


class ByteTokenizer(FakeTokenizer):
    """One token per byte; token 0 is special."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return token_id == 0


def offsets_of(data: bytes, *, skips_special: bool = False) -> list[int]:
    offsets = TextOffsets(ByteTokenizer())
    offsets.skips_special = skips_special
    return [offsets.advance(token_id) for token_id in data]


def test_a_character_of_several_tokens_counts_once() -> None:
    assert offsets_of("aéb".encode()) == [0, 1, 1, 2]


def test_invalid_bytes_count_as_a_replacement_character_before_the_next_token() -> None:
    assert offsets_of(b"\xc3b!") == [0, 1, 2]


def test_special_tokens_count_only_if_they_are_part_of_the_text() -> None:
    assert offsets_of(b"a\0b") == [0, 1, 2]
    assert offsets_of(b"a\0b", skips_special=True) == [0, 1, 1]


def test_a_chat_reports_bytes_and_alternatives_of_each_token() -> None:
    entry = TokenLogprobs(ord("b"), -1.5, ((ord("a"), -0.5), (ord("b"), -1.5)))
    (token,) = LogprobWriter(FakeTokenizer()).chat([entry])["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("b", -1.5, [ord("b")])
    assert [(top["token"], top["logprob"]) for top in token["top_logprobs"]] == [
        ("a", -0.5),
        ("b", -1.5),
    ]


def test_a_model_without_a_tokenizer_reports_token_ids() -> None:
    writer = LogprobWriter(None)
    (token,) = writer.chat([TokenLogprobs(5, -1.0)])["content"]
    assert (token["token"], token["bytes"]) == ("token_id:5", None)
    assert writer.offsets().advance(5) == 0


def test_an_impossible_token_has_the_lowest_finite_value() -> None:
    writer = LogprobWriter(FakeTokenizer())
    (token,) = writer.chat([TokenLogprobs(5, -math.inf)])["content"]
    assert token["logprob"] == LOWEST


def test_alternatives_with_the_same_text_keep_the_most_likely_value() -> None:
    writer = LogprobWriter(ByteTokenizer())
    # Both bytes are invalid UTF-8 by themselves, so both read as the replacement character.
    entry = TokenLogprobs(ord("b"), -3.0, ((0xC3, -1.0), (0xC4, -2.0)))
    (top,) = writer.completion([entry], writer.offsets())["top_logprobs"]
    assert top == {"\ufffd": -1.0, "b": -3.0}


def test_the_first_token_of_an_echoed_prompt_has_no_probability() -> None:
    writer = LogprobWriter(FakeTokenizer())
    written = writer.completion([TokenLogprobs(ord("b"), -1.0)], writer.offsets(), ord("a"))
    assert written["tokens"] == ["a", "b"]
    assert written["token_logprobs"] == [None, -1.0]
    assert written["top_logprobs"] == [None, {"b": -1.0}]
    assert written["text_offset"] == [0, 1]


def test_prompt_logprobs_include_each_prompt_token_beside_its_alternatives() -> None:
    entry = TokenLogprobs(ord("b"), -3.0, ((ord("a"), -1.0),))
    first, second = LogprobWriter(FakeTokenizer()).prompt([entry])
    assert first is None
    assert second == {
        str(ord("a")): {"logprob": -1.0, "decoded_token": "a"},
        str(ord("b")): {"logprob": -3.0, "decoded_token": "b"},
    }
