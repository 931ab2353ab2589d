"""Compare logits with those of torch and transformers, and print the largest differences.

    python -m tests.models.parity            # every family, and the embedded model
    python -m tests.models.parity olmo2      # the tiny models of a family

Needs torch; fails if a difference exceeds TOLERANCE.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from kvflow_jax.models.loading.load import load_model
from tests.models import make_reference, tiny
from tests.models.families import cases
from tests.models.families.expected import PROMPT, TOLERANCE


def tiny_difference(name: str, num_tokens: int, root: Path) -> float:
    folder = tiny.write_folder(root / f"{name}-{num_tokens}", cases.CONFIGS[name])
    loaded = load_model(str(folder), dtype="float32", max_model_len=num_tokens, progress=False)
    actual = tiny.Sequence(loaded.model, loaded.params, num_tokens).feed(PROMPT[:num_tokens])
    expected = make_reference.logits_of(make_reference.tiny_model(name), PROMPT[:num_tokens])
    return float(np.abs(actual - expected).max())


def embedded_differences() -> dict[str, float]:
    loaded = load_model("smollm2-135m", dtype="float32", progress=False)
    prompts = make_reference.prompt_ids()
    differences = {}
    for i, (ids, logits) in enumerate(
        zip(prompts, make_reference.embedded_logits(prompts), strict=True)
    ):
        actual = tiny.Sequence(loaded.model, loaded.params, len(ids)).feed(ids)
        differences[f"smollm2-135m, prompt {i}"] = float(np.abs(actual - logits).max())
    return differences


def main() -> None:
    families = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        differences = {
            f"{name}, {num_tokens} tokens": tiny_difference(name, num_tokens, Path(folder))
            for name, num_tokens in cases.PROMPTS
            if not families or cases.family_of(name).name in families
        }
    if not families:
        differences |= embedded_differences()
    for name, difference in differences.items():
        print(f"{name:36} max |difference| of logits {difference:.1e}")
    if not max(differences.values()) <= TOLERANCE:
        sys.exit(f"a difference is larger than {TOLERANCE}")


if __name__ == "__main__":
    main()
