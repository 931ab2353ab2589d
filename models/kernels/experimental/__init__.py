"""Attention kernels that no device has run yet.

Tests interpret them, and ``make portability`` compiles them for described chips. A kernel moves to
``models.kernels`` once ``experiments.device_check`` has passed on a chip that it supports, and has
shown it to be no slower than "blocks" there. Until then ``auto`` must not choose it. ``tpu_ragged``
is the exception: its kernel is JAX's own, and only the rows that it is given are ours.
"""
