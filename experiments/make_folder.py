"""Write a small Hugging Face folder of any supported family, with random weights; without torch.

    python -m experiments.make_folder gemma3 FOLDER --seed 7
    python -m kvflow_jax.serve --model FOLDER

The folder is complete: config.json, safetensors under the tensor names of transformers, and a
byte-level tokenizer with a chat template. The model's text is meaningless, but every library that
loads the folder computes the same: the tests compare these folders with transformers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from experiments.measure import command_name
from kvflow_jax.models.loading.safetensors_folder import INDEX_FILE, WEIGHTS_FILE
from kvflow_jax.models.quiet_imports import transformers
from kvflow_jax.serve.argument_parser import ArgumentParser

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
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

_GEMMA3 = _LLAMA | {
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

# family -> config.json, in the form of older releases (rope_theta beside rope_scaling)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA
    | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 20,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0,
    },
    "qwen2": _LLAMA
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": 1,
        "use_sliding_window": False,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
    "qwen3": _LLAMA
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
    },
    "qwen3-moe": _LLAMA
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
    "gemma3": _GEMMA3,
    "phi3": _LLAMA
    | {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "sliding_window": 40,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
}

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}<s>{{ m.role + ': ' + m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def main() -> int:
    parser = ArgumentParser(prog=command_name(), description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path, help="must be new or empty")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights; default: 0")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--shards", type=int, default=1, help="number of safetensors files; default: 1"
    )
    options = parser.parse_args()
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    hf = FAMILIES[options.family]
    weights = hf_weights(hf, options.seed, options.dtype)
    write_folder(options.folder, hf, weights=weights, shards=options.shards)
    num_weights = sum(tensor.size for tensor in weights.values())
    print(f"{options.folder}: {hf['architectures'][0]}, {num_weights} weights")
    return 0


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Write a folder that exists for the length of a block, for the ``--quick`` form of benches.

    The model has one layer, which compiles fastest, and a context of 4096 tokens.
    """
    with tempfile.TemporaryDirectory() as name:
        hf = _LLAMA | {"num_hidden_layers": 1, "max_position_embeddings": 4096}
        yield write_folder(Path(name) / "tiny-llama", hf)


def write_folder(
    folder: Path,
    hf: Mapping[str, Any] = _LLAMA,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """Write a Hugging Face folder and return it.

    Args:
        hf: content of config.json.
        weights: tensors by name; those of ``hf_weights`` if None.
        shards: number of safetensors files that share the tensors.
        tokenizer: True to write a tokenizer, too.
    """
    weights = hf_weights(hf) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf, indent=1))
    if shards == 1:
        save_file(dict(weights), folder / WEIGHTS_FILE)
    else:
        names = list(weights)
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: weights[name] for name in names[shard::shards]}
            save_file(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index))
    if tokenizer:
        byte_level_tokenizer().save_pretrained(folder)
    return folder


def hf_weights(
    hf: Mapping[str, Any], seed: int = 0, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Return random tensors of a checkpoint by their Hugging Face names."""
    rng = np.random.default_rng(seed)
    # Gemma stores the weights of norms minus 1.
    mean_norm = 0 if hf["model_type"] == "gemma3_text" else 1
    weights = {}
    for name, shape in tensor_shapes(hf).items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        # Large enough that attention is far from uniform and logits are far from equal.
        noise *= np.float32(0.1 if "norm" in name else 0.15)
        weights[name] = (mean_norm + noise if "norm" in name else noise).astype(dtype, copy=False)
    return weights


def tensor_shapes(hf: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a checkpoint of this config.json."""
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
    return shapes


def byte_level_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """Return a transformers tokenizer: byte-level BPE, <s> is 256, </s> is 257, a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("ð", "Ł")]
    vocab |= {left + right: 258 + i for i, (left, right) in enumerate(merges)}
    backend = Backend(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    sys.exit(main())
