from __future__ import annotations

import pytest

from kvflow_jax.reasoning.syntax import (
    DEEPSEEK_R1,
    MISTRAL,
    QWEN3,
    SYNTAXES,
    ReasoningMarkup,
    find_syntax,
)

TEMPLATES = {
    "{% if '</think>' in content %}{% endif %}<\uff5cAssistant\uff5c>": DEEPSEEK_R1,
    "{% if '</think>' in content %}{% endif %}<\uff5cAssistant\uff5c><think>\n": QWEN3,
    "[SYSTEM_PROMPT]Use [THINK] and [/THINK].[INST]": MISTRAL,
    "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>{% endif %}": QWEN3,
    "<|im_start|>assistant\n<think>\n": QWEN3,
    "<|im_start|>assistant\n": None,
    None: None,
}


@pytest.mark.parametrize(("template", "syntax"), TEMPLATES.items())
def test_the_syntax_is_found_in_the_template(template: str | None, syntax: object) -> None:
    assert find_syntax(template) is syntax
    assert find_syntax(template, "none") is None


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_named_syntax_does_not_depend_on_the_template(name: str) -> None:
    syntax = find_syntax(None, name)
    assert syntax is not None
    assert syntax.name == name


def test_the_end_of_the_prompt_says_where_the_output_begins() -> None:
    undecided = ReasoningMarkup("<think>", "</think>", is_open=False)
    within = ReasoningMarkup("<think>", "</think>", is_open=True)
    assert QWEN3.markup_behind("<think> is a tag<|im_end|>\n<|im_start|>assistant\n") == undecided
    assert QWEN3.markup_behind("<|im_start|>assistant\n<think>\n") == within
    assert DEEPSEEK_R1.markup_behind("<\uff5cAssistant\uff5c>") == within
    for syntax in (QWEN3, DEEPSEEK_R1):
        assert syntax.markup_behind("<think>\nI see", "<think>\nI see") == within
        for answer in ("The capital is", "<think>\nI see.</think>\n\nThe"):
            assert syntax.markup_behind(answer, answer) is None
        assert syntax.markup_behind("assistant\n<think>\n\n</think>\n\n") is None
