"""Memory that objects take, as Python counts it."""

import gc
import tracemalloc


def traced_bytes(make):
    """Return the bytes that the result of ``make()`` keeps, and the result."""
    make()  # what the first call alone keeps, such as caches
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before, made
    finally:
        tracemalloc.stop()
