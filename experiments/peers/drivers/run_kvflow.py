"""Drive this engine through its Python API. Options: ``model``, and ``llm``, those of ``LLM``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.peers.drivers.columns import Prompt, RequestEngine, run


def build(options: Mapping[str, Any]) -> RequestEngine:
    """Return the engine of a model."""
    from kvflow_jax import LLM, SamplingParams

    llm = LLM(options["model"], progress=False, **options["llm"])

    def generate(prompts: Sequence[Prompt], num_tokens: int) -> list[Sequence[int]]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        outputs = llm.generate(list(prompts), params, progress=False)
        return [output.token_ids for output in outputs]

    return RequestEngine(generate)


if __name__ == "__main__":
    run(build)
