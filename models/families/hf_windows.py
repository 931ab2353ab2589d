"""Reads the sliding windows of a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Callable

from kvflow_jax.models.families.hf_fields import HfFields

SLIDING, FULL = "sliding_attention", "full_attention"


def read_windows(
    hf: HfFields,
    slides: Callable[[int], bool] = lambda layer: True,
    *,
    keep_longest: bool = False,
) -> tuple[int, ...]:
    """Return ``ModelConfig.windows``: window lengths in tokens, one a layer, 0 for none.

    Args:
        slides: whether the layer of an index has a window, if config.json has no ``layer_types``.
        keep_longest: keep a window as long as the context. It hides nothing, but may select the
            layers that have another RoPE.
    """
    num_layers = hf.size("num_hidden_layers")
    # Null and 0 mean that there is no window.
    if not hf.number("sliding_window"):
        return ()
    window = hf.size("sliding_window")
    if window >= hf.size("max_position_embeddings") and not keep_longest:
        return ()
    kinds = hf.texts("layer_types") or tuple(
        SLIDING if slides(layer) else FULL for layer in range(num_layers)
    )
    if not {*kinds} <= {SLIDING, FULL} or len(kinds) != num_layers:
        hf.report(
            f"layer_types must name {SLIDING} or {FULL} for each of {num_layers} layers, found "
            f"{len(kinds)} of {', '.join(sorted({*kinds}))}"
        )
    windows = tuple(window if kind == SLIDING else 0 for kind in kinds)
    return windows if any(windows) else ()
