"""Short pauses for garbage collection in a process that serves."""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Keep what is alive now out of later garbage collections.

    A full collection visits every object while no other thread runs Python: the modules and the
    model of a server alone take a third of a second. Call once, when all that lasts is loaded.
    """
    gc.collect()
    gc.freeze()
