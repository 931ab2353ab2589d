"""The scaling of RoPE in a .gguf file, as the ``rope_scaling`` of a config.json."""

from __future__ import annotations

from collections.abc import Mapping

from kvflow_jax.models.families.hf_fields import HfFields, Json
from kvflow_jax.models.loading.gguf_header import GgufTensor

# Divisors of RoPE's frequencies in llama.cpp (llama3, LongRoPE long and short). They become part of
# the config and are no weights.
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Of RoPE; half of a head's dimensions.
_MAX_FREQUENCIES = 4096

_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    # llama.cpp takes the other of the two, mscale, for 1.
    "yarn_log_multiplier": "mscale_all_dim",
}


def rope_scaling(fields: HfFields, tensors: Mapping[str, GgufTensor]) -> Json | None:
    """Return the ``rope_scaling`` of a config.json; None where there is no scaling.

    Args:
        fields: of the file, without "<architecture>.".
        tensors: of the file, of which some hold factors.

    Raises:
        ValueError: a tensor of factors is misshapen, or a setting is not supported.
    """
    llama3, long, short = (_factors(tensors, name) for name in ROPE_FACTORS)
    values = {
        name.removeprefix("rope.scaling."): value
        for name, value in fields.values.items()
        if name.startswith("rope.scaling.")
    }
    # The converter has computed one factor a frequency from llama3's scaling.
    if llama3 is not None:
        return {
            "rope_type": "longrope",
            "long_factor": llama3,
            "short_factor": llama3,
            "attention_factor": 1.0,
        }
    if long is not None:
        return {
            "rope_type": "longrope",
            "long_factor": long,
            "short_factor": short,
            "attention_factor": values.get("attn_factor"),
        }
    kind, factor = values.get("type"), values.get("factor")
    if kind is None and fields.has("rope.scale_linear"):  # of the first files
        kind, factor = "linear", fields.values["rope.scale_linear"]
    if kind in (None, "none"):
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        if fields.number("rope.scaling.yarn_ext_factor", 1.0) == 0:
            raise ValueError("rope.scaling.yarn_ext_factor 0 is not supported")
        scaling |= {theirs: values[ours] for ours, theirs in _YARN.items() if ours in values}
        scaling["mscale"] = 1.0
    return scaling


def _factors(tensors: Mapping[str, GgufTensor], name: str) -> list[float] | None:
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if tensor.tensor_type.name != "F32" or tensor.data.size > _MAX_FREQUENCIES:
        raise ValueError(f"tensor {name} must be a vector of F32")
    return [float(factor) for factor in tensor.data.ravel()]
