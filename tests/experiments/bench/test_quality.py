"""``experiments.quality`` over an engine that takes no time."""

import json
import math
from types import SimpleNamespace

import pytest

import kvflow_jax
from experiments.bench import quality
from experiments.child import ChildError
from experiments.modes import MODES

RAW = {"nll": 2.0, "top1": [1, 2, 3, 4], "greedy": [[1, 2], [3, 4]], "weights_bytes": 400}
INT8 = {"nll": 2.1, "top1": [1, 2, 3, 5], "greedy": [[1, 2], [3, 5]], "weights_bytes": 100}


def test_a_mode_is_compared_with_float32():
    figures = quality.compare(INT8, RAW)
    assert figures["perplexity"] == pytest.approx(math.exp(2.1))
    assert figures["perplexity_ratio"] == pytest.approx(math.exp(0.1))
    assert figures["top1_agreement"] == figures["greedy_agreement"] == 0.75
    assert figures["greedy_equal"] == 0.5
    assert figures["weights_ratio"] == 0.25
    assert quality.compare(RAW, RAW)["greedy_agreement"] == 1.0


def test_tokens_behind_the_first_difference_do_not_count():
    later = {**RAW, "greedy": [[9, 2], [3, 4]]}
    assert quality.compare(later, RAW)["greedy_agreement"] == 0.5


def test_windows_are_spread_over_the_text():
    assert quality.windows_of(range(11), 2, 9) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert quality.windows_of(range(11), 2, 2) == [[0, 1], [4, 5]]


def test_a_mode_that_cannot_run_is_printed_with_its_reason(command, monkeypatch, tmp_path):
    def run_child(command, limit_s):
        mode = command[command.index("--child") + 1]
        if mode == "int8":
            raise ChildError("TypeError: unexpected argument 'quantize'", {})
        return RAW

    monkeypatch.setattr(quality, "run_child", run_child)
    status, out, _ = command(quality, "--quick", "--json", tmp_path / "out.json")
    assert status == 0
    assert "unexpected argument 'quantize'" in out
    figures = json.loads((tmp_path / "out.json").read_text())["modes"]
    assert list(figures) == list(MODES)
    assert figures["bfloat16"]["perplexity_ratio"] == 1.0
    assert figures["int8"] == {"failed": "TypeError: unexpected argument 'quantize'"}


def test_a_child_scores_the_text_and_continues_its_prompts(command, monkeypatch):
    class FakeLLM:
        weights_bytes = 7
        tokenizer = SimpleNamespace(encode=lambda text: list(text.encode()))

        def __init__(self, model, progress, **options):
            assert options["dtype"] == "float32"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def generate(self, prompts, params, progress):
            entry = SimpleNamespace(logprob=-2.0, top=((5, -0.1),))
            return [
                SimpleNamespace(
                    token_ids=(1,) * params.max_tokens,
                    prompt_logprobs=[entry] * (len(prompt) - 1),
                )
                for prompt in prompts
            ]

    monkeypatch.setattr(kvflow_jax, "LLM", FakeLLM)
    status, out, _ = command(quality, "--child", "float32", "--model", "m", "--quick")
    assert status == 0
    figures = json.loads(out)
    plan = quality.QUICK
    assert figures["nll"] == 2.0
    assert figures["top1"] == [5] * (plan.window_len - 1) * plan.max_windows
    assert figures["greedy"] == [[1] * plan.output_len] * plan.num_prompts
    assert figures["weights_bytes"] == 7
