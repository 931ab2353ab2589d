"""Prompts and conversations become token ids, and invalid ones are refused."""

import numpy as np
import pytest

from kvflow_jax.api.prompts import Call, PromptEncoder, is_single_prompt
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.hints import Hints

SYSTEM = {"role": "system", "content": "You plan."}
USER = {"role": "user", "content": "Plan this."}


class CharTokenizer:
    """A token for each character; a message is ``<role>content;``."""

    def encode(self, text):
        return list(map(ord, text))

    def apply_chat_template(self, messages, *, add_generation_prompt=True):
        return self.encode("".join(f"<{m['role']}>{m['content']};" for m in messages))


@pytest.fixture
def encoder():
    return PromptEncoder(CharTokenizer())


def test_a_text_is_encoded_and_token_ids_stay(encoder):
    hints = Hints(agent_id="planner")
    assert encoder.text("ab", hints) == Call([97, 98], hints)
    assert encoder.text([1, 2], None) == Call([1, 2], None)
    assert PromptEncoder(None).text([1, 2], None).prompt == [1, 2]


def test_a_conversation_is_written_with_the_chat_template(encoder):
    call = encoder.chat([SYSTEM, USER], None)
    assert "".join(map(chr, call.prompt)) == "<system>You plan.;<user>Plan this.;"
    assert call.hints is None


def test_the_fixed_prefix_of_an_agent_is_its_system_message(encoder):
    call = encoder.chat([SYSTEM, USER], Hints(agent_id="planner"))
    assert "".join(map(chr, call.prompt[: call.hints.num_fixed])).startswith("<system>You plan.")
    assert call.hints.num_fixed < len(call.prompt)


@pytest.mark.parametrize("hints", [Hints(agent_id="planner", num_fixed=3), Hints(session_id="s")])
def test_a_fixed_prefix_that_is_given_or_of_no_agent_is_not_derived(encoder, hints):
    assert encoder.chat([SYSTEM, USER], hints).hints == hints


def test_without_a_tokenizer_text_is_refused():
    encoder = PromptEncoder(None)
    for encode in (lambda: encoder.text("ab", None), lambda: encoder.chat([USER], None)):
        with pytest.raises(InvalidRequestError, match="no tokenizer: pass token ids"):
            encode()


def test_an_empty_conversation_is_refused(encoder):
    with pytest.raises(InvalidRequestError, match="at least one message") as error:
        encoder.chat([], None)
    assert error.value.param == "messages"


def test_hints_of_another_type_are_refused(encoder):
    for encode in (encoder.text, encoder.chat):
        with pytest.raises(InvalidRequestError, match="hints must be"):
            encode([1], {"agent_id": "planner"})


@pytest.mark.parametrize("prompt", ["text", "", [1, 2], (1, 2), np.arange(3), [np.int32(1)]])
def test_single_prompts(prompt):
    assert is_single_prompt(prompt)


@pytest.mark.parametrize("prompts", [[], ["a"], [[1, 2]], [np.arange(3)], 5, None])
def test_lists_of_prompts_and_other_values_are_no_single_prompt(prompts):
    assert not is_single_prompt(prompts)
