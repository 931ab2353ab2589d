"""Tiny random models of every family, reproducible from a seed with numpy alone.

``make_reference`` gives the same weights to torch, so that the tests need no torch.
"""

import jax
import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from experiments.make_folder import (
    CHAT_TEMPLATE,
    FAMILIES,
    byte_level_tokenizer,
    hf_weights,
    write_folder,
)
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata

# Re-exported for the tests.
__all__ = [
    "CHAT_TEMPLATE",
    "byte_level_tokenizer",
    "hf_weights",
    "write_folder",
]

VOCAB_SIZE = FAMILIES["llama"]["vocab_size"]

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

_PHI3_LONG = FAMILIES["llama"] | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "pad_token_id": 0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "max_position_embeddings": 128,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
        "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
    },
}

# name -> Hugging Face config: every family and its options
CONFIGS = {
    "tied-gqa": FAMILIES["llama"],
    "untied-mha": FAMILIES["llama"] | {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "mqa-wide-head": FAMILIES["llama"] | {"num_key_value_heads": 1, "head_dim": 32},
    "llama3-rope": FAMILIES["llama"] | {"rope_theta": 500_000.0, "rope_scaling": _LLAMA3},
    "linear-rope-biased": FAMILIES["llama"]
    | {
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "attention_bias": True,
        "mlp_bias": True,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "hidden_size": 96,
    },
    "mistral-window": FAMILIES["mistral"],
    "qwen2-biased": FAMILIES["qwen2"],
    "qwen2-late-windows-yarn": FAMILIES["qwen2"]
    | {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3": FAMILIES["qwen3"],
    "qwen3-moe": FAMILIES["qwen3-moe"],
    "qwen3-moe-unnormalised": FAMILIES["qwen3-moe"]
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 24,
        "tie_word_embeddings": True,
    },
    "gemma3": FAMILIES["gemma3"],
    "gemma3-linear-rope": FAMILIES["gemma3"]
    | {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 12,
    },
    "phi3": FAMILIES["phi3"],
    "phi3-longrope": _PHI3_LONG,
    # max_position_embeddings is the original length: the short factors.
    "phi3-shortrope": _PHI3_LONG | {"original_max_position_embeddings": 128},
}


def prompt_tokens(num_tokens: int, seed: int = 1) -> np.ndarray:
    """Return random tokens, i32[num_tokens]."""
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, num_tokens).astype(np.int32)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a SentencePiece-style BPE tokenizer with byte fallback, as Llama 2 has."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁cat", "the", "cat", "s", "é", "你"]
    backend = Backend(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


class Sequence:
    """A sequence that is fed to a model in chunks through a paged KV pool, as by the engine."""

    def __init__(self, model, params, max_len, page_size=16, pool_dtype="float32"):
        config = model.config
        pages = -(-max_len // page_size)
        spec = PoolSpec(
            config.num_layers,
            pages + 1,
            page_size,
            config.num_kv_heads,
            config.head_dim,
            pool_dtype,
        )
        self.pool = KVPool.zeros(spec)
        # Pages in random order: an engine allocates any free page.
        self.table = np.random.default_rng(0).permutation(np.arange(1, pages + 1))
        self.table = self.table.astype(np.int32)[None]
        self.params, self.len = params, 0

        def step(params, tokens, positions, metadata, pool):
            hidden, pool = model.forward(params, tokens, positions, metadata, pool)
            return model.logits(params, hidden), pool

        self.step = jax.jit(step, donate_argnums=4)

    def feed(self, tokens, width=None) -> np.ndarray:
        """Append tokens and return their logits, f32[len(tokens), vocab_size].

        Args:
            width: tokens of the padded tile that is computed; 1 is a decode row.
        """
        num, spec = len(tokens), self.pool.spec
        width = width or num
        positions = self.len + np.arange(num)
        pages, offsets = self.table[0, positions // spec.page_size], positions % spec.page_size
        kv_slots = np.full(width, spec.num_kv_slots, np.int32)
        kv_slots[:num] = pages * spec.page_size + offsets
        padding = width - num
        metadata = AttentionMetadata(
            self.table,
            np.array([self.len], np.int32),
            np.array([num], np.int32),
            kv_slots,
            num_decode=1 if width == 1 else 0,
            tile=width,
        )
        logits, self.pool = self.step(
            self.params,
            np.pad(np.asarray(tokens, np.int32), (0, padding)),
            np.pad(positions.astype(np.int32), (0, padding)),
            metadata,
            self.pool,
        )
        self.len += num
        return np.asarray(logits)[:num]
