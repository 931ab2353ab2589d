"""Finished requests, and what ``/metrics`` says of them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats


def samples_of(text: str) -> dict[str, float]:
    """Return samples by name, with their labels except ``model_name`` and ``engine``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            assert labels.pop("engine") == "0"
            extra = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
            found[f"{sample.name}{{{extra}}}" if extra else sample.name] = sample.value
    return found


def finished(reason: FinishReason, **change: object) -> Output:
    times = {"arrival_s": 10.0, "first_scheduled_s": 10.25, "first_token_s": 10.75}
    stats = {
        "num_prompt_tokens": 8,
        "num_cached_tokens": 4,
        "num_computed_tokens": 4,
        "num_output_tokens": 5,
    }
    hints = {"num_cached_host_tokens": 0, "hint_status": None}
    both = {**times, **stats, **hints, "num_preemptions": 0, "finished_s": 12.75, "max_tokens": 16}
    both |= change
    return Output(0, "", (), reason, RequestStats(**both))
