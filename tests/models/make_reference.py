"""Make reference.npz, the logits of torch and transformers; needs both installed.

python -m tests.models.make_reference
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.gguf import GgufFile
from tests.models import tiny

FILE = Path(__file__).with_name("reference.npz")
NUM_TOKENS = 64  # more than two pages, every window and the wavelengths that scaling changes
POSITIONS = np.arange(3, NUM_TOKENS, 5)  # positions of the tiny models in the file
GREEDY_PROMPT = 40  # past the original length of longrope, where transformers switches factors
NUM_GREEDY = 64
LONGROPE, ORIGINAL_LEN = "phi3-longrope", 32  # transformers uses short factors up to this length
NUM_TOP = 64

PROMPTS = (
    "The capital of France is Paris, and the capital of Japan is Tokyo. Water boils at 100 °C.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
)


def tiny_model(name: str) -> Any:
    """Return a tiny model of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write_folder(Path(folder) / name, tiny.CONFIGS[name])
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not any(info.values()), info
    return model.eval()


def logits_of(model: Any, tokens: Sequence[int]) -> np.ndarray:  # f32[len(tokens), VOCAB_SIZE]
    import torch

    with torch.no_grad():
        ids = torch.tensor([list(map(int, tokens))])
        return model(ids, use_cache=False).logits[0].float().numpy()


def greedy_tokens(model: Any) -> np.ndarray:  # i32[NUM_GREEDY]
    """Return the greedy continuation of GREEDY_PROMPT tokens, without a KV cache."""
    tokens = [int(token) for token in tiny.prompt_tokens(GREEDY_PROMPT)]
    for _ in range(NUM_GREEDY):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    return np.array(tokens[GREEDY_PROMPT:], np.int32)


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


def main() -> None:
    arrays = {}
    for name in tiny.CONFIGS:
        model = tiny_model(name)
        arrays[name] = logits_of(model, tiny.prompt_tokens(NUM_TOKENS))[POSITIONS]
        arrays[f"{name}_greedy"] = greedy_tokens(model)
    arrays[f"{LONGROPE}_short"] = logits_of(tiny_model(LONGROPE), tiny.prompt_tokens(ORIGINAL_LEN))
    for i, (ids, logits) in enumerate(
        zip(prompt_ids(), embedded_logits(prompt_ids()), strict=True)
    ):
        top = np.argsort(-logits, axis=-1)[:, :NUM_TOP].astype(np.int32)
        arrays[f"embedded_{i}_tokens"] = np.array(ids, np.int32)
        arrays[f"embedded_{i}_top_ids"] = top
        arrays[f"embedded_{i}_top_logits"] = np.take_along_axis(logits, top, axis=-1)
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
