"""Compare logits with those of torch and transformers, and print the largest differences.

    python -m tests.models.parity

Needs torch; fails if a difference exceeds TOLERANCE.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from kvflow_jax.models.loading.load import load_model
from tests.models import make_reference, tiny

TOLERANCE = 1e-3  # float32 logits


def main() -> None:
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, hf in tiny.CONFIGS.items():
            loaded = load_model(str(tiny.write_folder(Path(folder) / name, hf)), progress=False)
            sequence = tiny.Sequence(loaded.model, loaded.params, make_reference.NUM_TOKENS)
            actual = sequence.feed(tiny.prompt_tokens(make_reference.NUM_TOKENS))
            expected = make_reference.logits_of(
                make_reference.tiny_model(name), tiny.prompt_tokens(make_reference.NUM_TOKENS)
            )
            differences[name] = np.abs(actual - expected).max()
        name, num = make_reference.LONGROPE, make_reference.ORIGINAL_LEN
        loaded = load_model(str(Path(folder) / name), max_model_len=num, progress=False)
        actual = tiny.Sequence(loaded.model, loaded.params, num).feed(tiny.prompt_tokens(num))
        expected = make_reference.logits_of(
            make_reference.tiny_model(name), tiny.prompt_tokens(num)
        )
        differences[f"{name}, short"] = np.abs(actual - expected).max()
    loaded = load_model("smollm2-135m", progress=False)
    prompts = make_reference.prompt_ids()
    embedded_logits = make_reference.embedded_logits(prompts)
    for i, (ids, logits) in enumerate(zip(prompts, embedded_logits, strict=True)):
        actual = tiny.Sequence(loaded.model, loaded.params, len(ids)).feed(ids)
        differences[f"smollm2-135m, prompt {i}"] = np.abs(actual - logits).max()
    for name, difference in differences.items():
        print(f"{name:24} max |difference| of logits {difference:.1e}")
    if max(differences.values()) > TOLERANCE:
        sys.exit(f"a difference is larger than {TOLERANCE}")


if __name__ == "__main__":
    main()
