"""One record for everything that sets a model family apart.

All families share one definition, ``models.decoder``, and differ only in data: fields of
config.json, names of tensors, llama.cpp's form. ``LLAMA_TENSORS`` and ``TINY_LLAMA`` are what most
families start from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.hf_fields import HfFields, Json

# Weights of the decoder without ".weight" or ".bias", as ``Model.stacked_specs`` names them.
Weight = Literal[
    "embed",
    "final_norm",
    "lm_head",
    "layers.attention_norm",
    "layers.attention.qkv_proj",
    "layers.attention.q_norm",
    "layers.attention.k_norm",
    "layers.attention.q_proj_norm",
    "layers.attention.k_proj_norm",
    "layers.attention.o_proj",
    "layers.attention_out_norm",
    "layers.mlp_norm",
    "layers.mlp.router",
    "layers.mlp.gate_up_proj",
    "layers.mlp.down_proj",
    "layers.mlp_out_norm",
]
# Part of a fused projection; "" is all of a weight.
Part = Literal["", "q", "k", "v", "gate", "up"]


class Target(NamedTuple):
    """The weight that a tensor of a checkpoint fills, or the part of it."""

    weight: Weight
    part: Part = ""


# Hugging Face name without ".weight" or ".bias" -> what it fills. "{i}" is the layer and "{e}" the
# expert; a weight stacks all layers and all experts.
Tensors = Mapping[str, Target]

LLAMA_TENSORS: Tensors = {
    "model.embed_tokens": Target("embed"),
    "model.norm": Target("final_norm"),
    "lm_head": Target("lm_head"),
    "model.layers.{i}.input_layernorm": Target("layers.attention_norm"),
    "model.layers.{i}.self_attn.q_proj": Target("layers.attention.qkv_proj", "q"),
    "model.layers.{i}.self_attn.k_proj": Target("layers.attention.qkv_proj", "k"),
    "model.layers.{i}.self_attn.v_proj": Target("layers.attention.qkv_proj", "v"),
    "model.layers.{i}.self_attn.o_proj": Target("layers.attention.o_proj"),
    "model.layers.{i}.post_attention_layernorm": Target("layers.mlp_norm"),
    "model.layers.{i}.mlp.gate_proj": Target("layers.mlp.gate_up_proj", "gate"),
    "model.layers.{i}.mlp.up_proj": Target("layers.mlp.gate_up_proj", "up"),
    "model.layers.{i}.mlp.down_proj": Target("layers.mlp.down_proj"),
}
# Norms of each head's query and key.
QK_NORM_TENSORS: Tensors = {
    "model.layers.{i}.self_attn.q_norm": Target("layers.attention.q_norm"),
    "model.layers.{i}.self_attn.k_norm": Target("layers.attention.k_norm"),
}

# A model of a few thousand weights, in the form of older releases (rope_theta beside rope_scaling).
TINY_LLAMA: Json = {
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


def without(tensors: Tensors, *ends: str) -> Tensors:
    """Return tensors but those whose names end with one of ``ends``."""
    return {name: target for name, target in tensors.items() if not name.endswith(ends)}


def _as_read(config: ModelConfig, hf: HfFields) -> ModelConfig:
    return config


def _nothing(hf: HfFields, gguf: HfFields) -> Json:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GgufForm:
    """How llama.cpp writes the models of a family. The package ``gguf`` names the tensors.

    Attributes:
        architecture: ``general.architecture``.
        fields: names of fields that only this family has, without "<architecture>.", and their
            names in config.json.
        complete: returns fields of config.json that the file has in another form. It is given those
            that were read, and the fields of the file without "<architecture>.".
        interleaves_qk: whether the rows of the query and key projections are interleaved: the two
            rows of a RoPE pair are adjacent, and not half a head apart.
        merges_in_token_order: whether a SentencePiece tokenizer has its merges in the order of its
            tokens, and runs of spaces as spaces.
        strips_after_control: whether control tokens of a SentencePiece tokenizer take the white
            space behind them (``rstrip``). No field of a file says so.
    """

    architecture: str
    fields: Mapping[str, str] = field(default_factory=dict)
    complete: Callable[[HfFields, HfFields], Json] = _nothing
    interleaves_qk: bool = False
    merges_in_token_order: bool = False
    strips_after_control: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelFamily:
    """Everything that sets a family of models apart.

    Attributes:
        name: as in ``ModelConfig.family``.
        architectures: names in the ``architectures`` of a config.json.
        defaults: transformers' values of fields that a config.json may leave out.
        has_bias_fields: whether the family reads ``attention_bias`` and ``mlp_bias``.
        unsupported: fields that must be absent or false; the decoder does not implement them.
        rope_aliases: this family's names of the kinds of RoPE, where they differ.
        rope_extends_context: whether linear and YaRN scaling extend ``max_position_embeddings``;
            False: it is the extended length already.
        configure: returns the config with the family's switches of the decoder. It is given the
            config with all fields that families share, and the fields of config.json.
        tensors: the tensors of a checkpoint.
        norm_offset: added to the weights of norms, which a checkpoint stores as weight - offset.
        overflows_float16: whether activations exceed float16's largest value, 65504.
        gguf: llama.cpp's form; None if it has none, or that of another family.
        presets: shapes of published models, to serve with random weights.
        tiny: config.json of a small model, for tests and ``experiments.make_folder``.

    Raises:
        ValueError: a name is missing or wrong; the message has it.
    """

    name: str
    architectures: tuple[str, ...]
    defaults: Json = field(default_factory=dict)
    has_bias_fields: bool = False
    unsupported: tuple[str, ...] = ()
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    rope_extends_context: bool = True
    configure: Callable[[ModelConfig, HfFields], ModelConfig] = _as_read
    tensors: Tensors = field(default_factory=lambda: LLAMA_TENSORS)
    norm_offset: float = 0.0
    overflows_float16: bool = False
    gguf: GgufForm | None = None
    presets: Mapping[str, ModelConfig] = field(default_factory=dict)
    tiny: Json

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValueError(f"model family {self.name!r}: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        """List missing and wrong names."""
        problems = []
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            problems.append("name must be lower-case words joined by hyphens")
        if not self.architectures:
            problems.append("architectures is empty")
        for tensor, (weight, part) in self.tensors.items():
            if weight not in get_args(Weight) or part not in get_args(Part):
                problems.append(
                    f"tensor {tensor} fills {':'.join((weight, part)).rstrip(':')}, which is no "
                    f"weight; weights: {', '.join(get_args(Weight))}"
                )
            if {*re.findall(r"\{.*?\}", tensor)} - {"{i}", "{e}"}:
                problems.append(f"tensor {tensor} may have {{i}} and {{e}} only")
        problems += [
            f"preset {preset} is of family {config.family!r}"
            for preset, config in self.presets.items()
            if config.family != self.name
        ]
        named = HfFields(self.tiny).texts("architectures")
        if not {*named} & {*self.architectures}:
            problems.append(f"tiny names architecture {', '.join(named) or '(none)'}")
        return problems
