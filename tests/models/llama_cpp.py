"""Converts a Hugging Face folder to a .gguf file by the rules of llama.cpp's convert_hf_to_gguf.py.

Names of tensors and fields are written out here, and shared with no reader: a name that the loader
has wrong is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open
from transformers import AutoConfig

from tests.models.remade_tokenizers import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Remade

F32, F16, BF16, Q8_0 = (
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.BF16,
    gguf.GGMLQuantizationType.Q8_0,
)

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "Olmo2ForCausalLM": "olmo2",
}
_ENDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def convert(
    folder: Path,
    path: Path,
    remade: Remade,
    *,
    kind: gguf.GGMLQuantizationType = F32,
    without_scores: bool = False,
) -> Path:
    """Write the .gguf file of a folder; return its path.

    Args:
        remade: the tokenizer of the folder.
        kind: how matrices are stored.
        without_scores: convert a SentencePiece tokenizer from tokenizer.json alone, which has no
            scores.
    """
    hf = AutoConfig.from_pretrained(folder).to_dict()
    architecture = _ARCHITECTURES[hf["architectures"][0]]
    writer = gguf.GGUFWriter(None, architecture)
    for name, tensor, stored in _tensors(folder, hf, architecture, remade, kind):
        writer.add_tensor(name, tensor, raw_dtype=stored)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"{architecture} of a test")
    _add_fields(writer, hf, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if remade.pre:
        _add_byte_level(writer, folder, hf, remade)
    elif without_scores:
        _add_without_scores(writer, folder)
    else:
        _add_sentencepiece(writer, folder, hf, architecture, remade)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(folder, hf, architecture, remade, kind):
    """Yield (name, array, type) of each tensor."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    tensors: dict[str, np.ndarray] = {}
    heads = {"q_proj": hf["num_attention_heads"], "k_proj": hf["num_key_value_heads"]}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                tensor = opened.get_tensor(key).astype(np.float32)
                stem, _, end = key.rpartition(".")
                if architecture == "llama" and (part := stem.rpartition(".")[2]) in heads:
                    rows = tensor.reshape(heads[part], 2, -1, *tensor.shape[1:])
                    tensor = rows.swapaxes(1, 2).reshape(tensor.shape)
                if architecture == "gemma3" and key.endswith("norm.weight"):
                    tensor = tensor + np.float32(1)
                if architecture == "gemma3" and key == "model.embed_tokens.weight":
                    tensor = tensor[: len(remade.hf)]
                if architecture == "gemma3" and stem == "lm_head":
                    continue
                if expert := _EXPERT.search(key):
                    name = _name(_EXPERT.sub(".experts.", stem), architecture)
                    experts.setdefault(f"{name}.{end}", {})[int(expert[1])] = tensor
                else:
                    tensors[f"{_name(stem, architecture)}.{end}"] = tensor
    for name, parts in experts.items():
        tensors[name] = np.stack([parts[i] for i in range(len(parts))])
    tensors |= _rope_tensors(hf, architecture)
    for name, tensor in tensors.items():
        always_f32 = tensor.ndim == 1 or name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
        stored = F32 if always_f32 else kind
        try:
            data = gguf.quants.quantize(tensor, stored)
        except gguf.QuantError:
            stored = F16
            data = gguf.quants.quantize(tensor, stored)
        yield name, data, stored


def _name(stem: str, architecture: str) -> str:
    if match := _LAYER.fullmatch(stem):
        name = _OF_A_LAYER[match[2]]
        if match[2] == "post_attention_layernorm" and architecture in ("gemma3", "olmo2"):
            name = "post_attention_norm"
        return f"blk.{match[1]}.{name}"
    return _ENDS[stem]


