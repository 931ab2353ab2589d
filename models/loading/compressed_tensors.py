"""Weights in 8 bits of compressed-tensors folders (llm-compressor's W8A8), read as floats.

    model.layers.0.mlp.down_proj.weight        i8[out, in]
    model.layers.0.mlp.down_proj.weight_scale  [out, 1] or [1], floats

Activations are not quantised: their scales are left in the files.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.loading.hf_tensors import Header
from kvflow_jax.models.loading.weights import Index, Tensors

_METHOD, _FORMATS = "compressed-tensors", ("int-quantized", "naive-quantized")
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_STRATEGIES = ("channel", "tensor")
_SCALES = ("weight_scale", "input_scale", "input_zero_point")


def check_quantization(config: HfFields) -> None:
    """Report a ``quantization_config`` of a config.json whose weights are not supported."""
    method, form = config.text("quant_method"), config.text("format")
    is_int8 = form in _FORMATS and all(map(_is_int8, _weights_of_groups(config)))
    # Transforms rotate activations while the model runs.
    if method != _METHOD or not is_int8 or config.flag("transform_config"):
        kind = ", ".join(filter(None, (method, form))) or "quantization_config"
        config.report(
            f"quantized weights ({kind}) are not supported; use the unquantized checkpoint, "
            f"a .gguf file, or {_METHOD} in symmetric int8, per channel or per tensor"
        )


def _weights_of_groups(config: HfFields) -> Iterator[HfFields]:
    """Yield how the weights of each group of matrices are quantised."""
    groups = config.nested("config_groups")
    for name in groups.values:
        yield groups.nested(name).nested("weights")


def _is_int8(weights: HfFields) -> bool:
    is_int8 = all(weights.values.get(name) == value for name, value in _INT8.items())
    return is_int8 and weights.text("strategy") in _STRATEGIES


class ScaledTensors:
    """``Tensors`` whose matrices in int8 are multiplied by their scales; others are as they are.

    The constructor reads the scales.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.source, self.problems = tensors.source, list(tensors.problems)
        self.headers: list[Header] = []
        # Name of a matrix -> its scales, f32[out or 1, 1].
        self._scales: dict[str, np.ndarray] = {}
        of_name = {name: (shape, dtype) for name, shape, dtype in tensors.headers}
        for name, shape, dtype in tensors.headers:
            stem, _, kind = name.rpartition(".")
            matrix = f"{stem}.weight"
            matrix_shape, matrix_dtype = of_name.get(matrix, ((), ""))
            if matrix_dtype != "I8" or kind not in ("weight", *_SCALES):
                self.headers.append((name, shape, dtype))
            elif kind == "weight":
                # Without scales it keeps its dtype, which is then reported.
                _, scale_dtype = of_name.get(f"{matrix}_scale", ((), dtype))
                self.headers.append((name, shape, scale_dtype))
            elif kind == "weight_scale" and shape not in ((*matrix_shape[:1], 1), (1,)):
                self.problems.append(
                    f"{name}: expected one scale for each row, found shape {list(shape)}"
                )
            elif kind == "weight_scale":
                scales = tensors.read(name, tuple(slice(0, size) for size in shape))
                self._scales[matrix] = scales.astype(np.float32).reshape(-1, 1)

    def read(self, key: str, index: Index) -> np.ndarray:
        values, scales = self._tensors.read(key, index), self._scales.get(key)
        if scales is None:
            return values
        scaled: np.ndarray = values * (scales if len(scales) == 1 else scales[index[0]])
        return scaled
