"""Many mixed requests with aborts against a pool too small for them, then exactness.

    python -m experiments.soak --json FILE

Afterwards every block must be free, and each finished greedy text must be its cold text: every
token the likeliest by teacher-forced logits of a cold run, within the tolerance of float32.
"""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from experiments.bench.reference_model import ReferenceModel
from experiments.measure import arguments, report
from kvflow_jax import LLM, FinishReason, SamplingParams
from kvflow_jax.requests.outputs import Output

NUM_PAGES = 64  # of 16 tokens: about six of the requests, where sixteen may run
TOLERANCE = 2e-3  # logits; float32 rounding of 30 layers across batch shapes, with room


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    figures = soak(options.model, options.requests)
    report(figures, {"wrong_tokens": "0", "blocks_leaked": "0"}, options.json)
    if figures["wrong_tokens"] or figures["blocks_leaked"]:
        raise SystemExit("FAILED")


def soak(model: str, num_requests: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with LLM(model, num_pages=NUM_PAGES, max_model_len=512, max_num_seqs=16) as llm:
        vocab = llm.config.vocab_size
        shared = [rng.integers(0, vocab, 200).tolist() for _ in range(3)]
        news: queue.SimpleQueue[tuple[int, Output]] = queue.SimpleQueue()
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
            ids.append(
                llm.engine.submit(prompts[-1], params[-1], lambda o, n=number: news.put((n, o)))
            )
        aborted = set(rng.choice(num_requests, num_requests // 8, replace=False).tolist())
        tokens: list[list[int]] = [[] for _ in prompts]
        reasons: list[FinishReason | None] = [None] * num_requests
        while None in reasons:
            number, output = news.get()
            tokens[number] += output.token_ids
            reasons[number] = output.finish_reason
            # An abort lands in the middle of a generation, once it has begun.
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


if __name__ == "__main__":
    main()
