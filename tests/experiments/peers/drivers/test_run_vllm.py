"""vLLM's driver, over a fake of its API."""

import sys
from types import SimpleNamespace

from experiments.peers.drivers import run_vllm


def test_requests_are_greedy_and_of_one_length(monkeypatch):
    made = []
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # restored at the end

    class FakeLLM:
        def __init__(self, model, **options):
            made.append((model, options))

        def generate(self, requests, params, use_tqdm):
            assert params.ignore_eos
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(token_ids=one["prompt_token_ids"][: params.max_tokens])
                    ]
                )
                for one in requests
            ]

    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **fields: SimpleNamespace(**fields))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    engine = run_vllm.build({"model": "folder", "dtype": "bfloat16"})
    assert engine.greedy([4, 5, 6], 2) == [4, 5]
    ((model, options),) = made
    assert (model, options["dtype"], options["enable_prefix_caching"]) == (
        "folder",
        "bfloat16",
        True,
    )
