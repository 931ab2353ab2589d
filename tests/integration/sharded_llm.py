"""One model served by 1, 2 and 8 devices, its blocks offloaded to the host and loaded again.

test_sharded runs it in its own process: the number of devices is fixed when JAX starts.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from kvflow_jax import LLM, SamplingParams
from kvflow_jax.errors import ConfigError, ModelLoadError
from tests.models import tiny
from tests.models.families.cases import CONFIGS

HF = CONFIGS["llama"] | {
    "vocab_size": 304,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "tie_word_embeddings": False,
}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)


def answers(folder, num):
    """Tokens and logprobs of prompts, each repeated after others have evicted it."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 250, 40).tolist() for _ in range(4)]
    sizes = {"num_pages": 10, "max_num_seqs": 2, "max_model_len": 64, "page_size": 8}
    sizes["max_num_batched_tokens"] = 16
    with LLM(
        folder,
        dtype="float32",
        tensor_parallel=num,
        cache="hicache",
        host_cache_gib=0.01,
        progress=False,
        **sizes,
    ) as llm:
        assert len(next(iter(llm.params.values())).devices()) == num
        given, num_host = [], 0
        for prompt in prompts * 2:
            answer = llm.generate(prompt, GREEDY)
            given.append((answer.token_ids, [one.logprob for one in answer.logprobs]))
            num_host += answer.num_cached_host_tokens
        llm.engine.check_integrity()
    assert num_host, "nothing was loaded from the host"
    return given


def main():
    assert len(jax.devices()) == 8
    with tempfile.TemporaryDirectory() as folder:
        folder = str(tiny.write_folder(Path(folder) / "model", HF))
        one = answers(folder, 1)
        for num in (2, 8):
            for (tokens, logprobs), (wanted, expected) in zip(
                answers(folder, num), one, strict=True
            ):
                assert tokens == wanted
                np.testing.assert_allclose(logprobs, expected, atol=1e-3)
        torn = tiny.hf_weights(HF)
        torn["model.layers.1.mlp.down_proj.weight"][-1, -1] = np.nan
        bad = str(tiny.write_folder(Path(folder) / "torn", HF, weights=torn))
        with pytest.raises(ModelLoadError, match=r"infinity.*\n- model\.layers\.1\.mlp\.down"):
            LLM(bad, tensor_parallel=2, progress=False)
        for num, why in ((3, "3 devices cannot share num_heads 8"), (16, "there are 8; a CPU")):
            with pytest.raises(ConfigError, match=why):
                LLM(folder, tensor_parallel=num)


if __name__ == "__main__":
    sys.exit(main())
