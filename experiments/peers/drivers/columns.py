"""The columns that are measured of every engine, and how."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Prompt = list[int]

PREFILL, CACHED, GREEDY = "prefill", "cached_64", "greedy"
# Column -> (batch size, tokens of context) of decode steps.
DECODES = {"b1_256": (1, 256), "b8_256": (8, 256), "b8_1024": (8, 1024)}


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        prompt_len: tokens of the prompt of the prefill, and of the cached prefix.
        num_new: tokens after the cached prefix.
        num_steps: decode steps of a measurement; the context named by a column is that of the
            middle step.
        greedy_prompt: what is continued greedily, by which the engines' weights are compared; by
            default "The capital of France is Paris. The capital of Germany is" in the embedded
            model's tokens. Random tokens have near ties, which rounding decides.
        num_greedy: tokens of its continuation.
        repeats: measurements of each column, the best of which counts.
        vocab: range of the token ids of prompts.
    """

    prompt_len: int = 2048
    num_new: int = 64
    num_steps: int = 32
    greedy_prompt: Sequence[int] = (504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 4521, 314)
    num_greedy: int = 16
    repeats: int = 3
    vocab: tuple[int, int] = (100, 40_000)


class Engine(Protocol):
    """An engine, as the columns need it. Times are in seconds, best of those measured."""

    def prefill_s(self, prompt: Prompt) -> float:
        """Return the time until the next token of a prompt is known, none of which is cached."""
        ...

    def cached_s(self, prefix: Prompt, new: Prompt) -> float:
        """Return the time until the next token of prefix + new is known, the prefix cached."""
        ...

    def decode_step_s(self, prompts: Sequence[Prompt], num_steps: int, repeats: int) -> float:
        """Return the time of a step that decodes a token for each of the prompts."""
        ...

    def greedy(self, prompt: Prompt, num_tokens: int) -> Prompt:
        """Return the tokens of highest probability that follow a prompt."""
        ...


@dataclass
class RequestEngine:
    """An engine that is used by requests alone, as users do.

    The time of a decode step is the difference between requests of many tokens and of one, all of
    whose prompts are cached.

    Attributes:
        generate: generates so many tokens, greedily, for all prompts together; returns them.
    """

    generate: Callable[[Sequence[Prompt], int], Sequence[Sequence[int]]] = field(repr=False)

    def prefill_s(self, prompt: Prompt) -> float:
        return self._seconds([prompt], 1)

    def cached_s(self, prefix: Prompt, new: Prompt) -> float:
        self.generate([prefix], 1)
        return self._seconds([prefix + new], 1)

    def decode_step_s(self, prompts: Sequence[Prompt], num_steps: int, repeats: int) -> float:
        self.generate(prompts, 1)
        one = min(self._seconds(prompts, 1) for _ in range(repeats))
        many = min(self._seconds(prompts, 1 + num_steps) for _ in range(repeats))
        return (many - one) / num_steps

    def greedy(self, prompt: Prompt, num_tokens: int) -> Prompt:
        return list(self.generate([prompt], num_tokens)[0])

    def _seconds(self, prompts: Sequence[Prompt], num_tokens: int) -> float:
        start = time.perf_counter()
        self.generate(prompts, num_tokens)
        return time.perf_counter() - start


def measure(engine: Engine, plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yield each column and its figure: tokens/s of the prefill, ms a decode step, s when cached.

    The column ``GREEDY`` has the tokens that follow a fixed prompt.
    """
    rng = random.Random(0)

    def prompt(num_tokens: int) -> Prompt:
        return [rng.randrange(*plan.vocab) for _ in range(num_tokens)]

    yield GREEDY, engine.greedy(list(plan.greedy_prompt), plan.num_greedy)
    engine.prefill_s(prompt(plan.prompt_len))  # may compile, and touches memory for the first time
    prompts = [prompt(plan.prompt_len) for _ in range(plan.repeats)]
    yield PREFILL, plan.prompt_len / min(engine.prefill_s(one) for one in prompts)
    prefix = prompt(plan.prompt_len)
    ends = [prompt(plan.num_new) for _ in range(1 + plan.repeats)]
    yield CACHED, min([engine.cached_s(prefix, end) for end in ends][1:])
    for column, (batch_size, context_len) in DECODES.items():
        prompts = [prompt(context_len - plan.num_steps // 2) for _ in range(batch_size)]
        step_s = engine.decode_step_s(prompts, plan.num_steps, plan.repeats)
        # A difference between requests that the machine's noise exceeds is no figure.
        if step_s > 0:
            yield column, 1e3 * step_s


def run(build: Callable[[Mapping[str, Any]], Engine]) -> None:
    """Measure the engine that the command line describes; print a line of JSON a column.

    Args:
        build: returns the engine for the options of the arm, the first argument as JSON. The
            second argument has the plan.
    """
    options, plan = (json.loads(text) for text in sys.argv[1:3])
    for column, figure in measure(build(options), Plan(**plan)):
        print(json.dumps({column: figure}), flush=True)
