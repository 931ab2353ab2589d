"""Reads llama.cpp's file format (package ``gguf``): config, weights and tokenizer of a .gguf file.

The fields of a file are renamed to those of a Hugging Face config.json and read by ``read_config``,
so that both formats pass the same checks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.gguf_tensors import ROPE_FACTORS, GgufTensors
from kvflow_jax.models.loading.gguf_tokenizer import build_tokenizer
from kvflow_jax.models.loading.hf_config import read_config

# general.architecture -> architecture of a config.json. Mistral models are converted as llama.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}

TENSOR_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
    *("Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"),
)

# GGUF field without its "<architecture>." -> field of a config.json
_REQUIRED = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}

# Gemma 3 27B has another query scalar. No field holds it: llama.cpp, too, goes by the depth.
_GEMMA3_27B_LAYERS = 62


class GgufFile:
    """An open .gguf file.

    Attributes:
        fields: metadata by GGUF name.
        architecture: ``general.architecture``.

    Raises:
        ModelLoadError: the file is unreadable, or its architecture, or the type of a tensor, is
            not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import gguf
        except ImportError as error:
            raise ModelLoadError(
                f"reading {path.name} needs gguf; install it with: pip install gguf"
            ) from error
        try:
            reader = gguf.GGUFReader(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        # The parser checks nothing: a damaged file raises errors of any type.
        except Exception as error:
            raise ModelLoadError(
                f"{path} is truncated or not a GGUF file; download it again ({error!r})"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self.fields.get("general.architecture")
        problems = []
        if self.architecture not in ARCHITECTURES:
            problems.append(
                f"architecture {self.architecture!r} is not supported; supported: "
                + ", ".join(ARCHITECTURES)
            )
        if self.fields.get("split.count", 1) > 1:
            problems.append(
                "the model is split into several files; join them with llama.cpp's "
                "llama-gguf-split --merge"
            )
        problems += [
            f"tensor {name} has type {tensor.tensor_type.name}, which is not supported; supported: "
            + ", ".join(TENSOR_TYPES)
            for name, tensor in self._tensors.items()
            if tensor.tensor_type.name not in TENSOR_TYPES
        ]
        self._raise_if(problems)

    def config(self) -> ModelConfig:
        """Return the config of the model.

        Raises:
            ModelLoadError: listing every missing field and unsupported value.
        """
        arch = self.architecture
        self._raise_if(
            [f"missing field {arch}.{name}" for name in _REQUIRED if self._field(name) is None]
            + [f"missing tensor {name}" for name in ["token_embd.weight"]
               if name not in self._tensors]
        )  # fmt: skip
        hf = {
            hf_name: self._field(name)
            for name, hf_name in (_REQUIRED | _OPTIONAL).items()
            if self._field(name) is not None
        }
        lists = [name for name, value in hf.items() if isinstance(value, list)]
        self._raise_if([f"{name} with one value per layer is not supported" for name in lists])
        hf |= {
            "architectures": [ARCHITECTURES[str(arch)]],
            "vocab_size": int(self._tensors["token_embd.weight"].shape[-1]),
            "rms_norm_eps": _shortest_decimal(hf["rms_norm_eps"]),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._tensors,
            "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._eos_token_ids(),
        }
        if arch != "qwen3moe" and hf.pop("num_experts", 0):
            self._raise_if([f"a mixture of experts is not supported in architecture {arch!r}"])
        head_dim = hf.get("head_dim") or hf["hidden_size"] // max(hf["num_attention_heads"], 1)
        if arch == "qwen3moe":
            # No field holds it; llama.cpp normalises always.
            hf["norm_topk_prob"] = True
        if arch == "gemma3":
            is_27b = hf["num_hidden_layers"] == _GEMMA3_27B_LAYERS
            hf["query_pre_attn_scalar"] = (
                hf["hidden_size"] / hf["num_attention_heads"] if is_27b else head_dim
            )
            hf["layer_types"] = self._layer_types(hf["num_hidden_layers"])
        else:
            # A file without the field has no window: the defaults of config.json do not apply.
            hf.setdefault("sliding_window", None)
        rotary_dim = self._field("rope.dimension_count")
        if rotary_dim is not None and head_dim:
            hf["partial_rotary_factor"] = rotary_dim / head_dim
        if scaling := self._rope_scaling():
            hf["rope_scaling"] = scaling
        try:
            return read_config(hf)
        except ModelLoadError as error:
            raise ModelLoadError(
                f"{self.path} (its fields are named as in a config.json): {error}"
            ) from error

    def tensors(self, config: ModelConfig) -> GgufTensors:
        """Return the file's tensors under the Hugging Face names of a model with this config."""
        return GgufTensors(self.path, self._tensors.values(), str(self.architecture), config)

    def tokenizer(self) -> Any:
        """Return the file's tokenizer, a transformers ``PreTrainedTokenizerFast``.

        Raises:
            ModelLoadError: the tokenizer is missing or of an unsupported kind.
        """
        return build_tokenizer(self.fields, self.path)

    def _field(self, name: str) -> Any:
        return self.fields.get(f"{self.architecture}.{name}")

    def _raise_if(self, problems: list[str]) -> None:
        if problems:
            raise ModelLoadError(f"cannot load {self.path}:\n- " + "\n- ".join(problems))

    def _eos_token_ids(self) -> list[int]:
        """Return the tokens that end a text, a turn (EOT) or a message (EOM), without repeats."""
        ids = (self.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        return list(dict.fromkeys(int(token_id) for token_id in ids if token_id is not None))

    def _layer_types(self, num_layers: int) -> list[str]:
        """Return the kind of each Gemma layer: by default all but every sixth have a window."""
        pattern = self._field("attention.sliding_window_pattern") or 6
        if not isinstance(pattern, list):
            pattern = [bool((i + 1) % pattern) for i in range(num_layers)]
        return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]

    def _rope_scaling(self) -> dict[str, Any] | None:
        """Return the ``rope_scaling`` of a config.json; None where there is no scaling."""
        llama3_factors, long_factors, short_factors = (self._factors(name) for name in ROPE_FACTORS)
        # The converter has computed one factor a frequency from llama3's scaling.
        if llama3_factors is not None:
            return {
                "rope_type": "longrope",
                "long_factor": llama3_factors,
                "short_factor": llama3_factors,
                "attention_factor": 1.0,
            }
        if long_factors is not None:
            return {
                "rope_type": "longrope",
                "long_factor": long_factors,
                "short_factor": short_factors,
                "attention_factor": self._field("rope.scaling.attn_factor"),
            }
        kind = self._field("rope.scaling.type") or "none"
        if kind == "none":
            return None
        return {"rope_type": kind, "factor": self._field("rope.scaling.factor")}

    def _factors(self, name: str) -> list[float] | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else [float(factor) for factor in tensor.data]


def _shortest_decimal(value: float) -> float:
    """Return the shortest decimal that rounds to a float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
