"""The histograms of finished requests: their times, their lengths and what they asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import HistogramMetricFamily

from kvflow_jax.requests.outputs import FinishReason, Output

# vLLM's buckets. Inter-token latency has finer ones at the start: small models take milliseconds.
_TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5),
    *(5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS_S = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKEN_BUCKETS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_FEW_BUCKETS = (1, 2, 5, 10, 20)

# Name without vLLM's prefix -> help text, buckets.
_HISTOGRAMS: Mapping[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": (
        "Time to first token (TTFT): arrival to first token, seconds.",
        _TTFT_BUCKETS_S,
    ),
    "inter_token_latency_seconds": (
        "Inter-token latency, seconds: the mean of each request, weighted by its intervals.",
        _INTER_TOKEN_BUCKETS_S,
    ),
    "request_time_per_output_token_seconds": (
        "Inter-token latency, seconds: the mean of each request.",
        _INTER_TOKEN_BUCKETS_S,
    ),
    "e2e_request_latency_seconds": ("Arrival to last token, seconds.", _REQUEST_BUCKETS_S),
    "request_queue_time_seconds": ("Arrival to first engine step, seconds.", _REQUEST_BUCKETS_S),
    "request_prefill_time_seconds": (
        "First engine step to first token, seconds.",
        _REQUEST_BUCKETS_S,
    ),
    "request_decode_time_seconds": ("First token to last token, seconds.", _REQUEST_BUCKETS_S),
    "request_inference_time_seconds": (
        "First engine step to last token, seconds.",
        _REQUEST_BUCKETS_S,
    ),
    "request_prompt_tokens": ("Prompt tokens of each request.", _TOKEN_BUCKETS),
    "request_generation_tokens": ("Generated tokens of each request.", _TOKEN_BUCKETS),
    "request_max_num_generation_tokens": (
        "Generated tokens of the longest of the n answers to a prompt.",
        _TOKEN_BUCKETS,
    ),
    "request_params_n": ("The parameter n, answers to a prompt.", _FEW_BUCKETS),
    "request_params_max_tokens": (
        "The parameter max_tokens, or what the context leaves.",
        _TOKEN_BUCKETS,
    ),
    "request_num_preemptions": ("Preemptions of each request.", (0, *_FEW_BUCKETS)),
}


class RequestHistograms:
    """Filled as requests finish. Runs on the event loop."""

    def __init__(self) -> None:
        self._by_name = {
            name: Histogram(f"vllm:{name}", text, bounds)
            for name, (text, bounds) in _HISTOGRAMS.items()
        }

    def observe(self, output: Output) -> None:
        """Record a finished request; an aborted or failed one in the phases that it completed."""
        stats = output.stats
        if stats is None:
            return
        add = self._add
        first, scheduled = stats.first_token_s, stats.first_scheduled_s
        if scheduled is not None:
            add("request_queue_time_seconds", scheduled - stats.arrival_s)
        if first is not None:
            add("time_to_first_token_seconds", first - stats.arrival_s)
            if scheduled is not None:
                add("request_prefill_time_seconds", first - scheduled)
        if output.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        add("request_prompt_tokens", stats.num_prompt_tokens)
        add("request_generation_tokens", stats.num_output_tokens)
        add("request_params_max_tokens", stats.max_tokens)
        add("request_num_preemptions", stats.num_preemptions)
        add("e2e_request_latency_seconds", stats.finished_s - stats.arrival_s)
        if scheduled is not None:
            add("request_inference_time_seconds", stats.finished_s - scheduled)
        if first is not None:
            decode_s = stats.finished_s - first
            add("request_decode_time_seconds", decode_s)
            num_intervals = stats.num_output_tokens - 1
            if num_intervals > 0:
                mean_s = decode_s / num_intervals
                add("inter_token_latency_seconds", mean_s, num_intervals)
                add("request_time_per_output_token_seconds", mean_s)

    def observe_prompt(self, n: int, max_output_tokens: int) -> None:
        """Record that the ``n`` answers to a prompt have finished."""
        self._add("request_params_n", n)
        self._add("request_max_num_generation_tokens", max_output_tokens)

    def families(self, labels: dict[str, str]) -> Iterator[HistogramMetricFamily]:
        for histogram in self._by_name.values():
            yield histogram.family(labels)

    def _add(self, name: str, value: float, weight: int = 1) -> None:
        self._by_name[name].add(value, weight)


class Histogram:
    """A histogram of weighted values, which prometheus_client's own does not support."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float, weight: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += weight
        self._sum += value * weight

    def family(self, labels: dict[str, str]) -> HistogramMetricFamily:
        return histogram_family(
            self._name, self._text, self._bounds, self._counts, self._sum, labels
        )


def histogram_family(
    name: str,
    text: str,
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
    labels: dict[str, str],
) -> HistogramMetricFamily:
    """Return a histogram as Prometheus reads it.

    Args:
        counts: values up to each bound but not up to the one before, and above the last.
        total: sum of the values.
    """
    buckets: list[tuple[str, float]] = []
    num = 0
    for bound, count in zip([*bounds, "+Inf"], counts, strict=True):
        num += count
        buckets.append((str(bound), num))
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), buckets, total)
    return family
