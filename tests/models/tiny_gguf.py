"""Writes tiny models as .gguf files, in the form of llama.cpp's convert_hf_to_gguf.py."""

from pathlib import Path

import gguf
import numpy as np

from kvflow_jax.models.families import BY_ARCHITECTURE
from kvflow_jax.models.families.base import GgufForm
from kvflow_jax.models.families.hf_fields import Json
from kvflow_jax.models.loading.gguf_tensors import gguf_name, name_map
from tests.models import tiny
from tests.models.families.cases import CONFIGS

# A config whose matrices have whole blocks of every quantised type.
WIDE = CONFIGS["llama-untied-mha"] | {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
}


def form_of(hf: Json) -> GgufForm:
    """Return llama.cpp's form of the model of a config.json."""
    return BY_ARCHITECTURE[hf["architectures"][0]].gguf


def write(
    path: Path,
    hf: Json,
    *,
    form=None,
    tensors=None,
    fields=None,
    without=(),
    tokenizer=None,
) -> Path:
    """Write the .gguf file of a tiny model; return ``path``.

    Args:
        form: that of the model's family if None.
        tensors: name -> array, or (bytes, type); ``tensors_of(hf)`` if None.
        fields: override those of the model.
        without: names of fields to leave out.
        tokenizer: fields of the tokenizer; those of a byte-level one if None.
    """
    form = form_of(hf) if form is None else form
    writer = gguf.GGUFWriter(None, form.architecture)
    all_fields = model_fields(hf, form) | (byte_level_fields() if tokenizer is None else tokenizer)
    for name, value in (all_fields | (fields or {})).items():
        if name not in without:
            _add(writer, name, value)
    for name, tensor in (tensors_of(hf, form) if tensors is None else tensors).items():
        data, tensor_type = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=tensor_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(array: np.ndarray, tensor_type) -> np.ndarray:
    """Return a matrix's bytes; for types that gguf only reads, random ones with small scales."""
    try:
        return gguf.quants.quantize(array, tensor_type)
    except NotImplementedError:
        block, num_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
        rng = np.random.default_rng(array.size)
        shape = (*array.shape[:-1], array.shape[-1] // block, num_bytes)
        data = rng.integers(0, 256, shape).astype(np.uint8)
        scale, name = np.array([2e-4], np.float16).view(np.uint8), tensor_type.name
        if name == "Q2_K":
            data[..., -4:-2], data[..., -2:] = scale, scale
        elif name in ("Q3_K", "Q6_K", "TQ1_0", "TQ2_0"):
            data[..., -2:] = scale
        elif name == "IQ1_M":
            # The nibbles of the scale are the highest of four words.
            data[..., -7] = data[..., -7] & 15 | (int(scale[0]) & 15) << 4
            data[..., -5] = data[..., -5] & 15 | int(scale[0]) & 0xF0
            data[..., -3] = data[..., -3] & 15 | (int(scale[1]) & 15) << 4
            data[..., -1] = data[..., -1] & 15 | int(scale[1]) & 0xF0
        else:
            data[..., :2] = scale
            if name in ("Q4_K", "Q5_K"):
                data[..., 2:4] = scale
        return data.reshape(*array.shape[:-1], -1)


def model_fields(hf: Json, form: GgufForm) -> dict:
    """Return the GGUF fields of a config.json."""
    head_dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    fields = {
        "context_length": hf["max_position_embeddings"],
        "block_count": hf["num_hidden_layers"],
        "embedding_length": hf["hidden_size"],
        "feed_forward_length": hf["intermediate_size"],
        "attention.head_count": hf["num_attention_heads"],
        "attention.head_count_kv": hf["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.layer_norm_rms_epsilon": hf["rms_norm_eps"],
        "rope.freq_base": hf["rope_theta"],
        "rope.dimension_count": int(head_dim * hf.get("partial_rotary_factor", 1)),
    }
    fields |= {name: hf[theirs] for name, theirs in form.fields.items() if theirs in hf}
    scaling = hf.get("rope_scaling", {})
    if scaling.get("rope_type") in ("linear", "yarn"):
        fields["rope.scaling.type"] = scaling["rope_type"]
        fields["rope.scaling.factor"] = scaling["factor"]
    for settings in (hf, scaling):
        if "original_max_position_embeddings" in settings:
            original = settings["original_max_position_embeddings"]
            fields["rope.scaling.original_context_length"] = original
    if scaling.get("type") == "longrope":
        extension = hf["max_position_embeddings"] / hf["original_max_position_embeddings"]
        factor = np.sqrt(1 + np.log(extension) / np.log(hf["original_max_position_embeddings"]))
        fields["rope.scaling.attn_factor"] = float(factor)
    if form.architecture in ("gemma3", "phi3"):
        fields["attention.sliding_window"] = hf["sliding_window"]
    if "sliding_window_pattern" in hf:
        fields["attention.sliding_window_pattern"] = hf["sliding_window_pattern"]
    return {f"{form.architecture}.{name}": value for name, value in fields.items()}


def tensors_of(
    hf: Json, form: GgufForm | None = None, weights: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Return a model's tensors by GGUF name, with their rows in GGUF's order."""
    form = form_of(hf) if form is None else form
    norm_offset = BY_ARCHITECTURE[hf["architectures"][0]].norm_offset
    names = name_map(form.architecture, hf["num_hidden_layers"])
    heads = {"q_proj": hf["num_attention_heads"], "k_proj": hf["num_key_value_heads"]}
    tensors, experts = {}, {}
    for key, weight in (tiny.hf_weights(hf) if weights is None else weights).items():
        stem = key.rpartition(".")[0]
        if stem.endswith("norm"):
            weight = weight + np.float32(norm_offset)
        if form.interleaves_qk and (part := stem.rpartition(".")[2]) in heads:
            pairs = weight.reshape(heads[part], 2, -1, *weight.shape[1:])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        name, expert = gguf_name(names, key)
        if expert is None:
            tensors[name] = weight
        else:
            experts.setdefault(name, []).append(weight)
    tensors |= {name: np.stack(matrices) for name, matrices in experts.items()}
    scaling = hf.get("rope_scaling", {})
    if scaling.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(hf, scaling)
    if scaling.get("type") == "longrope":
        for length in ("long", "short"):
            factors = np.array(scaling[f"{length}_factor"], np.float32)
            tensors[f"rope_factors_{length}.weight"] = factors
    return tensors


def byte_level_fields(pre: str | None = "gpt-2") -> dict:
    """Return the GGUF fields of ``tiny.byte_level_tokenizer``."""
    backend = tiny.byte_level_tokenizer().backend_tokenizer
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    merges = ["t h", "th e", "Ġ the", "i n", "ð Ł"]
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "merges": merges,
        "token_type": [3 if token in ("<s>", "</s>") else 1 for token in tokens],
        "bos_token_id": vocab["<s>"],
        "eos_token_id": vocab["</s>"],
        "add_bos_token": False,
    }
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value}
    return fields | {"tokenizer.chat_template": tiny.CHAT_TEMPLATE}


def _llama3_factors(hf: dict, scaling: dict) -> np.ndarray:
    """Return llama3's divisors of RoPE's frequencies as convert_hf_to_gguf.py computes them."""
    head_dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    frequencies = 1.0 / hf["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    original, low, high, factor = (
        scaling[name]
        for name in (
            "original_max_position_embeddings",
            "low_freq_factor",
            "high_freq_factor",
            "factor",
        )
    )
    factors = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def _add(writer: gguf.GGUFWriter, name: str, value) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
