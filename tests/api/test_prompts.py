"""Prompts and conversations become token ids, and invalid ones are refused."""

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from kvflow_jax.api.prompts import (
    PromptEncoder,
    is_single_prompt,
    list_conversations,
    list_prompts,
)
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.models.control_tokens import ControlTokens
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints

SYSTEM = {"role": "system", "content": "You plan."}
USER = {"role": "user", "content": "Plan this."}
PARAMS = SamplingParams()


def text_of(token_ids):
    return "".join(map(chr, token_ids))


class CharTokenizer:
    """A token for each character; a message is ``<role>content;``."""

    control_tokens = ControlTokens(Backend(BPE()), "")

    def encode(self, text):
        return list(map(ord, text))

    def apply_chat_template(self, messages, *, add_generation_prompt=True):
        return self.encode("".join(f"<{m['role']}>{m['content']};" for m in messages))


@pytest.fixture
def encoder():
    return PromptEncoder(CharTokenizer())


def test_a_text_is_encoded_and_token_ids_stay(encoder):
    hints, params = Hints(agent_id="planner"), SamplingParams(seed=1)
    spec = encoder.text("ab", params, hints)
    assert spec.prompt_ids.tolist() == [97, 98]
    assert (spec.params, spec.hints) == (params, hints)
    for one in (encoder, PromptEncoder(None)):
        assert one.text([1, 2], params, None).prompt_ids.tolist() == [1, 2]


def test_a_conversation_is_written_with_the_chat_template(encoder):
    spec = encoder.chat([SYSTEM, USER], PARAMS, None)
    assert text_of(spec.prompt_ids) == "<system>You plan.;<user>Plan this.;"
    assert spec.hints is None


def test_the_fixed_prefix_of_an_agent_is_its_system_message(encoder):
    spec = encoder.chat([SYSTEM, USER], PARAMS, Hints(agent_id="planner"))
    fixed = spec.prompt_ids[: spec.hints.num_fixed]
    assert text_of(fixed).startswith("<system>You plan.")
    assert len(fixed) < len(spec.prompt_ids)


@pytest.mark.parametrize("hints", [Hints(agent_id="planner", num_fixed=3), Hints(session_id="s")])
def test_a_fixed_prefix_that_is_given_or_of_no_agent_is_not_derived(encoder, hints):
    assert encoder.chat([SYSTEM, USER], PARAMS, hints).hints == hints


@pytest.mark.parametrize("hints", [None, Hints(workflow_id="run")])
def test_the_system_messages_are_measured_where_agents_are_recognised_by_them(encoder, hints):
    assert encoder.chat([SYSTEM, USER], PARAMS, hints).num_system is None
    encoder = PromptEncoder(CharTokenizer(), recognises_agents=True)
    spec = encoder.chat([SYSTEM, USER], PARAMS, hints)
    assert text_of(spec.prompt_ids[: spec.num_system]).startswith("<system>You plan.")
    assert spec.num_system < len(spec.prompt_ids)
    assert spec.hints == hints
    assert encoder.chat([USER], PARAMS, hints).num_system is None
    assert encoder.chat([SYSTEM, USER], PARAMS, Hints(agent_id="planner")).num_system is None


def test_without_a_tokenizer_text_is_refused():
    encoder = PromptEncoder(None)
    for encode, prompt in ((encoder.text, "ab"), (encoder.chat, [USER])):
        with pytest.raises(InvalidRequestError, match="no tokenizer: pass token ids"):
            encode(prompt, PARAMS, None)


def test_an_empty_conversation_is_refused(encoder):
    with pytest.raises(InvalidRequestError, match="at least one message") as error:
        encoder.chat([], PARAMS, None)
    assert error.value.param == "messages"


def test_hints_of_another_type_are_refused(encoder):
    for encode, prompt in ((encoder.text, [1]), (encoder.chat, [USER])):
        with pytest.raises(InvalidRequestError, match="hints must be"):
            encode(prompt, PARAMS, {"agent_id": "planner"})


@pytest.mark.parametrize("prompt", ["text", "", [1, 2], (1, 2), np.arange(3), [np.int32(1)]])
def test_single_prompts(prompt):
    assert is_single_prompt(prompt)


@pytest.mark.parametrize("prompts", [[], ["a"], [[1, 2]], [np.arange(3)], 5, None])
def test_lists_of_prompts_and_other_values_are_no_single_prompt(prompts):
    assert not is_single_prompt(prompts)


def test_one_prompt_and_a_list_of_prompts_become_lists():
    assert list_prompts("text") == (["text"], True)
    assert list_prompts([1, 2]) == ([[1, 2]], True)
    assert list_prompts(["text", [1, 2]]) == (["text", [1, 2]], False)
    assert list_prompts([]) == ([], False)
    with pytest.raises(InvalidRequestError, match="prompts must be text") as error:
        list_prompts(5)
    assert error.value.param == "prompts"


def test_one_conversation_and_a_list_of_them_become_lists():
    assert list_conversations([SYSTEM, USER]) == ([[SYSTEM, USER]], True)
    assert list_conversations([[USER], [SYSTEM]]) == ([[USER], [SYSTEM]], False)
    assert list_conversations([]) == ([[]], True)
    for messages in ("hello", USER, 5):
        with pytest.raises(InvalidRequestError, match="messages must be a list") as error:
            list_conversations(messages)
        assert error.value.param == "messages"
