"""Reads the RoPE settings of a Hugging Face config.json, as written by any release."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kvflow_jax.models.rope import ROPE_KINDS, RopeConfig

# A parsed config.json, or an object within one.
Hf = Mapping[str, Any]


def read_ropes(
    hf: Hf, family: str, head_dim: int, problems: list[str]
) -> tuple[RopeConfig, RopeConfig | None]:
    """Return the RoPE of all layers and, for Gemma, that of the layers with a window.

    Missing fields and unsupported values are appended to ``problems``.
    """
    # transformers 5 writes one rope_parameters; older releases write rope_theta and rope_scaling.
    # rope_scaling takes precedence: model cards ask users to add it by hand.
    scaling = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    theta = hf.get("rope_theta", 10_000.0)
    if family != "gemma3":
        return _rope(hf, scaling, theta, family, head_dim, problems), None
    by_kind = hf.get("rope_parameters") or scaling
    local_theta, local = hf["rope_local_base_freq"], by_kind.get("sliding_attention") or {}
    if "full_attention" in by_kind or "sliding_attention" in by_kind:
        scaling = (by_kind.get("full_attention") or {}) | (hf.get("rope_scaling") or {})
    return (
        _rope(hf, scaling, theta, family, head_dim, problems),
        _rope(hf, local, local_theta, family, head_dim, problems),
    )


def _rope(
    hf: Hf, scaling: Hf, default_theta: Any, family: str, head_dim: int, problems: list[str]
) -> RopeConfig:
    theta = float(scaling.get("rope_theta") or default_theta)
    share = float(scaling.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "su" or (kind == "yarn" and family == "phi3"):
        # The names that LongRoPE had at first.
        kind = "longrope"
    if kind not in ROPE_KINDS:
        problems.append(f"rope type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
        return RopeConfig(theta)
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        problems.append(
            f"partial_rotary_factor {share:g} of head_dim {head_dim} is not an even number of "
            f"dimensions from 2 to {head_dim}"
        )
    needed: dict[str, tuple[str, ...]] = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "yarn": ("factor",),
        "longrope": ("long_factor", "short_factor"),
    }
    missing = [name for name in needed[kind] if scaling.get(name) is None]
    if missing:
        problems.append(f"rope type {kind!r} needs {', '.join(missing)}")
        return RopeConfig(theta)
    max_len = int(hf.get("max_position_embeddings") or 0)
    original = (
        hf.get("original_max_position_embeddings")
        or scaling.get("original_max_position_embeddings")
        or max_len
    )
    fields: dict[str, Any] = {}
    if kind in ("llama3", "yarn", "longrope"):
        fields["original_max_len"] = int(original)
    if kind == "longrope":
        fields |= _longrope(scaling, max_len, int(original), rotary_dim, problems)
    else:
        fields |= {name: float(scaling[name]) for name in needed[kind]}
    if kind == "yarn":
        fields |= _yarn(scaling, problems)
    numbers = {name: value for name, value in fields.items() if isinstance(value, float)}
    if any(not math.isfinite(value) or value <= 0 for value in numbers.values()):
        problems.append(f"rope scaling must be above 0 and finite, found {numbers}")
    return RopeConfig(theta=theta, kind=kind, rotary_fraction=share, **fields).for_len(max_len)


def _yarn(scaling: Hf, problems: list[str]) -> dict[str, float]:
    """Return YaRN's fields (arXiv 2309.00071), with transformers' defaults."""
    if scaling.get("truncate") is False:
        problems.append("rope type 'yarn' without truncation (truncate: false) is not supported")
    factor = float(scaling["factor"])

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention_factor = scaling.get("attention_factor")
    if attention_factor is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        attention_factor = magnitude(float(scaling["mscale"]))
        attention_factor /= magnitude(float(scaling["mscale_all_dim"]))
    elif attention_factor is None:
        attention_factor = magnitude(1.0)
    return {
        "beta_fast": float(scaling.get("beta_fast") or 32.0),
        "beta_slow": float(scaling.get("beta_slow") or 1.0),
        "attention_factor": float(attention_factor),
    }


def _longrope(
    scaling: Hf, max_len: int, original: int, rotary_dim: int, problems: list[str]
) -> dict[str, Any]:
    """Return LongRoPE's long and short factors (arXiv 2402.13753) and its attention factor.

    The attention factor depends on the config alone, as in transformers: it is the same for both
    sets of factors.
    """
    sets = {}
    for ours, name in (("factors", "long_factor"), ("short_factors", "short_factor")):
        sets[ours] = factors = tuple(float(value) for value in scaling[name])
        if len(factors) != rotary_dim // 2 or not all(0 < value < math.inf for value in factors):
            problems.append(
                f"{name} must have {rotary_dim // 2} positive numbers, found {len(factors)}"
            )
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        factor = float(scaling.get("factor") or max_len / max(original, 1))
        attention_factor = (
            math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        )
    return {**sets, "attention_factor": float(attention_factor)}
