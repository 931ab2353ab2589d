"""Outputs."""

import pytest

from kvflow_jax.requests.outputs import STEP_TOKENS_BOUNDS, FinishReason, Output, TokensPerStep


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "ends_at_token"),
    [
        (FinishReason.STOP, None, True),  # the end-of-text token
        (FinishReason.STOP, 5, True),  # a stop token
        (FinishReason.STOP, "END", False),  # a stop string, whose last token may have other text
        (FinishReason.LENGTH, None, False),
        (FinishReason.ABORT, None, False),
        (None, None, False),
    ],
)
def test_only_a_token_without_text_ends_a_text_at_a_token(
    finish_reason, stop_reason, ends_at_token
):
    output = Output(0, "", (5,), finish_reason, stop_reason=stop_reason)
    assert output.ends_at_token is ends_at_token


def test_the_token_that_completes_a_grammar_has_text():
    output = Output(0, "}", (5,), FinishReason.STOP, completes_grammar=True)
    assert not output.ends_at_token


def test_finish_reasons_are_the_strings_of_the_http_api():
    assert [f"{reason}" for reason in FinishReason] == ["stop", "length", "abort", "error"]


def test_steps_are_counted_by_their_tokens():
    before = TokensPerStep()
    steps = before.add(1).add(8).add(9).add(1_000_000)
    assert sum(before.counts) == 0
    assert steps.num_tokens == 1_000_018
    assert steps.counts[:3] == (1, 1, 1)
    assert steps.counts[len(STEP_TOKENS_BOUNDS)] == 1
