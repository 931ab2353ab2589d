"""Drafts beside grammars and stop strings, over a runner whose samples follow token masks."""

import pytest

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.speculation.config import NO_SPECULATION, SpeculativeConfig
from tests.support.grammar_engine import TOKENIZER, Client, json_schema, make_engine
from tests.support.token_runner import run

SPECULATION = SpeculativeConfig(num_speculative_tokens=8, suffix_decoding_corpus_tokens=4096)
SCHEMA = json_schema(
    type="object",
    properties={"name": {"type": "string", "maxLength": 30}, "count": {"type": "integer"}},
    required=["name", "count"],
    additionalProperties=False,
)


def answers(speculation, *params, num_rounds=3):
    """Return the outputs of a prompt asked several times with each of ``params``, and the drafts.

    Each output is its text, tokens and reason.
    """
    engine = make_engine(speculation=speculation, clock=VirtualClock(), num_pages=128)
    found = []
    for _ in range(num_rounds):
        clients = [Client(engine, f"a prompt {i}", **one) for i, one in enumerate(params)]
        run(engine)
        found.append([(c.text, c.tokens, c.reason) for c in clients])
    return found, engine.stats.drafts


def test_outputs_of_grammars_are_those_without_drafts():
    params = ({"structured_outputs": SCHEMA}, {}, {"structured_outputs": SCHEMA})
    plain, _ = answers(NO_SPECULATION, *params)
    drafted, drafts = answers(SPECULATION, *params)
    assert drafted == plain
    assert drafts.num_accepted_tokens > 40
    assert plain[0][0][2] is FinishReason.STOP


def test_a_draft_ends_before_the_first_token_that_the_grammar_forbids():
    engine = make_engine()
    client = Client(engine, "a", structured_outputs=SCHEMA)
    tokens = TOKENIZER.encode('{"name": "ab', add_special_tokens=False)
    (closing,) = TOKENIZER.encode("}", add_special_tokens=False)
    masks_along = client.grammar.masks_along
    assert len(masks_along(tokens)) == len(tokens)
    assert len(masks_along([*tokens[:4], closing, *tokens[4:]])) == 4
    assert masks_along([]) == []
    # Behind the end nothing follows, so that nothing need be sampled there.
    whole = TOKENIZER.encode('{"name": "ab", "count": 1}', add_special_tokens=False)
    assert len(masks_along(whole)) == len(whole) - 1
    engine.abort(client.id)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_stop_string_ends_an_accepted_run(length):
    ((text, *_),), *_ = answers(NO_SPECULATION, {})[0]
    stop = text[20 : 20 + length]
    assert stop.isprintable()
    for params in ({"stop": [stop]}, {"stop": [stop], "include_stop": True}):
        plain, _ = answers(NO_SPECULATION, params)
        drafted, drafts = answers(SPECULATION, params)
        assert drafted == plain
        assert plain[0][0][2] is FinishReason.STOP
        assert drafts.num_accepted_tokens > 0


def test_requests_with_penalties_have_no_drafts_and_are_counted():
    _, drafts = answers(SPECULATION, {"presence_penalty": 1.0}, {"logit_bias": {5: 1.0}})
    assert drafts.num_excluded == 3
    assert drafts.num_accepted_tokens > 0
