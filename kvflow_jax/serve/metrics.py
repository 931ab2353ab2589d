"""Prometheus metrics: vLLM's names, for its dashboards and llm-d's scraper, and ``kvflow:``."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from kvflow_jax.requests.outputs import EngineStats, FinishReason, Output
from kvflow_jax.workflow.hints import HintStatus

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

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


class Metrics:
    """The server's metrics: engine counters are read per scrape, request times as requests finish.

    Runs on the event loop. Uses its own registry, so that no other metric of the process appears.

    Args:
        model_name: returns the ``model_name`` label of every sample; called at each scrape.
        engine_stats: returns the engine's last published snapshot; called at each scrape.
        page_size: tokens per block.
    """

    def __init__(
        self,
        model_name: Callable[[], str],
        engine_stats: Callable[[], EngineStats],
        page_size: int,
    ) -> None:
        self._model_name = model_name
        self._engine_stats = engine_stats
        self._page_size = page_size
        self._ttft = _Histogram(
            "vllm:time_to_first_token_seconds",
            "Time to first token (TTFT): arrival to first token, seconds.",
            _TTFT_BUCKETS_S,
        )
        self._inter_token = _Histogram(
            "vllm:inter_token_latency_seconds",
            "Inter-token latency, seconds: the mean of each request, weighted by its intervals.",
            _INTER_TOKEN_BUCKETS_S,
        )
        self._latency = _Histogram(
            "vllm:e2e_request_latency_seconds",
            "Arrival to last token, seconds.",
            _REQUEST_BUCKETS_S,
        )
        self._queue = _Histogram(
            "vllm:request_queue_time_seconds",
            "Arrival to first engine step, seconds.",
            _REQUEST_BUCKETS_S,
        )
        self._prefill = _Histogram(
            "vllm:request_prefill_time_seconds",
            "First engine step to first token, seconds.",
            _REQUEST_BUCKETS_S,
        )
        self._decode = _Histogram(
            "vllm:request_decode_time_seconds",
            "First token to last token, seconds.",
            _REQUEST_BUCKETS_S,
        )
        self._num_hints: Counter[HintStatus] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def observe(self, output: Output) -> None:
        """Record the times of a finished request and the outcome of its hints.

        An aborted or failed request counts in the phases that it completed.
        """
        stats = output.stats
        if stats is None:
            return
        if stats.hint_status is not None:
            self._num_hints[stats.hint_status] += 1
        first, scheduled = stats.first_token_s, stats.first_scheduled_s
        if scheduled is not None:
            self._queue.add(scheduled - stats.arrival_s)
        if first is not None:
            self._ttft.add(first - stats.arrival_s)
            if scheduled is not None:
                self._prefill.add(first - scheduled)
        if output.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        self._latency.add(stats.finished_s - stats.arrival_s)
        if first is not None:
            decode_s = stats.finished_s - first
            self._decode.add(decode_s)
            num_intervals = stats.num_output_tokens - 1
            if num_intervals > 0:
                self._inter_token.add(decode_s / num_intervals, weight=num_intervals)

    def render(self) -> bytes:
        """Return the body of ``GET /metrics``."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        stats = self._engine_stats()
        labels = {"model_name": self._model_name(), "engine": "0"}
        names, values = list(labels), list(labels.values())

        used = stats.num_blocks_leased / stats.num_blocks if stats.num_blocks else 0.0
        for name, text, gauge in (
            ("vllm:num_requests_running", "Requests in the running batch.", stats.num_running),
            ("vllm:num_requests_waiting", "Requests in the queue.", stats.num_waiting),
            (
                "vllm:kv_cache_usage_perc",
                "Fraction of KV blocks leased by running requests, 0 to 1.",
                used,
            ),
            (
                "kvflow:host_blocks",
                "KV blocks with a copy in host memory.",
                stats.num_blocks_host,
            ),
            ("kvflow:runs", "Workflow runs in progress.", stats.num_runs),
            (
                "kvflow:runs_held_back",
                "Workflow runs throttled by admission control.",
                stats.num_runs_held_back,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=names)
            family.add_metric(values, gauge)
            yield family

        page = self._page_size
        for name, text, count in (
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.prompt_tokens,
            ),
            (
                "vllm:prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                stats.cached_prompt_tokens,
            ),
            ("vllm:prompt_tokens", "Prompt tokens of admitted requests.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Generated tokens.", stats.generation_tokens),
            (
                "vllm:num_preemptions",
                "Requests preempted and returned to the queue.",
                stats.num_preemptions,
            ),
            (
                "kvflow:prefetch_issued_tokens",
                "Tokens requested by the prefetcher.",
                stats.num_prefetched_blocks * page,
            ),
            (
                "kvflow:prefetch_useful_tokens",
                "Prefetched tokens that were on the device when a request needed them.",
                stats.num_useful_blocks * page,
            ),
            (
                "kvflow:prefetch_late_tokens",
                "Prefetched tokens that were still loading when a request needed them.",
                stats.num_late_blocks * page,
            ),
            (
                "kvflow:prefetch_wasted_tokens",
                "Prefetched tokens evicted or cancelled before a request needed them.",
                stats.num_wasted_blocks * page,
            ),
            (
                "kvflow:stall_seconds",
                "Seconds in which requests waited for loads and no other request ran.",
                stats.stall_s,
            ),
            (
                "kvflow:failed_transfers",
                "Failed copies between device and host.",
                stats.num_failed_transfers,
            ),
            (
                "kvflow:evicted_blocks",
                "KV blocks evicted from the device.",
                stats.num_evicted_blocks,
            ),
        ):
            counter = CounterMetricFamily(name, text, labels=names)
            counter.add_metric(values, count)
            yield counter

        yield from self._transfers(stats, labels)
        hints = CounterMetricFamily(
            "kvflow:hints",
            "Finished requests with agent hints, by outcome of the hints.",
            labels=[*names, "outcome"],
        )
        for status in HintStatus:
            hints.add_metric([*values, status.value], self._num_hints[status])
        yield hints

        finished = CounterMetricFamily(
            "vllm:request_success",
            "Finished requests, by finish reason.",
            labels=[*names, "finished_reason"],
        )
        for reason in FinishReason:
            count = stats.num_finished.get(reason.value, 0)
            finished.add_metric([*values, reason.value], count)
        yield finished

        config = {
            "block_size": str(self._page_size),
            "num_gpu_blocks": str(stats.num_blocks),
            "enable_prefix_caching": "True",
        }
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Configuration of the KV cache, as labels.",
            labels=[*names, *config],
        )
        info.add_metric([*values, *config.values()], 1)
        yield info

        for histogram in (
            self._ttft,
            self._inter_token,
            self._latency,
            self._queue,
            self._prefill,
            self._decode,
        ):
            yield histogram.family(labels)

    def _transfers(self, stats: EngineStats, labels: dict[str, str]) -> Iterator[Metric]:
        """Yield the counters of loads (host to device) and offloads (device to host, "save")."""
        for name, text, load, save in (
            ("bytes", "Bytes copied, by direction.", stats.load_bytes, stats.save_bytes),
            ("seconds", "Duration of copies, by direction.", stats.load_s, stats.save_s),
        ):
            family = CounterMetricFamily(
                f"kvflow:transfer_{name}", text, labels=[*labels, "direction"]
            )
            family.add_metric([*labels.values(), "load"], load)
            family.add_metric([*labels.values(), "save"], save)
            yield family


class _Histogram:
    """A histogram of weighted values, which prometheus_client's own does not support."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, value_s: float, weight: int = 1) -> None:
        self._counts[bisect_left(self._bounds_s, value_s)] += weight
        self._sum_s += value_s * weight

    def family(self, labels: dict[str, str]) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip([*self._bounds_s, "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((str(bound), total))
        family = HistogramMetricFamily(self._name, self._text, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self._sum_s)
        return family
