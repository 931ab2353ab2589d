from __future__ import annotations

import httpx
import numpy as np

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.cache.block_ages import AgeHistogram, BlockAges
from kvflow_jax.requests.outputs import (
    DraftStats,
    EngineStats,
    FinishReason,
    PrefillProgress,
    TokensPerStep,
)
from kvflow_jax.serve.client_identity import IdentitySource
from kvflow_jax.serve.metrics import Metrics
from kvflow_jax.workflow.hints import HintStatus
from tests.serve.metric_samples import finished, samples_of
from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import PLANNER, chat_with_hints


def test_names_and_values() -> None:
    stats = EngineStats(
        num_running=3,
        num_waiting=5,
        num_deferred=2,
        tokens_per_step=TokensPerStep().add(9).add(1).add(20000),
        num_blocks=200,
        num_blocks_leased=50,
        num_preemptions=1,
        prompt_tokens=1000,
        cached_prompt_tokens=600,
        generation_tokens=70,
        num_finished={"stop": 4, "length": 1},
        block_ages=BlockAges(lifetime=AgeHistogram().with_ages(np.array([0.7, 9.0]))),
        drafts=DraftStats(5, 20, 12, (5, 4, 3), num_excluded=2),
        tenant_state={"runs": Usage(3, 1000, 2)},
    )
    metrics = Metrics(lambda: "tiny", lambda: stats, page_size=16, max_model_len=lambda: 512)
    metrics.observe_rejection()
    metrics.observe(finished(FinishReason.STOP))
    found = samples_of(metrics.render().decode())
    assert found["vllm:num_requests_running"] == 3
    assert found["kvflow:tenant_state_bytes{state=runs}"] == 1000
    assert found["kvflow:tenant_state_evictions_total{state=runs}"] == 2
    assert found["vllm:num_requests_waiting"] == 5
    assert found["vllm:num_requests_waiting_by_reason{reason=capacity}"] == 3
    assert found["vllm:num_requests_waiting_by_reason{reason=deferred}"] == 2
    assert found["vllm:prompt_tokens_cached_total"] == 600
    assert found["vllm:kv_block_lifetime_seconds_count"] == 2
    assert found["vllm:kv_block_lifetime_seconds_bucket{le=1.0}"] == 1
    assert found["vllm:kv_block_idle_before_evict_seconds_count"] == 0
    assert found["vllm:kv_block_reuse_gap_seconds_sum"] == 0
    assert found["vllm:iteration_tokens_total_count"] == 3
    assert found["vllm:iteration_tokens_total_sum"] == 20010
    assert found["vllm:iteration_tokens_total_bucket{le=8}"] == 1
    assert found["vllm:iteration_tokens_total_bucket{le=16384}"] == 2
    assert found["vllm:kv_cache_usage_perc"] == 0.25
    assert found["vllm:prefix_cache_queries_total"] == 1000
    assert found["vllm:prefix_cache_hits_total"] == 600
    assert found["vllm:prompt_tokens_total"] == 1000
    assert found["vllm:generation_tokens_total"] == 70
    assert found["vllm:num_preemptions_total"] == 1
    assert found["vllm:spec_decode_num_drafts_total"] == 5
    assert found["vllm:spec_decode_num_draft_tokens_total"] == 20
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == 12
    assert found["vllm:spec_decode_num_accepted_tokens_per_pos_total{position=2}"] == 3
    assert found["kvflow:spec_decode_excluded_requests_total"] == 2
    assert found["vllm:request_success_total{finished_reason=stop}"] == 4
    assert found["vllm:request_success_total{finished_reason=abort}"] == 0
    assert found["vllm:admission_rejections_total"] == 1
    size = "kv_cache_max_concurrency=6.25,kv_cache_size_tokens=3200"
    info = f"block_size=16,enable_prefix_caching=True,{size},num_gpu_blocks=200"
    assert found[f"vllm:cache_config_info{{{info}}}"] == 1


