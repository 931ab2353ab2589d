"""Tiny random models of every family, reproducible from a seed with numpy alone.

The reference maker gives the same weights to torch, so that neither side needs the other.
"""

import json

import jax
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import Rows

VOCAB_SIZE = 300

_BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 256,
    "eos_token_id": 257,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

_GEMMA3 = _BASE | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "head_dim": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 24,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 12,
    "sliding_window_pattern": 3,
    "attention_bias": False,
}
del _GEMMA3["hidden_act"]

_PHI3_LONG = _BASE | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "max_position_embeddings": 128,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
        "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
    },
    "pad_token_id": 0,
}

# name -> Hugging Face config, in the form of older releases (rope_theta beside rope_scaling)
CONFIGS = {
    "tied-gqa": _BASE,
    "untied-mha": _BASE | {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "mqa-wide-head": _BASE | {"num_key_value_heads": 1, "head_dim": 32},
    "llama3-rope": _BASE | {"rope_theta": 500_000.0, "rope_scaling": _LLAMA3},
    "linear-rope-biased": _BASE
    | {
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "attention_bias": True,
        "mlp_bias": True,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "hidden_size": 96,
    },
    "mistral-window": _BASE
    | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 20,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0,
    },
    "qwen2-biased": _BASE
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": 1,
        "use_sliding_window": False,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
    "qwen2-late-windows-yarn": _BASE
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3": _BASE
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
    },
    "qwen3-moe": _BASE
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    },
    "qwen3-moe-unnormalised": _BASE
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "norm_topk_prob": False,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 24,
    },
    "gemma3": _GEMMA3,
    "gemma3-linear-rope": _GEMMA3
    | {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 12,
    },
    "phi3": _BASE
    | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "sliding_window": 40,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
    "phi3-longrope": _PHI3_LONG,
    # Served no longer than it was trained with: the short factors.
    "phi3-shortrope": _PHI3_LONG | {"original_max_position_embeddings": 128},
}


def hf_weights(hf: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a Hugging Face checkpoint, float32."""
    family, d, f = hf["model_type"], hf["hidden_size"], hf["intermediate_size"]
    head_dim = hf.get("head_dim", d // hf["num_attention_heads"])
    q, kv = hf["num_attention_heads"] * head_dim, hf["num_key_value_heads"] * head_dim
    projections = [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)]
    mlp = [("gate", f, d), ("up", f, d), ("down", d, f)]
    if family == "phi3":
        projections = [("qkv", q + 2 * kv, d), ("o", d, q)]
        mlp = [("gate_up", 2 * f, d), ("down", d, f)]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if family == "gemma3_text":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (hf["vocab_size"], d)}
    for i in range(hf["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name, out, size in projections:
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (out, size)
            if hf.get("attention_bias") or (family == "qwen2" and name != "o"):
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (out,)
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            shapes[f"{layer}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (head_dim,)
        if family == "qwen3_moe":
            shapes[f"{layer}mlp.gate.weight"] = (hf["num_experts"], d)
            f = hf["moe_intermediate_size"]
            for e in range(hf["num_experts"]):
                for name, out, size in (("gate", f, d), ("up", f, d), ("down", d, f)):
                    shapes[f"{layer}mlp.experts.{e}.{name}_proj.weight"] = (out, size)
        else:
            for name, out, size in mlp:
                shapes[f"{layer}mlp.{name}_proj.weight"] = (out, size)
                if hf.get("mlp_bias"):
                    shapes[f"{layer}mlp.{name}_proj.bias"] = (out,)
        shapes |= {f"{layer}{norm}.weight": (d,) for norm in norms}
    shapes["model.norm.weight"] = (d,)
    if not hf["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (hf["vocab_size"], d)
    rng = np.random.default_rng(seed)
    mean_norm = 0 if family == "gemma3_text" else 1  # Gemma's are short of 1
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        # Large enough that attention is far from uniform and logits are far from equal.
        scaled = noise * np.float32(0.1 if "norm" in name else 0.15)
        weights[name] = mean_norm + scaled if "norm" in name else scaled
    return weights


def prompt_tokens(num_tokens: int, seed: int = 1) -> np.ndarray:  # i32[num_tokens]
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, num_tokens).astype(np.int32)


def write_folder(folder, hf=None, *, weights=None, shards=1, tokenizer=True):
    """A Hugging Face folder of a tiny model; returns the folder."""
    hf = _BASE if hf is None else hf
    weights = hf_weights(hf) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
    else:
        names = list(weights)
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: weights[name] for name in names[shard::shards]}
            save_file(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizer:
        byte_level_tokenizer().save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}<s>{{ m.role + ': ' + m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def byte_level_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE: 256 bytes, <s> (256), </s> (257), and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("ð", "Ł")]
    vocab |= {left + right: 258 + i for i, (left, right) in enumerate(merges)}
    backend = Backend(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-style BPE with byte fallback, as of Llama 2."""
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
    """One sequence fed to a model piece by piece through a paged pool, as an engine would."""

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
        # Pages out of order: a sequence's pages are wherever there was room.
        self.table = np.random.default_rng(0).permutation(np.arange(1, pages + 1))
        self.table = self.table.astype(np.int32)[None]
        self.params, self.len = params, 0

        def step(params, tokens, positions, rows, pool):
            hidden, pool = model.forward(params, tokens, positions, rows, pool)
            return model.logits(params, hidden), pool

        self.step = jax.jit(step, donate_argnums=4)

    def feed(self, tokens, width=None) -> np.ndarray:
        """Logits of every token, f32[len(tokens), vocab]; one decode row or one padded tile."""
        num, spec = len(tokens), self.pool.spec
        width = width or num
        positions = self.len + np.arange(num)
        pages, offsets = self.table[0, positions // spec.page_size], positions % spec.page_size
        slots = np.full(width, spec.num_slots, np.int32)
        slots[:num] = pages * spec.page_size + offsets
        padding = width - num
        rows = Rows(
            self.table,
            np.array([self.len], np.int32),
            np.array([num], np.int32),
            slots,
            num_decode=1 if width == 1 else 0,
            tile=width,
        )
        logits, self.pool = self.step(
            self.params,
            np.pad(np.asarray(tokens, np.int32), (0, padding)),
            np.pad(positions.astype(np.int32), (0, padding)),
            rows,
            self.pool,
        )
        self.len += num
        return np.asarray(logits)[:num]
