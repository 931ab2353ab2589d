from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from kvflow_jax.reasoning.splitter import ReasoningSplitter
from kvflow_jax.reasoning.syntax import ReasoningMarkup

MARKUP = ReasoningMarkup("<think>", "</think>", is_open=False)
OPEN = ReasoningMarkup("<think>", "</think>", is_open=True)
DROPPED = ReasoningMarkup("<think>", "</think>", is_open=False, is_dropped=True)


def split(
    pieces: Iterable[str], markup: ReasoningMarkup = MARKUP, hidden: tuple[str, ...] = ()
) -> tuple[str, str]:
    splitter = ReasoningSplitter(markup, hidden=hidden)
    parts = [splitter.push(piece) for piece in pieces]
    parts.append(splitter.push("", is_last=True))
    first_answer = next((i for i, part in enumerate(parts) if part[1]), len(parts))
    assert not any(reasoning for reasoning, _ in parts[first_answer + 1 :])
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nI see.\n</think>\n\nParis.", "I see.", "Paris."),
        ("\n <think>a</think>  b", "a", "  b"),
        ("<think>\n\n</think>\n\nParis.", "", "Paris."),
        ("<think>cut off\n", "cut off", ""),
        ("<think>cut </thi", "cut </thi", ""),
        ("<think>a</think>", "a", ""),
        ("<think>a < b</thinks> </think>c<think>d</think>", "a < b</thinks>", "c<think>d</think>"),
        ("Paris.", "", "Paris."),
        ("\n Paris. <think>no</think>", "", "\n Paris. <think>no</think>"),
        ("<thin air", "", "<thin air"),
        (" \n", "", " \n"),
        ("", "", ""),
    ],
)
def test_an_output_that_may_reason(text: str, reasoning: str, answer: str) -> None:
    assert split([text]) == (reasoning, answer)
    assert split([text], DROPPED) == ("", answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("I see.\n</think>\n\nParis.", "I see.", "Paris."),
        ("<think>I see.</think>Paris.", "I see.", "Paris."),
        ("no end", "no end", ""),
        ("</think>Paris.", "", "Paris."),
        ("", "", ""),
    ],
)
def test_an_output_that_begins_within_its_reasoning(text: str, reasoning: str, answer: str) -> None:
    assert split([text], OPEN) == (reasoning, answer)


@pytest.mark.parametrize("markup", [MARKUP, OPEN, DROPPED])
def test_every_split_gives_the_same(markup: ReasoningMarkup) -> None:
    rng = random.Random(0)
    words = [
        "<think>",
        "</think>",
        "<",
        "</",
        "think>",
        "\n",
        "\n\n",
        " ",
        "a",
        "Why?",
        "é🙂",
        "> ",
    ]
    for i in range(400):
        text = "".join(rng.choices(words, k=rng.randint(1, 9)))
        if i % 2:
            text = f"<think>{text}</think>{text}"
        for hidden in ((), markup.tags):
            whole = split([text], markup, hidden)
            assert split(text, markup, hidden) == whole, text
            for at in range(len(text)):
                assert split([text[:at], text[at:]], markup, hidden) == whole, (at, text)


def test_text_is_passed_on_as_soon_as_it_can_be_no_tag() -> None:
    splitter = ReasoningSplitter(MARKUP)
    pushed = [splitter.push(piece) for piece in ("<think>", "\nI", " see", "<", "/b", ".", "\n")]
    assert pushed == [("", ""), ("I", ""), (" see", ""), ("", ""), ("</b", ""), (".", ""), ("", "")]
    assert (splitter.has_reasoning, splitter.is_in_answer) == (True, False)
    assert splitter.push("</think>\n") == ("", "")
    assert splitter.is_in_answer
    assert splitter.push("Paris") == ("", "Paris")


def test_tags_that_are_special_tokens_are_never_text_of_the_answer() -> None:
    assert split(["[THINK]a[/THINK]b[/THINK]c"], MARKUP, MARKUP.tags)[1].count("[") == 3
    markup = ReasoningMarkup("[THINK]", "[/THINK]", is_open=False)
    assert split(["[THINK]a[/THINK]b[/THINK]c"], markup, markup.tags) == ("a", "bc")
    assert split(["[THINK]a[/THINK]b[/THINK]c"], markup) == ("a", "b[/THINK]c")