def test_counters_of_the_cache_and_of_hints() -> None:
    stats = EngineStats(
        num_blocks_host=7,
        num_runs=5,
        num_runs_held_back=2,
        stall_s=1.5,
        num_evicted_blocks=9,
        num_prefetched_blocks=6,
        num_useful_blocks=3,
        num_late_blocks=2,
        num_wasted_blocks=1,
        load_bytes=1000,
        load_s=0.25,
        save_bytes=2000,
        save_s=0.5,
        num_failed_transfers=4,
        ended_histories={"parent": 3, "compaction": 0},
        num_learned_agents=8,
        predictions={"right": 6, "wrong": 1, "withheld": 2},
        prefill=PrefillProgress(num_requests=2, num_tokens=4000, num_computed=1000),
    )
    metrics = Metrics(lambda: "tiny", lambda: stats, page_size=16)
    for source in (IdentitySource.CODEX, IdentitySource.CODEX, IdentitySource.INVALID):
        metrics.observe_identity(source)
    for status in (HintStatus.APPLIED, HintStatus.APPLIED, HintStatus.CLIPPED, None):
        metrics.observe(finished(FinishReason.STOP, hint_status=status))
    metrics.observe(finished(FinishReason.ABORT, hint_status=HintStatus.IGNORED))
    found = samples_of(metrics.render().decode())
    assert {name: value for name, value in found.items() if name.startswith("kvflow:")} == {
        "kvflow:host_blocks": 7,
        "kvflow:prefill_progress": 0.25,
        "kvflow:prefill_remaining_tokens": 3000,
        "kvflow:runs": 5,
        "kvflow:runs_held_back": 2,
        "kvflow:prefetch_issued_tokens_total": 6 * 16,
        "kvflow:prefetch_useful_tokens_total": 3 * 16,
        "kvflow:prefetch_late_tokens_total": 2 * 16,
        "kvflow:prefetch_wasted_tokens_total": 16,
        "kvflow:stall_seconds_total": 1.5,
        "kvflow:failed_transfers_total": 4,
        "kvflow:evicted_blocks_total": 9,
        "kvflow:spec_decode_excluded_requests_total": 0,
        "kvflow:transfer_bytes_total{direction=load}": 1000,
        "kvflow:transfer_bytes_total{direction=save}": 2000,
        "kvflow:transfer_seconds_total{direction=load}": 0.25,
        "kvflow:transfer_seconds_total{direction=save}": 0.5,
        "kvflow:hints_total{outcome=applied}": 2,
        "kvflow:hints_total{outcome=clipped}": 1,
        "kvflow:hints_total{outcome=ignored}": 1,
        "kvflow:hints_total{outcome=unknown_graph}": 0,
        "kvflow:prompt_edits_total{edit=billing_header}": 0,
        "kvflow:prompt_edits_total{edit=total_tokens}": 0,
        "kvflow:prompt_edits_total{edit=environment}": 0,
        "kvflow:prompt_edits_total{edit=lone_surrogates}": 0,
        **{
            f"kvflow:identified_requests_total{{source={source}}}": count
            for source, count in (
                *(("claude_code", 0), ("codex", 2), ("opencode", 0), ("dynamo", 0)),
                *(("session_header", 0), ("body", 0), ("calls", 0), ("invalid", 1)),
            )
        },
        "kvflow:ended_histories_total{reason=parent}": 3,
        "kvflow:ended_histories_total{reason=compaction}": 0,
        "kvflow:learned_agents": 8,
        "kvflow:predicted_calls_total{outcome=right}": 6,
        "kvflow:predicted_calls_total{outcome=wrong}": 1,
        "kvflow:predicted_calls_total{outcome=withheld}": 2,
    }


def test_the_metrics_route_counts_a_request(http: httpx.Client) -> None:
    before = samples_of(http.get("/metrics").text)
    http.post("/v1/completions", json={"prompt": "a"}).raise_for_status()
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    name = "vllm:e2e_request_latency_seconds_count"
    assert samples_of(answer.text)[name] == before[name] + 1


def test_outcomes_of_hints_are_counted(http: httpx.Client, engine: FakeEngine) -> None:
    def count(status: HintStatus) -> float:
        name = f'kvflow:hints_total{{engine="0",model_name="tiny",outcome="{status.value}"}}'
        (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
        return float(line.split()[-1])

    before = count(HintStatus.APPLIED)
    chat_with_hints(http, PLANNER)
    chat_with_hints(http, None)
    assert count(HintStatus.APPLIED) == before + 1


def test_every_metric_has_a_help_text_of_one_sentence() -> None:
    text = Metrics(lambda: "tiny", EngineStats, page_size=16).render().decode()
    lines = [line.split(" ", 3) for line in text.splitlines() if line.startswith("# HELP ")]
    assert len(lines) > 20
    for _, _, name, sentence in lines:
        assert sentence.endswith("."), name
        assert sentence[0].isupper(), name
