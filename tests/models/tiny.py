"""Tiny random models, reproducible from a seed with numpy alone, and sequences that run them.

``families.cases`` has their configs. ``make_reference`` gives the same weights to torch, so that
the tests need no torch.
"""

import jax
import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from experiments.make_folder import (
    CHAT_TEMPLATE,
    byte_level_tokenizer,
    hf_weights,
    write_folder,
)
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.ops import XLA

# Re-exported for the tests.
__all__ = [
    "CHAT_TEMPLATE",
    "byte_level_tokenizer",
    "hf_weights",
    "write_folder",
]

VOCAB_SIZE = 300


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
            as_bits=pool_dtype != "float32" and jax.default_backend() == "cpu",
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


def logits_of(path, tokens=None, **load_args) -> np.ndarray:
    """Return the logits of a folder or file, f32[len(tokens), vocab_size], on XLA's operations."""
    tokens = prompt_tokens(48) if tokens is None else tokens
    loaded = load_model(str(path), cache_dir=path.parent, ops=XLA, progress=False, **load_args)
    return Sequence(loaded.model, loaded.params, len(tokens)).feed(tokens)
