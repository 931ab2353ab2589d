"""Command line: ``python -m experiments`` lists the experiments."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

MAX_NAME_CHARS = 64  # of an unknown name that the message repeats

GROUPS = {
    "Policies and machines, in virtual time or on this machine": {
        "paper": "KVFlow's evaluation, the paper's figures beside ours",
        "compare": "policies side by side on a workload or a trace",
        "zero_hints": "what those gain who declare neither agents nor graphs",
        "cycle": "ten agents in a cycle, on this machine and in virtual time",
        "zero_hints.real": "coding agents' sessions on a tiny model, with hints and without",
        "zero_hints.traces": "agents' sessions in virtual time, with what their clients send",
        "zero_hints.three_ways": "an app of LangGraph on plain LRU, without hints, by one argument",
        "terms": "ablation: what each part of kvflow-cost brings",
        "report": "REPORT.md and its figures from the results of the others",
    },
    "D-AdaST (arXiv 2406.02939)": {
        "minimax": "distributed minimax: the paper's comparisons, its claims beside ours",
    },
    "Benchmarks of this machine": {
        "engine_bench": "prefill, decode, batching, cached start, start-up, memory",
        "cache_bench": "the cache's own costs, without a model",
        "grammar_bench": "structured output: cost of a step, answers to schemas of real tools",
        "speculation": "speculative decoding: recorded calls, agents with and without drafts",
        "peers": "this engine beside vLLM, llama.cpp and transformers, on the same weights",
        "quality": "perplexity and greedy agreement of each mode, memory of its weights",
        "kernel_bench": "the CPU kernels against XLA's own",
        "load_bench": "how fast a model is loaded, and how much host memory that takes",
        "serve_bench": "latency of the HTTP server beside a busy engine",
        "load": "500 streams, hostile clients, an abort storm, a greedy tenant",
        "soak": "mixed requests with aborts in a pool too small, then exactness",
        "memory_soak": "mixed workflows for 20 minutes: resident memory, and texts",
        "bench.fit_profile": "fit the simulator's hardware profile to this machine",
    },
    "Devices": {
        "device_check": "a first look at an accelerator: kernels, rates, the paper's cycle",
        "portability": "compile the engine's programs for TPUs and GPUs that are not here",
        "make_folder": "write a small Hugging Face folder of any model family",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print every command with its summary; return the exit code.

    Args:
        argv: arguments, of which there should be none; None: those of the process.
    """
    names = [name for commands in GROUPS.values() for name in commands]
    for name in sys.argv[1:] if argv is None else argv:
        if name in ("-h", "--help"):
            continue
        near = difflib.get_close_matches(name, names, n=1) or ["NAME"]
        print(
            f"there is no command {name[:MAX_NAME_CHARS]!r} here; "
            f"did you mean: python -m experiments.{near[0]}",
            file=sys.stderr,
        )
        return 2
    for group, commands in GROUPS.items():
        print(f"{group}:")
        for name, summary in commands.items():
            print(f"  python -m experiments.{name:<22} {summary}")
    print("\nEach takes --help. They are part of the checkout; results go to experiments/results/.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
