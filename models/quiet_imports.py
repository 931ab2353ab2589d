"""Import of transformers without its advisory warnings about missing packages."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def transformers() -> ModuleType:
    """Import and return transformers, used to read tokenizers and configs; that needs no torch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # noqa: F401

    # It replaces itself as it is imported: a thread that waits for another's import would get the
    # module without names that was there before.
    return sys.modules["transformers"]
