"""``experiments.soak`` with an engine that answers at once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import soak
from kvflow_jax import FinishReason
from tests.experiments.bench.fake_llm import FakeLLM


class FakeEngine:
    """Gives every request one token, and ends it when it is aborted or else at once."""

    def __init__(self):
        self.listeners = []

    def submit(self, spec, on_output):
        self.listeners.append(on_output)
        on_output(SimpleNamespace(token_ids=[3], finish_reason=None))
        on_output(SimpleNamespace(token_ids=[4], finish_reason=FinishReason.LENGTH))
        return len(self.listeners) - 1

    def abort(self, request_id):
        pass

    def check_integrity(self):
        pass


class SoakLLM(FakeLLM):
    params = None
    leaked = 0

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.engine = FakeEngine()
        self.stats = SimpleNamespace(
            num_preemptions=1,
            num_evicted_blocks=2,
            cached_prompt_tokens=3,
            num_blocks_leased=self.leaked,
        )


@pytest.fixture
def gaps(monkeypatch):
    """Replaces the engine and the reference; returns the gaps of every output."""
    gaps = [0.0, 0.0]
    reference = SimpleNamespace(greedy_gaps=lambda prompt, output: np.array(gaps[: len(output)]))
    monkeypatch.setattr(soak, "LLM", SoakLLM)
    monkeypatch.setattr(soak, "ReferenceModel", lambda *_: reference)
    return gaps


def test_exact_outputs_pass_and_are_counted(command, gaps, tmp_path):
    path = tmp_path / "soak.json"
    assert command(soak, "--quick", "--json", path)[0] == 0
    figures = json.loads(path.read_text())
    assert figures["requests"] == 24
    assert figures["finished"]["length"] == 24
    assert figures["greedy_tokens_checked"] > 0
    assert figures["wrong_tokens"] == figures["near_ties"] == 0


def test_a_near_tie_is_not_wrong(gaps):
    gaps[1] = soak.TOLERANCE
    figures = soak.soak("tiny", 8)
    assert figures["near_ties"] > 0
    assert figures["wrong_tokens"] == 0


def test_a_wrong_token_fails(command, gaps):
    gaps[0] = 1.0
    status, _, err = command(soak, "--quick")
    assert status == 1
    assert "wrong_tokens" in err


def test_a_leaked_block_fails(command, gaps, monkeypatch):
    monkeypatch.setattr(SoakLLM, "leaked", 1)
    assert command(soak, "--quick")[0] == 1
