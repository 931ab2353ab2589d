"""Make reference.npz: logits by torch and transformers. Run with both installed:

python -m tests.models.make_reference
"""

from pathlib import Path

import numpy as np

from kvflow_jax.models import embedded
from tests.models import tiny

FILE = Path(__file__).with_name("reference.npz")
NUM_TOKENS = 64  # two pages and the wavelengths that llama3 scaling bends
POSITIONS = np.arange(0, NUM_TOKENS, 3)  # that the file keeps of the tiny models
NUM_TOP = 64

PROMPTS = (
    "The capital of France is Paris, and the capital of Japan is Tokyo. Water boils at 100 °C.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
)


def tiny_logits(name: str) -> np.ndarray:  # f32[NUM_TOKENS, VOCAB_SIZE]
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hf = tiny.CONFIGS[name]
    model = LlamaForCausalLM(LlamaConfig(**hf, attn_implementation="eager")).eval()
    tensors = {key: torch.from_numpy(value) for key, value in tiny.hf_weights(hf).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing  # tied
    with torch.no_grad():
        ids = torch.from_numpy(tiny.prompt_tokens(NUM_TOKENS)).long()[None]
        return model(ids).logits[0].float().numpy()


def embedded_logits(prompts_ids: list[list[int]]) -> list[np.ndarray]:
    """Logits of the embedded model, read from its GGUF by transformers itself."""
    import torch
    from transformers import AutoModelForCausalLM

    path = embedded.locate()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].float().numpy() for ids in prompts_ids]


def prompt_ids() -> list[list[int]]:
    tokenizer = embedded.read_tokenizer(embedded.locate())
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def main() -> None:
    arrays = {name: tiny_logits(name)[POSITIONS] for name in tiny.CONFIGS}
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
