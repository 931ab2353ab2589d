"""Models in llama.cpp's file format: config, weights and tokenizer of one .gguf file.

A file's fields are put under Hugging Face's names and read as a config.json is, so both are checked
by the same eyes (package ``gguf``).
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

# general.architecture -> the architecture of a config.json. Mistral comes as llama.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}

TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"),
    *("Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"),
)

# GGUF field, after its architecture -> field of a config.json
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

_GEMMA3_27B_LAYERS = 62  # whose query scalar llama.cpp knows by its depth, the file does not say it


class GgufFile:
    """An open file.

    Raises:
        ModelLoadError: where it cannot be read, or is not of a family or a type that is served.
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
        except Exception as error:  # whatever the parser trips over: it checks nothing itself
            raise ModelLoadError(
                f"{path} is truncated or no GGUF file, download it again: {error!r}"
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
                "it is one of several parts; join them with llama.cpp's llama-gguf-split --merge"
            )
        problems += [
            f"{name} is of type {tensor.tensor_type.name}, which is not supported; supported: "
            + ", ".join(TYPES)
            for name, tensor in self._tensors.items()
            if tensor.tensor_type.name not in TYPES
        ]
        self._refuse(problems)

    def config(self) -> ModelConfig:
        """What a config.json would say.

        Raises:
            ModelLoadError: listing what is missing or not supported.
        """
        arch = self.architecture
        self._refuse(
            [f"field {arch}.{name} is missing" for name in _REQUIRED if self._field(name) is None]
            + [f"tensor {name} is missing" for name in ["token_embd.weight"]
               if name not in self._tensors]
        )  # fmt: skip
        hf = {
            theirs: self._field(name)
            for name, theirs in (_REQUIRED | _OPTIONAL).items()
            if self._field(name) is not None
        }
        lists = [name for name, value in hf.items() if isinstance(value, list)]
        self._refuse([f"{name} that differs by layer is not supported" for name in lists])
        hf |= {
            "architectures": [ARCHITECTURES[str(arch)]],
            "vocab_size": int(self._tensors["token_embd.weight"].shape[-1]),
            "rms_norm_eps": _decimal(hf["rms_norm_eps"]),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._tensors,
            "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._ends(),
        }
        if arch != "qwen3moe" and hf.pop("num_experts", 0):
            self._refuse([f"a mixture of experts is not supported in architecture {arch!r}"])
        head_dim = hf.get("head_dim") or hf["hidden_size"] // max(hf["num_attention_heads"], 1)
        if arch == "qwen3moe":
            hf["norm_topk_prob"] = True  # as llama.cpp computes it; the file does not say
        if arch == "gemma3":
            deep = hf["num_hidden_layers"] == _GEMMA3_27B_LAYERS
            hf["query_pre_attn_scalar"] = (
                hf["hidden_size"] / hf["num_attention_heads"] if deep else head_dim
            )
            hf["layer_types"] = self._layer_types(hf["num_hidden_layers"])
        else:
            hf.setdefault("sliding_window", None)  # a file that names none has none
        rotary_dim = self._field("rope.dimension_count")
        if rotary_dim is not None and head_dim:
            hf["partial_rotary_factor"] = rotary_dim / head_dim
        if scaling := self._rope_scaling():
            hf["rope_scaling"] = scaling
        try:
            return read_config(hf)
        except ModelLoadError as error:
            raise ModelLoadError(f"{self.path}, its fields under their names of {error}") from error

    def tensors(self, config: ModelConfig) -> GgufTensors:
        """Its tensors, as those of a checkpoint of this config."""
        return GgufTensors(self.path, self._tensors.values(), str(self.architecture), config)

    def tokenizer(self) -> Any:
        """The file's tokenizer, a transformers PreTrainedTokenizerFast.

        Raises:
            ModelLoadError: where it is missing or of a kind that is not supported.
        """
        return build_tokenizer(self.fields, self.path)

    def _field(self, name: str) -> Any:
        return self.fields.get(f"{self.architecture}.{name}")

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise ModelLoadError(f"{self.path} cannot be served:\n- " + "\n- ".join(problems))

    def _ends(self) -> list[int]:
        """The end of a text, and those of a turn and of a message, where they are others."""
        ids = (self.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
        return list(dict.fromkeys(int(one) for one in ids if one is not None))

    def _layer_types(self, num_layers: int) -> list[str]:
        """Which of Gemma's layers have a window: all but every sixth, unless the file says so."""
        pattern = self._field("attention.sliding_window_pattern") or 6
        if not isinstance(pattern, list):
            pattern = [bool((i + 1) % pattern) for i in range(num_layers)]
        return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]

    def _rope_scaling(self) -> dict[str, Any] | None:
        factors = [self._factors(name) for name in ROPE_FACTORS]
        if factors[0] is not None:  # llama3's scaling, worked out by the converter
            own = {"long_factor": factors[0], "short_factor": factors[0], "attention_factor": 1.0}
            return {"rope_type": "longrope", **own}
        if factors[1] is not None:
            attention_factor = self._field("rope.scaling.attn_factor")
            own = {"long_factor": factors[1], "short_factor": factors[2]}
            return {"rope_type": "longrope", **own, "attention_factor": attention_factor}
        kind = self._field("rope.scaling.type") or "none"
        if kind == "none":
            return None
        return {"rope_type": kind, "factor": self._field("rope.scaling.factor")}

    def _factors(self, name: str) -> list[float] | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else [float(factor) for factor in tensor.data]


def _decimal(value: float) -> float:
    """What was meant by a float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
