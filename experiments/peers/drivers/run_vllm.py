"""Drive vLLM through its Python API. Options: ``model``, a Hugging Face folder; ``dtype``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.peers.drivers.columns import Prompt, RequestEngine, run

KV_BYTES = 2 << 30


def build(options: Mapping[str, Any]) -> RequestEngine:
    """Return the engine of a model, compiled, as vLLM is by default."""
    # The engine in this process: no messages between processes are measured.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    llm = LLM(
        options["model"],
        dtype=options["dtype"],
        max_model_len=4096,
        max_num_seqs=16,
        # The whole prompt in one step, as vLLM is fastest.
        max_num_batched_tokens=4096,
        enable_prefix_caching=True,
        kv_cache_memory_bytes=KV_BYTES,
    )

    def generate(prompts: Sequence[Prompt], num_tokens: int) -> list[Sequence[int]]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(requests, params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    return RequestEngine(generate)


if __name__ == "__main__":
    run(build)
