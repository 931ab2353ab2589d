"""Generated calls in every syntax and split: the same text and calls once joined."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from kvflow_jax.tools.call_markup import MarkupSplitter
from kvflow_jax.tools.syntaxes import SYNTAXES
from kvflow_jax.tools.syntaxes.base import Call, CallSyntax
from kvflow_jax.tools.syntaxes.mistral import MISTRAL, write_named_calls
from kvflow_jax.tools.tool import Tool, read_tools
from tests.tools.parsing import parse, tool

NAMES = ("get_weather", "f", "search.web", "a-b", "functools_x")
TEXTS = ("Paris", "", "it's", 'say "hi"', "a\nb", "<b>", "</tool", "[x]", "{", "}", "\\", "\\n")
TEXTS += ("你好", "é", "🙂", "\t", "=", "x=1", "a, b)", "```", "tool_call>", "functools", "[TOOL_")
TEXTS += ('{"name": 1}',)
BEFORE = ("", "", "I'll look.", "a < b, ", "See [1]. ", "\n", "Use functools, ", "`` `x` ")
WRITERS = {name: (syntax, syntax.write_calls) for name, syntax in SYNTAXES.items()}
WRITERS["mistral, new form"] = (MISTRAL, write_named_calls)
# Their calls are the whole output.
WHOLE = ("llama3_json", "pythonic")


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 2 else 5)
    match kind:
        case 0 | 1:
            return "".join(rng.choices(TEXTS, k=rng.randrange(3)))
        case 2:
            return rng.choice([0, -1, 12345678901, 0.5, 1e-9, -2.25])
        case 3:
            return rng.choice([True, False, None])
        case 4:
            return rng.choice(TEXTS)
        case 5 | 6:
            return [random_value(rng, depth + 1) for _ in range(rng.randrange(3))]
        case _:
            keys = rng.sample(["x", "y", "a b", "é", "name"], k=rng.randrange(3))
            return {key: random_value(rng, depth + 1) for key in keys}


def tools_of(calls: list[Call]) -> tuple[Tool, ...]:
    """Return declarations whose schemas fit the calls: the type of a parameter decides in XML."""
    properties: dict[str, dict[str, Any]] = {}
    for call in calls:
        known = properties.setdefault(call.name, {})
        for key, value in call.arguments.items():
            known[key] = {"type": "string"} if isinstance(value, str) else {"type": "object"}
    return read_tools([tool(name, **known) for name, known in properties.items()])


def random_calls(rng: random.Random) -> list[Call]:
    calls: dict[str, Call] = {}
    for name in rng.sample(NAMES, k=rng.randint(1, 3)):
        keys = rng.sample(["city", "x", "days", "q_1"], k=rng.randrange(4))
        calls[name] = Call(name, {key: random_value(rng) for key in keys})
    return list(calls.values())


def random_split(rng: random.Random, text: str, num_cuts: int) -> list[str]:
    cuts = sorted(rng.choices(range(len(text) + 1), k=num_cuts))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def is_writable(syntax: CallSyntax, text: str, calls: list[Call]) -> bool:
    """False for what the syntax itself cannot say: XML values that contain its own end tags."""
    return syntax.name != "qwen3_coder" or text.count("</parameter>") == sum(
        len(call.arguments) for call in calls
    )


def check(rng: random.Random, kind: str, *, every_split: bool) -> int:
    """Check one output; return its number of calls."""
    syntax, write_calls = WRITERS[kind]
    calls = random_calls(rng)
    before = "" if kind in WHOLE else rng.choice(BEFORE)
    text = before + write_calls(calls)
    if not is_writable(syntax, text, calls):
        return 0
    tools = tools_of(calls)
    whole = parse(syntax, text, tools)
    assert whole.values == [(call.name, call.arguments) for call in calls], text
    assert whole.text == ("" if before.isspace() else before)
    assert parse(syntax, list(text), tools) == whole
    if every_split:
        for i in range(len(text)):
            assert parse(syntax, [text[:i], text[i:]], tools) == whole, (i, text)
    for num_cuts in (1, 1, 2, 5, 20):
        assert parse(syntax, random_split(rng, text, num_cuts), tools) == whole, text
    # An output that is cut anywhere gives the beginning of what the whole gives.
    cut = parse(syntax, random_split(rng, text[: rng.randrange(len(text))], 3), tools)
    for (name, arguments), (whole_name, whole_arguments) in zip(
        cut.calls, whole.calls, strict=False
    ):
        assert name == whole_name
        assert whole_arguments.startswith(arguments)
    return len(calls)


@pytest.mark.parametrize("kind", WRITERS)
def test_calls_are_the_same_for_sampled_splits(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        check(rng, kind, every_split=False)


@pytest.mark.slow
def test_a_thousand_calls_are_the_same_for_every_split() -> None:
    rng, num_calls = random.Random("all"), 0
    for kind in itertools.cycle(WRITERS):
        num_calls += check(rng, kind, every_split=True)
        if num_calls >= 1000:
            break


@pytest.mark.parametrize("name", SYNTAXES)
def test_any_text_is_parsed_the_same_for_every_split(name: str) -> None:
    """Broken markup, too: whatever is text or a call is so in every split."""
    syntax, rng = SYNTAXES[name], random.Random(name)
    sample = syntax.write_calls([Call("f", {"x": [1, "a"]}), Call("g", {})])
    words = [
        *TEXTS,
        *syntax.markup.markers,
        sample,
        sample[: len(sample) // 2],
        sample[9:],
        '"',
        "f(",
    ]
    for _ in range(300):
        text = "".join(rng.choices(words, k=rng.randint(1, 6)))
        whole = parse(syntax, text)
        assert parse(syntax, list(text)) == whole, text
        assert parse(syntax, random_split(rng, text, 3)) == whole, text
        joined: list[list[tuple[str, bool]]] = []
        for pieces in ([text], list(text)):
            splitter = MarkupSplitter(syntax.markup)
            parts = [part for piece in pieces for part in splitter.push(piece)]
            joined.append(merge([*parts, *splitter.flush()]))
        assert joined[0] == joined[1]
        assert "".join(part for part, _ in joined[0]) == text


def merge(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    merged: list[tuple[str, bool]] = []
    for text, is_markup in parts:
        if merged and merged[-1][1] == is_markup:
            text = merged.pop()[0] + text
        merged.append((text, is_markup))
    return merged


@pytest.mark.parametrize("name", SYNTAXES)
def test_text_without_calls_passes_at_once(name: str) -> None:
    text = "The weather in Paris is fine; 3 < 4."
    parsed = parse(SYNTAXES[name], list(text))
    assert (parsed.text, parsed.calls) == (text, [])


@pytest.mark.parametrize("name", SYNTAXES)
def test_calls_beyond_the_limit_are_dropped(name: str) -> None:
    text = SYNTAXES[name].write_calls([Call("f", {"x": "a"}), Call("ask", {"y": "b"})])
    assert parse(SYNTAXES[name], text, max_calls=1).values == [("f", {"x": "a"})]


def test_markers_that_are_special_tokens_are_never_text() -> None:
    text = "a[TOOL_CALLS]no call[ARGS] [CALL_ID]b"
    hidden = MISTRAL.markup.markers
    assert parse(MISTRAL, text, hidden=hidden).text == "ano call b"
    assert parse(MISTRAL, list(text), hidden=hidden).text == "ano call b"
    assert parse(MISTRAL, text).text == text
