"""The modes in which this engine can hold and multiply a model's weights: one table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["float32", "bfloat16", "int8", "int4"]


@dataclass(frozen=True)
class Mode:
    """A mode of this engine.

    Attributes:
        precision: of the weights.
        options: arguments of ``LLM``. The flags of the server have the same names.
        kv_itemsize: bytes of a number in the KV cache.
    """

    precision: Precision
    options: Mapping[str, Any]
    kv_itemsize: int


# float32 comes first: the others are compared with it.
MODES = {
    "float32": Mode("float32", {"dtype": "float32"}, 4),
    "bfloat16": Mode("bfloat16", {"dtype": "bfloat16"}, 2),
    "int8": Mode("int8", {"dtype": "bfloat16", "quantize": "int8"}, 2),
    "int4": Mode("int4", {"dtype": "bfloat16", "quantize": "int4"}, 2),
}
