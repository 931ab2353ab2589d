"""Import of transformers without its advisory warnings about missing packages."""

from __future__ import annotations

import os
from types import ModuleType


def transformers() -> ModuleType:
    """Import and return transformers, used to read tokenizers and configs; that needs no torch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers as module

    return module
