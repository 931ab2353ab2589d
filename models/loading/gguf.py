"""Reads llama.cpp's file format (package ``gguf``): config, weights and tokenizer of a .gguf file.

The fields of a file are renamed to those of a Hugging Face config.json and read by ``read_config``,
so that both formats pass the same checks.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.dtypes import INT4, INT8, NO_QUANTIZATION
from kvflow_jax.models.families import BY_GGUF_ARCHITECTURE
from kvflow_jax.models.families.hf_fields import MAX_LAYERS, HfFields, Json
from kvflow_jax.models.loading.gguf_end_tokens import end_token_ids
from kvflow_jax.models.loading.gguf_header import GgufHeader
from kvflow_jax.models.loading.gguf_rope import rope_scaling
from kvflow_jax.models.loading.gguf_split import parts_of, read_parts
from kvflow_jax.models.loading.gguf_tensors import GgufTensors
from kvflow_jax.models.loading.gguf_tokenizer import build_tokenizer
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Quantised types whose values "int4" keeps, with 15 equal steps for 32 values.
_INT4_TYPES = ("Q4_0", "Q4_1", "Q4_K", "TQ1_0", "TQ2_0")
# Those with more steps, with unequal ones, or with a scale for fewer values.
_INT8_TYPES = (
    *("Q8_0", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "MXFP4", "NVFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)
TENSOR_TYPES = ("F32", "F16", "BF16", *_INT4_TYPES, *_INT8_TYPES)

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
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
}

# Fields that change what llama.cpp computes -> the values that change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "expert_gating_func": (0, 1),
    "expert_weights_scale": (0, 1),
}

_SAMPLING_FIELDS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


class GgufFile:
    """An open .gguf file.

    Attributes:
        paths: the file, or all parts of a split model.
        fields: metadata by GGUF name.
        family: of the model; ``form`` is its form in llama.cpp.

    Raises:
        ModelLoadError: the file is unreadable, or its architecture, or the type of a tensor, is
            not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.paths = path, parts_of(path)
        header = _read(path)
        self.fields, self._tensors = header.fields, header.tensors
        architecture = str(self.fields.get("general.architecture"))
        problems = (
            []
            if architecture in BY_GGUF_ARCHITECTURE
            else [
                f"architecture {architecture!r:.80} is not supported; supported: "
                + ", ".join(BY_GGUF_ARCHITECTURE)
            ]
        )
        problems += [
            f"tensor {name} has type {tensor.tensor_type.name}, which is not supported; supported: "
            + ", ".join(TENSOR_TYPES)
            for name, tensor in self._tensors.items()
            if tensor.tensor_type.name not in TENSOR_TYPES
        ]
        self._raise_if(problems)
        self.family = BY_GGUF_ARCHITECTURE[architecture]
        assert self.family.gguf is not None
        self.form = self.family.gguf
        prefix = f"{architecture}."
        # Those of the model, without the name of its architecture.
        self._own_fields = HfFields(
            {
                name.removeprefix(prefix): value
                for name, value in self.fields.items()
                if name.startswith(prefix)
            }
        )

    def config(self) -> ModelConfig:
        """Return the config of the model.

        Raises:
            ModelLoadError: listing every missing field and unsupported value.
        """
        arch, own = self.form.architecture, self._own_fields
        problems = [f"missing field {arch}.{name}" for name in _REQUIRED if not own.has(name)]
        if _EMBEDDING not in self._tensors:
            problems.append(f"missing tensor {_EMBEDDING}")
        self._raise_if(problems)
        names = _REQUIRED | _OPTIONAL | {**self.form.fields}
        hf = {hf_name: own.values[name] for name, hf_name in names.items() if own.has(name)}
        problems = [
            f"{name} with one value per layer is not supported"
            for name, value in hf.items()
            if isinstance(value, list)
        ]
        # Before the family's fields are computed, some of them layer by layer.
        if own.number("block_count") > MAX_LAYERS:
            problems.append(f"{arch}.block_count is above the limit of {MAX_LAYERS}")
        problems += self._unsupported()
        if own.flag("expert_count") and "expert_count" not in names:
            problems.append(f"a mixture of experts is not supported in architecture {arch!r}")
        self._raise_if(problems)
        # A file without the field has no window: the defaults of config.json do not apply.
        hf = {"sliding_window": None} | hf | self._shared_fields(HfFields(hf))
        hf |= self.form.complete(HfFields(hf), own)
        try:
            config = read_config(hf)
        except ModelLoadError as error:
            raise ModelLoadError(
                f"{self.path} (its fields are named as in a config.json): {error}"
            ) from error
        # No field says so: the file has them or has not.
        return replace(
            config,
            qkv_bias=config.qkv_bias or "blk.0.attn_q.bias" in self._tensors,
            out_bias="blk.0.attn_output.bias" in self._tensors,
            mlp_bias="blk.0.ffn_gate.bias" in self._tensors,
        )

    @property
    def quantization(self) -> str:
        """How matrices are quantised, as ``load_model`` names it.

        "int4" if all have 4 bits, embedding and output projection aside; "int8" if some have more;
        "none" if some have floats.
        """
        types = {
            name: tensor.tensor_type.name
            for name, tensor in self._tensors.items()
            if len(tensor.shape) > 1
        }
        if not set(types.values()) <= {*_INT4_TYPES, *_INT8_TYPES}:
            return NO_QUANTIZATION
        layers = {kind for name, kind in types.items() if name not in (_EMBEDDING, _HEAD)}
        return INT4 if layers <= {*_INT4_TYPES} else INT8

    def tensors(self, model: Model) -> GgufTensors:
        """Return the file's tensors under the Hugging Face names that the model needs."""
        return GgufTensors(self.path, self._tensors, self.form, model)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the file's tokenizer.

        Raises:
            ModelLoadError: the tokenizer is missing or of an unsupported kind.
        """
        return build_tokenizer(
            self.fields,
            self.path,
            merges_in_token_order=self.form.merges_in_token_order,
            strips_after_control=self.form.strips_after_control,
        )

    def _shared_fields(self, hf: HfFields) -> dict[str, object]:
        """Return the fields of a config.json that a file of any family holds in another form."""
        default = max(hf.size("hidden_size") // hf.size("num_attention_heads"), 1)
        head_dim = hf.size("head_dim", default)
        rotary_dim = self._own_fields.number("rope.dimension_count", head_dim)
        return {
            "architectures": self.family.architectures[:1],
            # The shortest decimal that rounds to the float32: 1e-5, not 9.999999747378752e-06.
            "rms_norm_eps": float(str(np.float32(hf.number("rms_norm_eps")))),
            "vocab_size": int(self._tensors[_EMBEDDING].shape[-1]),
            "tie_word_embeddings": _HEAD not in self._tensors,
            "bos_token_id": self.fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": end_token_ids(HfFields(self.fields)),
            "partial_rotary_factor": rotary_dim / head_dim,
            "rope_scaling": self._rope_scaling(),
        }

    def _rope_scaling(self) -> Json | None:
        try:
            return rope_scaling(self._own_fields, self._tensors)
        except ValueError as error:
            raise self._error([str(error)]) from error

    def _unsupported(self) -> list[str]:
        """List the fields that change what llama.cpp computes and are not implemented here."""
        own = self._own_fields
        values = {name: own.values[name] for name in _NEUTRAL if own.has(name)}
        return [
            f"{self.form.architecture}.{name} {value!r:.80} is not supported"
            for name, value in values.items()
            if value not in _NEUTRAL[name]
        ]

    def _raise_if(self, problems: list[str]) -> None:
        if problems:
            raise self._error(problems)

    def _error(self, problems: list[str]) -> ModelLoadError:
        return ModelLoadError(f"cannot load {self.path}:\n- " + "\n- ".join(problems))


def read_sampling_fields(path: Path) -> Json:
    """Return the sampling parameters that a file recommends, named as in generation_config.json.

    Raises:
        ModelLoadError: see ``GgufFile``.
    """
    fields = _read(path).fields
    named = {_SAMPLING_FIELDS[name]: fields[name] for name in _SAMPLING_FIELDS if name in fields}
    # A float of 32 bits is 0.95 only to seven digits.
    return {
        name: float(f"{value:.7g}") if isinstance(value, float) else value
        for name, value in named.items()
    }


def _read(path: Path) -> GgufHeader:
    """Return the fields and the tensors of a model.

    Raises:
        ModelLoadError: the package ``gguf`` is missing, a part is, or a file is damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError(f"reading {path.name} needs gguf; install it with: pip install gguf")
    try:
        return read_parts(path)
    except (ValueError, struct.error, OSError) as error:
        raise ModelLoadError(
            f"{path} is truncated or not a GGUF file; download it again ({error})"
        ) from error
