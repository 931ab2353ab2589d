"""Histograms that are filled as requests finish."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.core import Sample

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.request_histograms import RequestHistograms
from tests.serve.metric_samples import finished, samples_of

LABELS = {"model_name": "tiny", "engine": "0"}


def samples(histograms: RequestHistograms) -> dict[str, float]:
    def name(sample: Sample) -> str:
        return sample.name + (f"{{le={sample.labels['le']}}}" if "le" in sample.labels else "")

    families = histograms.families(LABELS)
    return {name(sample): sample.value for family in families for sample in family.samples}


def test_times_and_lengths_of_a_request() -> None:
    histograms = RequestHistograms()
    histograms.observe(finished(FinishReason.STOP, num_preemptions=2))
    histograms.observe_prompt(3, 5)
    found = samples(histograms)
    for name, total in (
        ("time_to_first_token_seconds", 0.75),
        ("e2e_request_latency_seconds", 2.75),
        ("request_queue_time_seconds", 0.25),
        ("request_prefill_time_seconds", 0.5),
        ("request_decode_time_seconds", 2.0),
        ("request_inference_time_seconds", 2.5),
        ("request_time_per_output_token_seconds", 0.5),
        ("request_prompt_tokens", 8),
        ("request_generation_tokens", 5),
        ("request_max_num_generation_tokens", 5),
        ("request_params_n", 3),
        ("request_params_max_tokens", 16),
        ("request_num_preemptions", 2),
    ):
        assert found[f"vllm:{name}_count"] == 1
        assert found[f"vllm:{name}_sum"] == pytest.approx(total)
    assert found["vllm:request_prompt_tokens_bucket{le=5}"] == 0
    assert found["vllm:request_prompt_tokens_bucket{le=10}"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 4  # gaps between 5 tokens
    assert found["vllm:inter_token_latency_seconds_sum"] == pytest.approx(2.0)
    assert found["vllm:inter_token_latency_seconds_bucket{le=0.4}"] == 0
    assert found["vllm:inter_token_latency_seconds_bucket{le=0.5}"] == 4
    assert found["vllm:inter_token_latency_seconds_bucket{le=+Inf}"] == 4


def test_an_aborted_request_counts_in_the_phases_it_completed() -> None:
    histograms = RequestHistograms()
    histograms.observe(finished(FinishReason.ABORT, first_token_s=None, num_output_tokens=0))
    histograms.observe(finished(FinishReason.ABORT, first_scheduled_s=None, first_token_s=None))
    histograms.observe(finished(FinishReason.LENGTH, num_output_tokens=1, finished_s=10.75))
    found = samples(histograms)
    assert found["vllm:request_queue_time_seconds_count"] == 2
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:e2e_request_latency_seconds_count"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 0
    assert found["vllm:request_generation_tokens_count"] == 1


def test_the_choices_of_a_prompt_count_as_one(http: httpx.Client) -> None:
    names = ("request_params_n", "request_max_num_generation_tokens", "request_prompt_tokens")

    def counts() -> list[float]:
        found = samples_of(http.get("/metrics").text)
        return [found[f"vllm:{name}_count"] for name in names]

    before = counts()
    http.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2}).raise_for_status()
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [2, 2, 4]
