"""Write what transformers computes of the tiny models into the test files of their families.

    python -m tests.models.make_reference olmo2    # EXPECTED of tests/models/families/test_olmo2.py
    python -m tests.models.make_reference          # all families, and reference.npz

reference.npz has logits of the embedded model. Needs torch; ``make parity`` installs it.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.gguf import GgufFile
from tests.models import tiny
from tests.models.families import cases
from tests.models.families.expected import (
    GREEDY_PROMPT,
    NUM_GREEDY,
    NUM_TOKENS,
    POSITIONS,
    PROMPT,
    TOKENS,
    Expected,
)

FILE = Path(__file__).with_name("reference.npz")
NUM_TOP = 64

PROMPTS = (
    "The capital of France is Paris, and the capital of Japan is Tokyo. Water boils at 100 °C.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
)


def tiny_model(name: str) -> Any:
    """Return a tiny model of transformers, which has loaded each tensor of the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write_folder(Path(folder) / name, cases.CONFIGS[name])
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not any(info.values()), info
    return model.eval()


def logits_of(model: Any, tokens: Sequence[int]) -> np.ndarray:  # f32[len(tokens), vocab_size]
    import torch

    with torch.no_grad():
        ids = torch.tensor([list(map(int, tokens))])
        return model(ids, use_cache=False).logits[0].float().numpy()


def expected_of(name: str, num_tokens: int) -> Expected:
    """Return the results of transformers, without a KV cache."""
    model = tiny_model(name)
    logits = logits_of(model, PROMPT[:num_tokens])
    positions = [position for position in POSITIONS if position < num_tokens]
    rows = logits[np.ix_(positions, TOKENS)].astype(float).round(5).tolist()
    tokens = [int(token) for token in PROMPT[:GREEDY_PROMPT]]
    if num_tokens == NUM_TOKENS:
        for _ in range(NUM_GREEDY):
            tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    return Expected(tuple(map(tuple, rows)), tuple(tokens[GREEDY_PROMPT:]))


def write_expected(path: Path, expected: dict[str, Expected]) -> None:
    """Replace ``EXPECTED`` of a family's test file."""
    lines = []
    for name, values in expected.items():
        rows = "".join(f"            {row},\n" for row in values.logits)
        lines.append(f'    "{name}": Expected(\n        logits=(\n{rows}        ),\n')
        if values.greedy:
            lines.append("        greedy=(\n")
            for start in range(0, len(values.greedy), 16):
                row = ", ".join(map(str, values.greedy[start : start + 16]))
                lines.append(f"            *({row}),\n")
            lines.append("        ),\n")
        lines.append("    ),\n")
    block = "EXPECTED = {\n" + "".join(lines) + "}\n"
    text = path.read_text()
    text, count = re.subn(r"^EXPECTED\b.*?= \{(?:\}|.*?^\})\n", block, text, flags=re.M | re.S)
    assert count == 1, f"{path} has no EXPECTED"
    path.write_text(text)


def embedded_logits(prompts_ids: list[list[int]]) -> list[np.ndarray]:
    """Return logits of the embedded model, whose GGUF transformers reads itself."""
    import torch
    from transformers import AutoModelForCausalLM

    path = embedded.locate()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].float().numpy() for ids in prompts_ids]


def prompt_ids() -> list[list[int]]:
    tokenizer = GgufFile(embedded.locate()).tokenizer()
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def write_embedded() -> None:
    arrays = {}
    ids_of = prompt_ids()
    for i, (ids, logits) in enumerate(zip(ids_of, embedded_logits(ids_of), strict=True)):
        top = np.argsort(-logits, axis=-1)[:, :NUM_TOP].astype(np.int32)
        arrays[f"embedded_{i}_tokens"] = np.array(ids, np.int32)
        arrays[f"embedded_{i}_top_ids"] = top
        arrays[f"embedded_{i}_top_logits"] = np.take_along_axis(logits, top, axis=-1)
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    for family_name in sys.argv[1:] or FAMILIES:
        family = FAMILIES[family_name]
        path = Path(str(cases.module_of(family).__file__))
        expected = {
            name if num_tokens == NUM_TOKENS else f"{name}, {num_tokens} tokens": expected_of(
                name, num_tokens
            )
            for name, num_tokens in cases.PROMPTS
            if cases.family_of(name) is family
        }
        write_expected(path, expected)
        print(f"{path}: {', '.join(expected)}")
    if not sys.argv[1:]:
        write_embedded()


if __name__ == "__main__":
    main()
