"""transformers without its advice on packages that are not needed here."""

from __future__ import annotations

import os
from types import ModuleType


def transformers() -> ModuleType:
    """Import transformers. It reads tokenizers and configs for us, which needs no torch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers as module

    return module
