"""Soak test: many mixed requests with aborts in a pool too small for them, then exactness.

    python -m experiments.soak --json FILE
    python -m experiments.soak --quick     # tiny random model, few requests: under a minute

Afterwards every block must be released, and every greedy output must equal a cold run: each token
has the largest teacher-forced logit, within the tolerance of float32. Exits with 1 otherwise.
"""

from __future__ import annotations

import queue
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from experiments.bench.reference_model import ReferenceModel
from experiments.make_folder import temporary_folder
from experiments.measure import arguments, positive_int, report
from kvflow_jax import LLM, FinishReason, SamplingParams
from kvflow_jax.requests.outputs import Output
from kvflow_jax.requests.request_spec import RequestSpec

NUM_PAGES = 64  # of 16 tokens: room for about six requests, where sixteen may run
TOLERANCE = 2e-3  # of logits: float32 rounding of 30 layers across batch shapes, with a margin


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=positive_int, help="default: 200, quick 24")
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, few requests"
    )
    options = parser.parse_args()
    num_requests = options.requests or (24 if options.quick else 200)
    is_tiny = options.quick and options.model is None
    with temporary_folder() if is_tiny else nullcontext() as folder:
        figures = soak(str(folder or options.model or "smollm2-135m"), num_requests, options.quick)
    report(figures, {"wrong_tokens": "0", "blocks_leaked": "0"}, options.json)
    if figures["wrong_tokens"] or figures["blocks_leaked"]:
        print("soak: outputs or leases are wrong, see wrong_tokens, blocks_leaked", file=sys.stderr)
        return 1
    return 0


def soak(model: str, num_requests: int, is_quick: bool = False) -> dict[str, Any]:
    """Run the requests, check every structure and every greedy output; return counts.

    Args:
        is_quick: True to run deterministically, in two batch shapes, which compile in seconds.
    """
    rng = np.random.default_rng(0)
    with LLM(
        model,
        dtype="float32",  # which TOLERANCE is for
        num_pages=NUM_PAGES,
        max_model_len=512,
        max_num_seqs=16,
        deterministic=is_quick,
    ) as llm:
        vocab = llm.config.vocab_size
        shared = [rng.integers(0, vocab, 200).tolist() for _ in range(3)]
        outputs: queue.SimpleQueue[tuple[int, Output]] = queue.SimpleQueue()
        prompts, params, ids = [], [], []
        for number in range(num_requests):
            head = shared[number % 3][: int(rng.integers(0, 200))]
            prompts.append(head + rng.integers(0, vocab, int(rng.integers(1, 100))).tolist())
            greedy = bool(rng.random() < 0.7)
            params.append(
                SamplingParams(
                    max_tokens=int(rng.integers(1, 64)), temperature=0.0 if greedy else 1.0
                )
            )
            on_output = partial(_put, outputs, number)
            ids.append(llm.engine.submit(RequestSpec(prompts[-1], params[-1]), on_output))
        aborted = set(rng.choice(num_requests, num_requests // 8, replace=False).tolist())
        tokens: list[list[int]] = [[] for _ in prompts]
        reasons: list[FinishReason | None] = [None] * num_requests
        while None in reasons:
            number, output = outputs.get()
            tokens[number] += output.token_ids
            reasons[number] = output.finish_reason
            # Abort in the middle of a generation, after its first output.
            if number in aborted:
                aborted.discard(number)
                llm.engine.abort(ids[number])
        llm.engine.check_integrity()
        stats = llm.stats
        cold = ReferenceModel(llm.model, llm.params, 512)
        wrong, near_ties, checked = 0, 0, 0
        for number, prompt in enumerate(prompts):
            if params[number].is_greedy and tokens[number]:
                gaps = cold.greedy_gaps(prompt, tokens[number])
                checked += len(gaps)
                near_ties += int(((gaps > 0) & (gaps <= TOLERANCE)).sum())
                wrong += int((gaps > TOLERANCE).sum())
    return {
        "requests": num_requests,
        "finished": {r.value: reasons.count(r) for r in FinishReason},
        "preemptions": stats.num_preemptions,
        "evicted_blocks": stats.num_evicted_blocks,
        "cached_prompt_tokens": stats.cached_prompt_tokens,
        "blocks_leaked": stats.num_blocks_leased,
        "greedy_tokens_checked": checked,
        "near_ties": near_ties,
        "wrong_tokens": wrong,
    }


def _put(outputs: queue.SimpleQueue[tuple[int, Output]], number: int, output: Output) -> None:
    outputs.put((number, output))


if __name__ == "__main__":
    raise SystemExit(main())
