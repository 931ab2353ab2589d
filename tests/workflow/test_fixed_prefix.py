"""The fixed prefix of a chat, measured with its template."""

from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.workflow.fixed_prefix import chat_prefix_len
from tests.models import tiny

SYSTEM = {"role": "system", "content": "You plan."}
USER = {"role": "user", "content": "the task"}


def test_the_prefix_of_a_chat_ends_with_its_system_messages():
    tokenizer = Tokenizer(tiny.byte_level_tokenizer())
    prompt = tokenizer.apply_chat_template([SYSTEM, SYSTEM, USER])
    length = chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt)
    written = "<s>system: You plan.</s>" * 2
    # The token that opens the next message is not part of the prefix.
    assert tokenizer.decode(prompt[:length], skip_special_tokens=False) == written
    assert chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt, 1) == length / 2
    assert chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt, 0) == 0
    whole_len = chat_prefix_len(tokenizer, [SYSTEM, SYSTEM, USER], prompt, 9)
    assert length < whole_len < len(prompt)
    assert chat_prefix_len(tokenizer, [USER, SYSTEM], prompt) is None


@given(st.lists(st.booleans()), st.lists(st.booleans()), st.lists(st.booleans()))
def test_the_prefix_is_what_both_texts_begin_with(common, first, second):
    class Template:
        def apply_chat_template(self, messages, **args):
            return common + first

    pairs = zip(common + first, common + second, strict=False)
    expected = len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])
    assert chat_prefix_len(Template(), [SYSTEM], common + second) == expected


def test_a_template_may_refuse_system_messages_alone():
    template = (
        "{% if messages[-1].role == 'system' %}{{ raise_exception('no user') }}{% endif %}"
        + tiny.CHAT_TEMPLATE
    )
    tokenizer = Tokenizer(tiny.byte_level_tokenizer(template))
    prompt = tokenizer.apply_chat_template([SYSTEM, USER])
    assert chat_prefix_len(tokenizer, [SYSTEM, USER], prompt) is None
    assert chat_prefix_len(tokenizer, [SYSTEM, USER], prompt, 2) is not None
