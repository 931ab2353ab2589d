"""``experiments.grammar_bench`` over an engine that follows masks without a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.bench import grammar_bench
from kvflow_jax import SamplingParams
from kvflow_jax.api.caller import Caller
from kvflow_jax.api.completion import Completion
from kvflow_jax.api.prompts import PromptEncoder
from kvflow_jax.engine.engine_thread import EngineThread
from tests.support.grammar_engine import TOKENIZER, make_engine

TOOLS = json.loads((Path(__file__).parents[2] / "grammar" / "tool_schemas.json").read_text())


class MaskedLLM(Caller):
    config = SimpleNamespace(vocab_size=256)
    model = SimpleNamespace(dtype="float32")

    def __init__(self, *_, **__):
        engine = make_engine(max_num_seqs=grammar_bench.NUM_ROWS, num_pages=600)
        super().__init__(EngineThread(engine), PromptEncoder(TOKENIZER))

    @property
    def stats(self):
        return self.engine.stats

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.engine.close()


@pytest.fixture
def masked(monkeypatch):
    monkeypatch.setattr(grammar_bench, "LLM", MaskedLLM)


def test_it_measures_steps_and_validates_answers_to_tools(command, masked, tmp_path):
    tools = [
        {"name": name, "description": "", "parameters": schema} for name, schema in TOOLS.items()
    ]
    folder, path = tmp_path / "tools", tmp_path / "out.json"
    folder.mkdir()
    (folder / "calls.json").write_text(json.dumps({"function": tools}))
    command(
        grammar_bench, "--model", "any", "--quick", "--tools", folder, "--num-tools", 9,
        "--json", path,
    )  # fmt: skip
    figures = json.loads(path.read_text())
    assert figures["tools"] == 9
    assert figures["invalid_answers"] == figures["invalid_prefixes"] == 0
    assert all(figures[f"{rows}_grammar_row_step_ms"] > 0 for rows in ("no", "one"))
    assert figures["all_grammar_rows_step_ratio"] > 0


def test_text_that_does_not_conform_is_invalid():
    schema = {"type": "object", "required": ["a"]}
    assert grammar_bench.is_valid('{"a": 1}', schema)
    assert not grammar_bench.is_valid("{}", schema)
    assert not grammar_bench.is_valid('{"a"', schema)


def test_tokens_that_the_grammar_does_not_accept_are_no_prefix():
    params = SamplingParams(structured_outputs={"regex": "ab"})
    with MaskedLLM() as llm:
        for text, expected in (("a", True), ("b", False)):
            answer = Completion(text, tuple(TOKENIZER.encode(text)), "length", None)
            assert grammar_bench.is_prefix(llm, answer, params) is expected
