"""Matrices in the panels that the CPU kernels read: see panels.h and layouts.h.

A packed matrix is one array, [num_panels, ...], with all that its product needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.models.kernels.cpu.grids import find_scales
from kvflow_jax.models.memory import aligned_empty

PACKED_PANEL = 32  # columns, ``kPackedPanel``
BLOCK_DEPTH = 32  # ``kBlockDepth``
PAIRS = BLOCK_DEPTH // 2
# Up to here a product in integers is faster than the expansion of a matrix to bfloat16.
FEW_ROWS = 4
# Steps over which blocks may range that were quantised before, by the bits that they get here. In 8
# bits the ends of Q4_0 and Q5_0, 8 and 16 steps from zero, become 15 and 7 times as many; in 4 any
# number of steps up to 7 fits the double, too.
_STEPS = {8: (120, 112), 4: range(14, 7, -1)}


class Format(Protocol):
    """How matrices of one dtype lie in memory."""

    @property
    def name(self) -> str:
        """The dtype, or the bits of a quantised matrix."""
        ...

    @property
    def panel(self) -> int:
        """Columns of a panel."""
        ...

    def kernel(self, num_rows: int) -> str:
        """Return the end of the names of the kernels that multiply so many rows."""
        ...

    def pack(self, weight: Any) -> Any:
        """Convert a matrix [num_in, num_out], numpy or jax, to panels."""
        ...

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        """Return columns, i32[T] to f32[T, num_in]; an index past the end gives the last one."""
        ...


@dataclass(frozen=True)
class Float32Format:
    """f32[num_panels, num_in, panel]."""

    panel: int
    name = "float32"

    def kernel(self, num_rows: int) -> str:
        return self.name

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


@dataclass(frozen=True)
class BFloat16Format:
    """u16[num_panels, num_pairs, 32, 2], the bits of pairs of values of a column.

    As bits, because XLA's CPU compiler widens a whole bfloat16 array to read a part of it.
    """

    panel: int = PACKED_PANEL
    name = "bfloat16"

    def kernel(self, num_rows: int) -> str:
        return self.name

    def pack(self, weight: Any) -> Any:
        bits: Any
        if isinstance(weight, np.ndarray):
            bits = weight.astype(jnp.bfloat16).view(np.uint16)
        else:
            bits = jax.lax.bitcast_convert_type(weight.astype(jnp.bfloat16), jnp.uint16)
        blocks = _blocks(bits)
        return _aligned(blocks.reshape(len(blocks), -1, *blocks.shape[3:]))

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        bits = panels.at[columns // self.panel, :, columns % self.panel].get(mode="clip")
        bits = bits.reshape(len(columns), -1)[:, :num_in]
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16).astype(jnp.float32)


@dataclass(frozen=True)
class GroupedFormat:
    """u8[num_panels, num_blocks, 16 * bits / 8 + 1 or 2, 32, 2]: integers with a scale for each 32.

    A block has 32 rows of the matrix in pairs, then a scale in float16 for each column. A value of
    8 bits is -127 to 127 times its scale. One of 4 bits is 0 to 15 times its scale, plus the least
    of the 32 values, in float16 after the scales; a byte has rows r and r + 16. So are GGUF's Q8_0
    and Q4_1, which are therefore kept as they are.
    """

    bits: int
    panel: int = PACKED_PANEL

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    def kernel(self, num_rows: int) -> str:
        return f"{self.name}{'_few_rows' if num_rows <= FEW_ROWS else ''}"

    @property
    def scales(self) -> int:
        """The row of a block that has the scales."""
        return PAIRS * self.bits // 8

    @property
    def num_rows(self) -> int:
        """Rows of a block."""
        return self.scales + (2 if self.bits == 4 else 1)

    @property
    def most(self) -> int:
        """The greatest integer."""
        return 127 if self.bits == 8 else 15

    def pack(self, weight: Any) -> Any:
        xp: Any = np if isinstance(weight, np.ndarray) else jnp
        blocks = _blocks(weight.astype(np.float32))  # [num_panels, num_blocks, 16, 32, 2]
        is_finite = xp.isfinite(blocks).all(axis=(2, 4), keepdims=True)
        blocks = xp.where(is_finite, blocks, 0)
        low, least = (xp.float32(0), -self.most)
        if self.bits == 4:
            low, least = blocks.min(axis=(2, 4), keepdims=True), 0
        ends = [self._scales(blocks - low), low][: self.num_rows - self.scales]
        ends = [xp.where(is_finite, end, np.nan).astype(np.float16) for end in ends]
        scale, *minima = (xp.where(is_finite, end, 0).astype(np.float32) for end in ends)
        for low in minima:
            blocks = blocks - low
        whole = (
            xp.rint(blocks / xp.where(scale > 0, scale, 1)).clip(least, self.most).astype(np.int8)
        )
        values = _bytes(whole)
        if self.bits == 4:
            values = values[:, :, : PAIRS // 2] | values[:, :, PAIRS // 2 :] << 4
        return _aligned(xp.concatenate([values, *map(_bytes, ends)], axis=2))

    def _scales(self, blocks: Any) -> Any:
        """Return f32[num_panels, num_blocks, 1, 32, 1], the scales of blocks of finite values."""
        peak = abs(blocks).max(axis=(2, 4), keepdims=True)
        scale = peak / self.most
        if not isinstance(blocks, np.ndarray):
            return scale
        others = [peak / steps for steps in _STEPS[self.bits]]
        if self.bits == 8:
            others.append(np.broadcast_to(scale.max(axis=1, keepdims=True), scale.shape))
        of_blocks = [array[:, :, 0, :, 0] for array in (scale, *others)]
        found = find_scales(blocks.swapaxes(2, 3), of_blocks[0], of_blocks[1:])
        return found[:, :, None, :, None]

    def column(self, panels: jax.Array, columns: jax.Array, num_in: int) -> jax.Array:
        found = panels.at[columns // self.panel, :, :, columns % self.panel].get(mode="clip")
        found = found.reshape(*found.shape[:2], -1, 2)  # [T, num_blocks, rows, 2]
        values, ends = found[:, :, : self.scales], found[:, :, self.scales :]
        scale, *minima = jnp.moveaxis(
            jax.lax.bitcast_convert_type(ends, jnp.float16).astype(jnp.float32), 2, 0
        )
        if self.bits == 4:
            values = jnp.concatenate([values & 15, values >> 4], axis=2)
        else:
            values = jax.lax.bitcast_convert_type(values, jnp.int8)
        floats: jax.Array = values.astype(jnp.float32) * scale[:, :, None, None]
        for low in minima:
            floats = floats + low[:, :, None, None]
        return floats.reshape(len(columns), -1)[:, :num_in]


def floats(packed: Any) -> Any:
    """Return floats that are finite if and only if all of a packed or plain weight is."""
    if packed.dtype == np.uint16:
        return packed.view(jnp.bfloat16)
    if packed.dtype == np.uint8:
        scales = next(
            form.scales
            for form in (GroupedFormat(8), GroupedFormat(4))
            if form.num_rows == packed.shape[2]
        )
        return np.ascontiguousarray(packed[:, :, scales:]).view(np.float16)
    return packed


def _blocks(weight: Any) -> Any:
    """Reorder [num_in, num_out] to [num_panels, num_blocks, 16, 32, 2], padded with zeros."""
    num_in, num_out = weight.shape
    xp: Any = np if isinstance(weight, np.ndarray) else jnp
    padding = (-num_in % BLOCK_DEPTH, -num_out % PACKED_PANEL)
    padded = xp.pad(weight, [(0, num) for num in padding])
    parts = padded.reshape(-1, PAIRS, 2, padded.shape[1] // PACKED_PANEL, PACKED_PANEL)
    return parts.transpose(3, 0, 1, 4, 2)


def _bytes(values: Any) -> Any:
    """Return numbers [.., 32, 2] of 8 bits, or [.., 32, 1] of 16, as u8[.., 32, 2]."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values).view(np.uint8)
    found = jax.lax.bitcast_convert_type(values, jnp.uint8)
    return found.reshape(*values.shape[:-1], 2)


def _aligned(panels: Any) -> Any:
    """Copy a numpy array to memory that a CPU device uses without a copy."""
    if not isinstance(panels, np.ndarray):
        return panels
    aligned = aligned_empty(panels.shape, panels.dtype)
    aligned[...] = panels
    return aligned
