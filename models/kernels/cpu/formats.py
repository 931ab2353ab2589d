"""Matrices in the panels that the CPU kernels read: see panels.h and packed.h.

A packed matrix is one array, [num_panels, ...], with all that its product needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.models.memory import aligned_empty

PACKED_PANEL = 32  # columns, ``kPackedPanel``
GROUPS_PER_TILE = 16  # ``kGroupsPerTile``
SCALES = -2  # row of an int8 panel that has the scales, before that of the offsets: ``Int8Columns``
MAX_QUANTISED = 127


class Format(Protocol):
    """How matrices of one dtype lie in memory."""

    @property
    def name(self) -> str:
        """The end of the kernels' names."""
        ...

    @property
    def panel(self) -> int:
        """Columns of a panel."""
        ...

    def pack(self, weight: Any) -> Any:
        """Convert a matrix [num_in, num_out], numpy or jax, to panels."""
        ...

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        """Return columns, i32[T] to f32[T, num_in]; an index past the end gives the last one."""
        ...

    def floats(self, panels: Any) -> Any:
        """Return floats that are finite if and only if all of the matrix is."""
        ...


@dataclass(frozen=True)
class Float32Format:
    """f32[num_panels, num_in, panel]."""

    panel: int
    name: str = "float32"

    def pack(self, weight: Any) -> Any:
        num_in, num_out = weight.shape
        if not isinstance(weight, np.ndarray):
            weight = jnp.pad(weight, ((0, 0), (0, -num_out % self.panel)))
            return weight.reshape(num_in, -1, self.panel).swapaxes(0, 1)
        full, rest = divmod(num_out, self.panel)
        panels = aligned_empty((full + (rest > 0), num_in, self.panel), weight.dtype)
        whole = weight[:, : full * self.panel].reshape(num_in, full, self.panel)
        panels[:full] = whole.swapaxes(0, 1)
        if rest:
            panels[full, :, :rest] = weight[:, full * self.panel :]
            panels[full, :, rest:] = 0.0
        return panels

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        return panels.at[columns // self.panel, :, columns % self.panel].get(mode="clip")

    def floats(self, panels: Any) -> Any:
        return panels


@dataclass(frozen=True)
class BFloat16Format:
    """u16[num_panels, num_pairs, 32, 2], the bits of pairs of values of a column.

    As bits, because XLA's CPU compiler widens a whole bfloat16 array to read a part of it.
    """

    panel: int = PACKED_PANEL
    name: str = "bfloat16"

    def pack(self, weight: Any) -> Any:
        bits: Any
        if isinstance(weight, np.ndarray):
            bits = weight.astype(jnp.bfloat16).view(np.uint16)
        else:
            bits = jax.lax.bitcast_convert_type(weight.astype(jnp.bfloat16), jnp.uint16)
        return _aligned(_group_rows(bits, 2))

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        bits = panels.at[columns // self.panel, :, columns % self.panel].get(mode="clip")
        bits = bits.reshape(len(columns), -1)[:, :num_in]
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16).astype(jnp.float32)

    def floats(self, panels: Any) -> Any:
        return panels.view(jnp.bfloat16)


@dataclass(frozen=True)
class Int8Format:
    """i8[num_panels, num_groups + 2, 32, 4]: four values of a column, then its scale and offset.

    A column is quantised symmetrically to -127 .. 127, a row of the product's other operand when it
    is multiplied. The scale is f32, the offset i32, 128 times the sum of the column: the kernels
    multiply with rows + 128 where the CPU wants an unsigned operand.
    """

    panel: int = PACKED_PANEL
    name: str = "int8"

    def pack(self, weight: Any) -> Any:
        xp: Any = np if isinstance(weight, np.ndarray) else jnp
        weight = weight.astype(np.float32)
        is_finite = xp.isfinite(weight).all(axis=0)
        weight = xp.where(is_finite, weight, 0)
        scale = xp.abs(weight).max(axis=0) / MAX_QUANTISED
        quantised = xp.rint(weight * xp.where(scale > 0, 1 / xp.where(scale > 0, scale, 1), 0))
        scale = xp.where(is_finite, scale, xp.float32(xp.nan))
        quantised = quantised.astype(np.int8)
        offset = 128 * quantised.sum(axis=0, dtype=np.int32)
        panels = _group_rows(quantised, 4)
        ends = [self._bytes(xp, column, len(panels)) for column in (scale, offset)]
        return _aligned(xp.concatenate([panels, *ends], axis=1))

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        found = panels.at[columns // self.panel, :, columns % self.panel].get(mode="clip")
        values = found[:, :SCALES].reshape(len(columns), -1)[:, :num_in]
        scale = jax.lax.bitcast_convert_type(found[:, SCALES], jnp.float32)
        return values.astype(jnp.float32) * scale[:, None]

    def floats(self, panels: Any) -> Any:
        return np.ascontiguousarray(panels[:, SCALES]).view(np.float32)

    def _bytes(self, xp: Any, column: Any, num_panels: int) -> Any:
        """Return 32 bits of each column as i8[num_panels, 1, 32, 4]."""
        padded = xp.pad(column, (0, num_panels * self.panel - len(column)))
        if xp is np:
            return padded.view(np.int8).reshape(num_panels, 1, self.panel, 4)
        four = jax.lax.bitcast_convert_type(padded, jnp.int8)  # [num_columns, 4]
        return four.reshape(num_panels, 1, self.panel, 4)


def _group_rows(weight: Any, group: int) -> Any:
    """Reorder [num_in, num_out] to [num_panels, num_groups, 32, group], padded with zeros."""
    num_in, num_out = weight.shape
    xp: Any = np if isinstance(weight, np.ndarray) else jnp
    padding = (-num_in % (group * GROUPS_PER_TILE), -num_out % PACKED_PANEL)
    padded = xp.pad(weight, [(0, num) for num in padding])
    parts = padded.reshape(-1, group, padded.shape[1] // PACKED_PANEL, PACKED_PANEL)
    return parts.transpose(2, 0, 3, 1)


def _aligned(panels: Any) -> Any:
    """Copy a numpy array to memory that a CPU device uses without a copy."""
    if not isinstance(panels, np.ndarray):
        return panels
    aligned = aligned_empty(panels.shape, panels.dtype)
    aligned[...] = panels
    return aligned
