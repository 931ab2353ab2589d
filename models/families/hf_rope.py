"""Reads the RoPE settings of a Hugging Face config.json, as written by any release."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kvflow_jax.models.families.hf_fields import MAX_SIZE, HfFields
from kvflow_jax.models.families.hf_windows import FULL, SLIDING
from kvflow_jax.models.rope import RopeConfig

# The name that LongRoPE had at first.
_ALIASES = {"su": "longrope"}


def read_rope(
    hf: HfFields,
    head_dim: int,
    *,
    layers: str = FULL,
    theta: float | None = None,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> RopeConfig:
    """Return the RoPE of all layers, or of those of one kind if config.json tells them apart.

    Args:
        layers: kind of layers, ``FULL`` or ``SLIDING``.
        theta: of a config.json without it; ``rope_theta`` if None.
        aliases: kinds of RoPE that the family names differently.
    """
    scaling = _settings(hf, layers)
    theta = hf.positive("rope_theta", 10_000.0) if theta is None else theta
    theta = scaling.positive("rope_theta", theta)
    share = hf.positive("partial_rotary_factor", 1.0)
    share = scaling.positive("partial_rotary_factor", share)
    kind = scaling.text("rope_type") or scaling.text("type", "default")
    kind = (_ALIASES | {**aliases}).get(kind, kind)
    if kind not in _READERS:
        hf.report(f"rope type {kind!r} is not supported; supported: {', '.join(_READERS)}")
        return RopeConfig(theta)
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        hf.report(
            f"partial_rotary_factor {share:g} of head_dim {head_dim} is not an even number of "
            f"dimensions from 2 to {head_dim}"
        )
    required, read = _READERS[kind]
    if missing := [name for name in required if not scaling.has(name)]:
        hf.report(f"rope type {kind!r} needs {', '.join(missing)}")
        return RopeConfig(theta)
    max_len = hf.size("max_position_embeddings")
    original = scaling.size("original_max_position_embeddings", max_len)
    original = hf.size("original_max_position_embeddings", original)
    rope = RopeConfig(theta, kind, rotary_fraction=share)
    rope = read(rope, scaling, _Context(max_len, original, rotary_dim))
    if not 0 < rope.attention_factor < math.inf:
        hf.report(f"attention_factor must be above 0 and finite, but is {rope.attention_factor}")
    return rope.for_len(max_len)


def extended_len(rope: RopeConfig, max_len: int) -> int:
    """Return the longest sequence, in tokens, of a model trained on ``max_len`` tokens.

    linear and yarn extend the context by their factor. Model cards ask users to add the scaling
    and leave ``max_position_embeddings`` as it was; where that has been extended, too, yarn's
    original length keeps the factor from being applied twice. Checkpoints of the other kinds have
    the extended length there.

    Args:
        max_len: ``max_position_embeddings``, in tokens.
    """
    if rope.kind == "linear":
        extended = max_len * rope.factor
    elif rope.kind == "yarn":
        extended = rope.original_max_len * rope.factor
    else:
        return max_len
    return max(max_len, int(min(extended, MAX_SIZE)))


@dataclass(frozen=True, slots=True)
class _Context:
    """What the settings of a kind of RoPE are checked against. Lengths are in tokens."""

    max_len: int
    original_len: int
    rotary_dim: int


def _settings(hf: HfFields, layers: str) -> HfFields:
    """Return the settings of one kind of layers.

    transformers 5 writes one ``rope_parameters``; older releases write ``rope_theta`` and
    ``rope_scaling``. The latter takes precedence: model cards ask users to add it by hand.
    """
    added, written = hf.nested("rope_scaling"), hf.nested("rope_parameters")
    by_kind = written if written.values else added
    if by_kind.has(FULL) or by_kind.has(SLIDING):
        of_kind = by_kind.nested(layers).values
        return HfFields({**of_kind, **(added.values if layers == FULL else {})}, hf.problems)
    if layers != FULL:
        return HfFields({}, hf.problems)
    return added if added.values else written


def _default(rope: RopeConfig, scaling: HfFields, context: _Context) -> RopeConfig:
    return rope


def _linear(rope: RopeConfig, scaling: HfFields, context: _Context) -> RopeConfig:
    return replace(rope, factor=scaling.positive("factor"))


def _llama3(rope: RopeConfig, scaling: HfFields, context: _Context) -> RopeConfig:
    return replace(
        rope,
        factor=scaling.positive("factor"),
        low_freq_factor=scaling.positive("low_freq_factor"),
        high_freq_factor=scaling.positive("high_freq_factor"),
        original_max_len=context.original_len,
    )


def _yarn(rope: RopeConfig, scaling: HfFields, context: _Context) -> RopeConfig:
    """Read YaRN (arXiv 2309.00071), with transformers' defaults."""
    if scaling.has("truncate") and not scaling.flag("truncate"):
        scaling.report("rope type 'yarn' without truncation (truncate: false) is not supported")
    factor = scaling.positive("factor")

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention_factor = magnitude(1.0)
    if scaling.number("mscale") and scaling.number("mscale_all_dim"):
        attention_factor = magnitude(scaling.positive("mscale"))
        attention_factor /= magnitude(scaling.positive("mscale_all_dim"))
    return replace(
        rope,
        factor=factor,
        beta_fast=scaling.positive("beta_fast", 32.0),
        beta_slow=scaling.positive("beta_slow", 1.0),
        attention_factor=scaling.number("attention_factor", attention_factor),
        original_max_len=context.original_len,
    )


def _longrope(rope: RopeConfig, scaling: HfFields, context: _Context) -> RopeConfig:
    """Read LongRoPE (arXiv 2402.13753): long and short factors, and the attention factor.

    The attention factor depends on the config alone, as in transformers: it is the same for both
    sets of factors.
    """
    sets = [scaling.numbers(name) for name in ("long_factor", "short_factor")]
    for name, factors in zip(("long_factor", "short_factor"), sets, strict=True):
        is_complete = len(factors) == context.rotary_dim // 2
        if not is_complete or not all(0 < factor < math.inf for factor in factors):
            scaling.report(
                f"{name} must have {context.rotary_dim // 2} positive numbers, found {len(factors)}"
            )
    factor = scaling.number("factor") or context.max_len / context.original_len
    attention_factor = 1.0
    if factor > 1 and context.original_len > 1:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(context.original_len))
    return replace(
        rope,
        factors=sets[0],
        short_factors=sets[1],
        attention_factor=scaling.number("attention_factor", attention_factor),
        original_max_len=context.original_len,
    )


# Kind of RoPE -> the fields that it needs, and its reader.
_READERS: dict[
    str, tuple[tuple[str, ...], Callable[[RopeConfig, HfFields, _Context], RopeConfig]]
] = {
    "default": ((), _default),
    "linear": (("factor",), _linear),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), _llama3),
    "yarn": (("factor",), _yarn),
    "longrope": (("long_factor", "short_factor"), _longrope),
}
