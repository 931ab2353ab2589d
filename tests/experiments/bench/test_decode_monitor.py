"""Figures of decode steps, measured from outside of the engine."""

from experiments.bench.decode_monitor import _StepRecorder, measure_decode
from tests.experiments.bench.fake_llm import FakeLLM


def test_prompts_are_cached_before_decoding_is_measured():
    llm = FakeLLM("tiny")
    figures = measure_decode(llm, batch_size=3, context_len=20, num_steps=10)
    warm, measured = llm.prompts
    assert warm == measured
    assert [len(prompt) for prompt in warm] == [15, 15, 15]
    assert figures.step_ms >= 0
    assert figures.device_idle_ms >= 0


def test_the_runner_is_unchanged_afterwards():
    llm = FakeLLM("tiny")
    with _StepRecorder(llm) as recorder:
        assert "submit" in vars(llm.runner)
        llm.generate([[1]], type("Params", (), {"max_tokens": 2}))
    assert "submit" not in vars(llm.runner)
    assert len(recorder.steps) == 2
    assert all(step.ready_s >= step.submitted_s for step in recorder.steps)
