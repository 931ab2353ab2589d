"""Prometheus metrics: vLLM's names, for its dashboards and llm-d's scraper, and ``kvflow:``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.cache.block_ages import AGE_BOUNDS_S
from kvflow_jax.requests.outputs import (
    STEP_TOKENS_BOUNDS,
    EngineStats,
    FinishReason,
    Output,
)
from kvflow_jax.serve.client_identity import IdentitySource
from kvflow_jax.serve.prompt_edits import PromptEdit
from kvflow_jax.serve.request_histograms import RequestHistograms, histogram_family
from kvflow_jax.workflow.hints import HintStatus

logger = logging.getLogger("kvflow_jax.serve")

_LEFT_OUT = (
    "left %s out of a prompt, as it changes with every one (--disable-prompt-edits keeps it)"
)
_MOVED = "moved the %s of a prompt behind the system text (--move-environment)"
_REPLACED = "read halves of characters (%s) in a prompt as U+FFFD: its client has cut a string"
_EDIT_TEXTS = {
    PromptEdit.BILLING_HEADER: _LEFT_OUT,
    PromptEdit.TOTAL_TOKENS: _LEFT_OUT,
    PromptEdit.ENVIRONMENT: _MOVED,
    PromptEdit.LONE_SURROGATES: _REPLACED,
}

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The server's metrics: engine counters are read per scrape, request times as requests finish.

    Runs on the event loop. Uses its own registry, so that no other metric of the process appears.

    Args:
        model_name: returns the ``model_name`` label of every sample; called at each scrape.
        engine_stats: returns the engine's last published snapshot; called at each scrape.
        page_size: tokens per block.
        max_model_len: returns the model's context, 0 while there is none; called at each scrape.
        tenant_state: returns what the server itself keeps for tenants, by its kind; called at each
            scrape.
    """

    def __init__(
        self,
        model_name: Callable[[], str],
        engine_stats: Callable[[], EngineStats],
        page_size: int,
        max_model_len: Callable[[], int] = lambda: 0,
        tenant_state: Callable[[], Mapping[str, Usage]] = dict,
    ) -> None:
        self._tenant_state = tenant_state
        self._model_name = model_name
        self._engine_stats = engine_stats
        self._page_size = page_size
        self._max_model_len = max_model_len
        self._num_rejected = 0
        self._requests = RequestHistograms()
        self._num_hints: Counter[HintStatus] = Counter()
        self._num_edits: Counter[PromptEdit] = Counter()
        self._num_identified: Counter[IdentitySource] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def observe(self, output: Output) -> None:
        """Record a finished request and the outcome of its hints."""
        self._requests.observe(output)
        if output.stats is not None and output.stats.hint_status is not None:
            self._num_hints[output.stats.hint_status] += 1

    def observe_prompt(self, n: int, max_output_tokens: int) -> None:
        """Record that the ``n`` answers to a prompt have finished, the longest of that length."""
        self._requests.observe_prompt(n, max_output_tokens)

    def observe_prompt_edits(self, edits: Iterable[PromptEdit]) -> None:
        """Record the edits of one prompt; the first of each kind is logged."""
        for edit in edits:
            if not self._num_edits[edit]:
                logger.info(
                    f"{_EDIT_TEXTS[edit]}; such edits are counted by kvflow:prompt_edits_total and "
                    "not logged again",
                    edit.value,
                )
            self._num_edits[edit] += 1

    def observe_identity(self, source: IdentitySource) -> None:
        """Record a chat whose client names its session; the first of each source is logged."""
        if not self._num_identified[source] and source is not IdentitySource.INVALID:
            logger.info(
                "read sessions of %s from its requests; they are counted by "
                "kvflow:identified_requests_total and not logged again; "
                "--disable-client-identity ignores them",
                source.value,
            )
        self._num_identified[source] += 1

    def observe_rejection(self) -> None:
        """Record an HTTP request that was refused for a full queue, a quota, or memory."""
        self._num_rejected += 1

    def render(self) -> bytes:
        """Return the body of ``GET /metrics``."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        stats = self._engine_stats()
        labels = {"model_name": self._model_name(), "engine": "0"}
        names, values = list(labels), list(labels.values())

        prefill = stats.prefill
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
            (
                "kvflow:prefill_progress",
                "Computed or cached fraction of the prompts in prefill, 0 to 1; 1 without any.",
                prefill.num_computed / prefill.num_tokens if prefill.num_tokens else 1.0,
            ),
            (
                "kvflow:prefill_remaining_tokens",
                "Prompt tokens of running requests that are not computed.",
                prefill.num_tokens - prefill.num_computed,
            ),
            ("kvflow:runs", "Workflow runs in progress that clients have named.", stats.num_runs),
            (
                "kvflow:runs_held_back",
                "Workflow runs throttled by admission control.",
                stats.num_runs_held_back,
            ),
            (
                "kvflow:learned_agents",
                "Agents whose order of calls is learned.",
                stats.num_learned_agents,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=names)
            family.add_metric(values, gauge)
            yield family

        yield self._waiting_by_reason(stats, labels)
        yield from self._tenant_states({**stats.tenant_state, **self._tenant_state()}, labels)

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
            (
                "vllm:prompt_tokens_cached",
                "Prompt tokens that were not computed, because they were cached.",
                stats.cached_prompt_tokens,
            ),
            ("vllm:generation_tokens", "Generated tokens.", stats.generation_tokens),
            (
                "vllm:num_preemptions",
                "Requests preempted and returned to the queue.",
                stats.num_preemptions,
            ),
            (
                "vllm:admission_rejections",
                "HTTP requests refused for a full queue, a quota, or the memory of requests.",
                self._num_rejected,
            ),
            (
                "vllm:spec_decode_num_drafts",
                "Drafts verified by speculative decoding.",
                stats.drafts.num_drafts,
            ),
            (
                "vllm:spec_decode_num_draft_tokens",
                "Tokens of these drafts.",
                stats.drafts.num_draft_tokens,
            ),
            (
                "vllm:spec_decode_num_accepted_tokens",
                "Tokens of these drafts that were accepted.",
                stats.drafts.num_accepted_tokens,
            ),
            (
                "kvflow:spec_decode_excluded_requests",
                "Requests without speculative decoding, because penalties change their logits.",
                stats.drafts.num_excluded,
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

        accepted = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens of drafts, by their position in the draft.",
            labels=[*names, "position"],
        )
        for position, count in enumerate(stats.drafts.num_accepted_per_position):
            accepted.add_metric([*values, str(position)], count)
        yield accepted

        yield from self._transfers(stats, labels)
        hints = CounterMetricFamily(
            "kvflow:hints",
            "Finished requests with agent hints, by outcome of the hints.",
            labels=[*names, "outcome"],
        )
        for status in HintStatus:
            hints.add_metric([*values, status.value], self._num_hints[status])
        yield hints
        edits = CounterMetricFamily(
            "kvflow:prompt_edits",
            "Prompts of which a part was left out, moved or replaced, by that part.",
            labels=[*names, "edit"],
        )
        for edit in PromptEdit:
            edits.add_metric([*values, edit.value], self._num_edits[edit])
        yield edits
        for name, text, label, counts in (
            (
                "kvflow:identified_requests",
                "Chats whose clients name their sessions, by the client or the kind of id.",
                "source",
                {source.value: self._num_identified[source] for source in IdentitySource},
            ),
            (
                "kvflow:ended_histories",
                "Histories released before their time to live, by why nothing reads them again.",
                "reason",
                stats.ended_histories,
            ),
            (
                "kvflow:predicted_calls",
                "Calls of agents in a learned order, by what was predicted before they came.",
                "outcome",
                stats.predictions,
            ),
        ):
            counter = CounterMetricFamily(name, text, labels=[*names, label])
            for value, count in counts.items():
                counter.add_metric([*values, value], count)
            yield counter

        finished = CounterMetricFamily(
            "vllm:request_success",
            "Finished requests, by finish reason.",
            labels=[*names, "finished_reason"],
        )
        for reason in FinishReason:
            count = stats.num_finished.get(reason.value, 0)
            finished.add_metric([*values, reason.value], count)
        yield finished

        num_tokens, max_model_len = stats.num_blocks * page, self._max_model_len()
        config = {
            "block_size": str(page),
            "num_gpu_blocks": str(stats.num_blocks),
            "kv_cache_size_tokens": str(num_tokens),
            # Requests of full length that fit.
            "kv_cache_max_concurrency": f"{num_tokens / max_model_len if max_model_len else 0:.2f}",
            "enable_prefix_caching": "True",
        }
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Configuration of the KV cache, as labels.",
            labels=[*names, *config],
        )
        info.add_metric([*values, *config.values()], 1)
        yield info

        yield histogram_family(
            "vllm:iteration_tokens_total",
            "Tokens per engine step: those sampled, and the prompts completed.",
            STEP_TOKENS_BOUNDS,
            stats.tokens_per_step.counts,
            stats.tokens_per_step.num_tokens,
            labels,
        )
        ages = stats.block_ages
        for name, text, histogram in (
            (
                "vllm:kv_block_lifetime_seconds",
                "Time on the device of evicted KV blocks, seconds.",
                ages.lifetime,
            ),
            (
                "vllm:kv_block_idle_before_evict_seconds",
                "Last use to eviction of KV blocks, seconds.",
                ages.idle_before_evict,
            ),
            (
                "vllm:kv_block_reuse_gap_seconds",
                "Last use to the next request that finds a KV block on the device, seconds.",
                ages.reuse_gap,
            ),
        ):
            yield histogram_family(
                name, text, AGE_BOUNDS_S, histogram.counts, histogram.sum_s, labels
            )
        yield from self._requests.families(labels)

    def _tenant_states(
        self, states: Mapping[str, Usage], labels: dict[str, str]
    ) -> Iterator[Metric]:
        names = [*labels, "state"]
        used = GaugeMetricFamily(
            "kvflow:tenant_state_bytes",
            "Memory of what is kept for tenants, all together, by its kind: an estimate.",
            labels=names,
        )
        evicted = CounterMetricFamily(
            "kvflow:tenant_state_evictions",
            "What was dropped because its tenant, or all together, had too many bytes.",
            labels=names,
        )
        for kind, usage in states.items():
            used.add_metric([*labels.values(), kind], usage.num_bytes)
            evicted.add_metric([*labels.values(), kind], usage.num_evicted)
        yield used
        yield evicted

    def _waiting_by_reason(self, stats: EngineStats, labels: dict[str, str]) -> Metric:
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Requests in the queue, by what they wait for.",
            labels=[*labels, "reason"],
        )
        num_for_capacity = stats.num_waiting - stats.num_deferred
        family.add_metric([*labels.values(), "capacity"], num_for_capacity)
        family.add_metric([*labels.values(), "deferred"], stats.num_deferred)
        return family

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