def _rope_tensors(hf: Mapping, architecture: str) -> dict[str, np.ndarray]:
    rope = _rope(hf)
    if rope.get("rope_type") == "llama3":
        dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
        frequencies = rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
        original = hf.get("original_max_position_embeddings", 8192)
        turns = original * frequencies / (2 * np.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        factors = 1 / ((1 - smooth) / rope["factor"] + smooth)
        return {"rope_freqs.weight": factors.astype(np.float32)}
    if architecture == "phi3" and rope.get("long_factor"):
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    return {}


def _rope(hf: Mapping) -> dict:
    rope = hf.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def _add_fields(writer: gguf.GGUFWriter, hf: Mapping, architecture: str) -> None:
    """Write the fields of the architecture."""
    rope = _rope(hf)
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    writer.add_block_count(hf["num_hidden_layers"])
    writer.add_context_length(hf["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hf["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(hf["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(hf["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if architecture == "phi3":
        original = rope.get("original_max_position_embeddings")
        original = original or hf["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        share = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(share * width) // heads)
        writer.add_sliding_window(hf.get("sliding_window") or 0)
        if rope.get("long_factor"):
            extension = hf["max_position_embeddings"] / original
            factor = np.sqrt(1 + np.log(extension) / np.log(original)) if extension > 1 else 1.0
            writer.add_rope_scaling_attn_factors(float(factor))
        return
    _add_scaling(writer, rope)
    if hf.get("head_dim") is not None:
        writer.add_key_length(hf["head_dim"])
        writer.add_value_length(hf["head_dim"])
    if architecture == "llama":
        writer.add_vocab_size(hf["vocab_size"])
        writer.add_rope_dimension_count(hf.get("head_dim") or width // heads)
    if architecture == "gemma3":
        writer.add_sliding_window(hf["sliding_window"])
        local = hf["rope_parameters"]["sliding_attention"]["rope_theta"]
        writer.add_rope_freq_base_swa(local)
    if architecture == "qwen3moe":
        writer.add_expert_count(hf.get("num_experts") or hf["num_local_experts"])
        writer.add_expert_used_count(hf["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(hf["moe_intermediate_size"])


def _add_scaling(writer: gguf.GGUFWriter, rope: Mapping) -> None:
    kind = rope.get("rope_type")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        added: dict[str, Callable[[float], None]] = {
            "extrapolation_factor": writer.add_rope_scaling_yarn_ext_factor,
            "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }
        for name, add in added.items():
            if rope.get(name) is not None:
                add(rope[name])


def _add_byte_level(writer, folder, hf, remade: Remade) -> None:
    texts = {i: text for text, i in remade.hf.get_vocab().items()}
    added = remade.hf.added_tokens_decoder
    tokens, types = [], []
    for i in range(hf["vocab_size"]):
        kind = NORMAL if i in texts else UNUSED
        if i in added:
            text = added[i].content
            looks_special = text.startswith("<|") and text.endswith("|>")
            kind = CONTROL if added[i].special or looks_special else USER_DEFINED
        tokens.append(texts.get(i, f"[PAD{i}]"))
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(remade.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # The package's own part of the converter: merges, roles of tokens, chat templates.
    gguf.SpecialVocab(folder, load_merges=True).add_to_gguf(writer)


def _add_sentencepiece(writer, folder, hf, architecture: str, remade: Remade) -> None:
    size = hf["vocab_size"]
    tokens = [f"[PAD{i}]" for i in range(size)]
    scores, types = [-10000.0] * size, [UNUSED] * size
    for i, (text, score, kind) in enumerate(remade.pieces):
        # Of SentencePiece, user-defined pieces are no kind of their own to the converter.
        tokens[i], scores[i] = text, score
        types[i] = NORMAL if kind == USER_DEFINED else kind
    for i, token in remade.hf.added_tokens_decoder.items():
        # They are listed in tokenizer_config.json, or in Phi-3's tokenizer.json.
        text, looks_special = token.content, re.fullmatch(r"<\|.*\|>|<unused.*>", token.content)
        if token.special or (looks_special and architecture != "phi3"):
            kind = CONTROL
        else:
            kind, text = USER_DEFINED, text.replace("▁", " ")
        tokens[i], scores[i], types[i] = text, -1000.0, kind
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, n_vocab=len(tokens)).add_to_gguf(writer)
    if architecture == "gemma3":
        writer.add_add_space_prefix(False)


def _add_without_scores(writer, folder) -> None:
    # The package's own reader of a tokenizer.json in the form of SentencePiece.
    texts, scores, types = zip(*gguf.LlamaHfVocab(folder).all_tokens(), strict=True)
    assert BYTE in types
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, n_vocab=len(texts)).add_to_gguf(writer)
