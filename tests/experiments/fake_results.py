"""Results of experiments as the report reads them, made up."""

from experiments.compare.arms import ARMS


def arm_figures(seconds, ttft_s=1.0):
    """Return every figure of an arm, all times ``seconds``."""
    return {
        "makespan_s": seconds,
        "completions_s": [0.5 * seconds, seconds],
        **{f"completion_{kind}_s": seconds for kind in ("mean", "p50", "p99")},
        "ttft_mean_s": ttft_s,
        "ttft_p99_s": ttft_s,
        "stall_share": 0.0,
        **{f"tokens_{kind}": 1000 for kind in ("from_device", "from_host", "recomputed")},
        **{f"prefetch_{kind}_blocks": 2 for kind in ("useful", "late", "wasted")},
        "evicted_blocks": 3,
        "preemptions": 0,
        "load_bytes": 10**9,
        "save_bytes": 10**9,
    }


def all_arms(gpu_only=10.0, hicache=9.0, others=8.0):
    """Return the figures of all arms of a workload."""
    arms = {name: arm_figures(others) for name in ARMS}
    return arms | {"gpu-only": arm_figures(gpu_only), "hicache": arm_figures(hicache)}


def paper_results():
    """Return results of ``experiments.paper --mode sim`` with one cell and one mean."""
    reported = {"kvflow over hicache": {"reported": 1.1, "ours": 9.0 / 8.0}}
    cell = {"arms": all_arms(), "paper": reported}
    mean = {"ours": 1.2, "cells": 6, "reported": 1.28}
    return {"cells": {"v1 a10g 4096/32/32": cell}, "means": {"v1 a10g 4096": mean}}
