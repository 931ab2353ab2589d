"""``experiments.speculation``: recorded calls through the drafter, loads on two engines."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import speculation
from experiments.bench.speculation import Call, replay
from kvflow_jax.api.caller import Caller
from kvflow_jax.api.prompts import PromptEncoder
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.speculation.config import SpeculativeConfig
from tests.support.grammar_engine import TOKENIZER, make_engine

CONFIG = SpeculativeConfig(num_speculative_tokens=8, suffix_decoding_corpus_tokens=4096)


class MaskedLLM(Caller):
    model = SimpleNamespace(dtype="float32")

    def __init__(self, *_, speculative_config, **__):
        self.tokenizer = TOKENIZER
        engine = make_engine(num_pages=600, max_model_len=4096, speculation=speculative_config)
        self.config = type("Config", (), {"vocab_size": TOKENIZER.vocab_size})
        super().__init__(EngineThread(engine), PromptEncoder(TOKENIZER))

    @property
    def stats(self):
        return self.engine.stats

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.engine.close()


def test_a_repeated_answer_takes_few_steps_and_a_new_one_as_many_as_it_has_tokens():
    rng = np.random.default_rng(0)
    prompt, answer, other = (rng.integers(0, 9999, n).astype(np.int32) for n in (50, 81, 81))
    once = replay([Call(prompt, answer)], CONFIG)
    assert (once.num_tokens, once.tokens_per_step) == (80, 1.0)
    twice = replay([Call(prompt, answer)] * 2, CONFIG)
    assert twice.num_tokens == 160
    assert 160 / twice.tokens_per_step < 80 + 16
    assert twice.acceptance > 0.9
    assert replay([Call(prompt, answer), Call(answer, other)], CONFIG).tokens_per_step == 1.0
    assert replay([], CONFIG).tokens_per_step == 0


def test_the_command_replays_each_folder_and_times_both_engines(command, monkeypatch, tmp_path):
    monkeypatch.setattr(speculation, "LLM", MaskedLLM)
    folder, path = tmp_path / "traces", tmp_path / "out.json"
    (folder / "magagent").mkdir(parents=True)
    calls = [
        {"timestamp": t, "input": f"ask {t}", "output": out, "session_id": "s"}
        for t, out in ((2, "the same answer as before, word for word"), (3, ""))
    ]
    calls.append(calls[0] | {"timestamp": 1})
    (folder / "magagent" / "a.jsonl").write_text("\n".join(map(json.dumps, calls)))
    command(speculation, "--model", "any", "--quick", "--traces", folder, "--json", path)
    figures = json.loads(path.read_text())
    assert figures["replay.magagent"]["num_calls"] == 2
    assert figures["tokens_per_step.magagent"] > 1.2
    assert figures["agents_equal_answers"] == figures["nothing_equal_answers"] == 1
    assert figures["agents_speedup"] > 0
    assert figures["nothing_slowdown"] > 0


def test_a_folder_that_is_not_there_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command(speculation, "--traces", "/no/such/folder")
    assert "there is no folder /no/such/folder" in capsys.readouterr().err
