"""The columns over engines that take no time."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest

from experiments.peers.drivers import columns
from experiments.peers.drivers.columns import (
    CACHED,
    DECODES,
    GREEDY,
    PREFILL,
    Plan,
    RequestEngine,
    measure,
    run,
)

PLAN = Plan(
    prompt_len=32,
    num_new=4,
    num_steps=2,
    greedy_prompt=(5, 6),
    num_greedy=3,
    repeats=2,
    vocab=(5, 9),
)


def recorder():
    """An engine of requests, and the (lengths of prompts, tokens) that it was asked for."""
    asked = []

    def generate(prompts, num_tokens):
        asked.append(([len(prompt) for prompt in prompts], num_tokens))
        return [[7] * num_tokens for _ in prompts]

    return RequestEngine(generate), asked


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Replaces the clock by one that moves on, by 1 s more at each look."""
    looks = itertools.accumulate(itertools.count())
    monkeypatch.setattr(columns, "time", SimpleNamespace(perf_counter=lambda: next(looks)))


def test_every_column_is_measured():
    engine, asked = recorder()
    figures = dict(measure(engine, PLAN))
    assert list(figures) == [GREEDY, PREFILL, CACHED, *DECODES]
    assert figures[GREEDY] == [7, 7, 7]
    assert asked[:4] == [([2], 3), ([32], 1), ([32], 1), ([32], 1)]
    assert ([36], 1) in asked
    assert ([1023] * 8, 3) in asked


def test_a_difference_that_noise_exceeds_is_no_figure():
    engine, _ = recorder()
    engine.decode_step_s = lambda prompts, *_: 1.0 if len(prompts) == 1 else -1.0
    assert [column for column, _ in measure(engine, PLAN) if column in DECODES] == ["b1_256"]


def test_the_same_prompts_are_measured_of_every_engine():
    first, second = [], []
    for prompts in (first, second):
        engine = RequestEngine(lambda ps, n, to=prompts: (to.extend(ps), [[0] * n for _ in ps])[1])
        dict(measure(engine, PLAN))
    assert first == second


def test_a_driver_prints_a_line_a_column(monkeypatch, capsys):
    plan = {"prompt_len": 8, "num_new": 2, "num_steps": 1, "repeats": 1}
    monkeypatch.setattr(sys, "argv", ["driver", '{"model": "m"}', json.dumps(plan)])
    run(lambda options: recorder()[0] if options == {"model": "m"} else None)
    lines = capsys.readouterr().out.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == [GREEDY, PREFILL, CACHED, *DECODES]
