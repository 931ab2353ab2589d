"""Write a small Hugging Face folder of any supported family, with random weights; without torch.

    python -m experiments.make_folder gemma3 FOLDER --seed 7
    python -m kvflow_jax.serve --model FOLDER

The folder is complete: config.json, safetensors under the tensor names of transformers, and a
byte-level tokenizer with a chat template. The model's text is meaningless, but every library that
loads the folder computes the same: the tests compare these folders with transformers.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from experiments.measure import command_name, first_line
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.families.base import TINY_LLAMA
from kvflow_jax.models.families.hf_fields import Json
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_tensors import weight_slices
from kvflow_jax.models.loading.safetensors_folder import INDEX_FILE, WEIGHTS_FILE
from kvflow_jax.models.model import Model
from kvflow_jax.models.quiet_imports import transformers
from kvflow_jax.serve.argument_parser import ArgumentParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}<s>{{ m.role + ': ' + m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def main() -> int:
    parser = ArgumentParser(prog=command_name(), description=first_line(__doc__))
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path, help="must be new or empty")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights; default: 0")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--shards", type=int, default=1, help="number of safetensors files; default: 1"
    )
    options = parser.parse_args()
    if options.folder.exists() and any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty")
    hf = FAMILIES[options.family].tiny
    weights = hf_weights(hf, options.seed, options.dtype)
    write_folder(options.folder, hf, weights=weights, shards=options.shards)
    num_weights = sum(tensor.size for tensor in weights.values())
    print(f"{options.folder}: {FAMILIES[options.family].architectures[0]}, {num_weights} weights")
    return 0


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Write a folder that exists for the length of a block, for the ``--quick`` form of benches.

    The model has one layer, which compiles fastest, and a context of 4096 tokens.
    """
    with tempfile.TemporaryDirectory() as name:
        hf = {**TINY_LLAMA, "num_hidden_layers": 1, "max_position_embeddings": 4096}
        yield write_folder(Path(name) / "tiny-llama", hf)


def write_folder(
    folder: Path,
    hf: Json = TINY_LLAMA,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    shards: int = 1,
    tokenizer: bool = True,
) -> Path:
    """Write a Hugging Face folder and return it.

    Args:
        hf: content of config.json.
        weights: tensors by name; those of ``hf_weights`` if None.
        shards: number of safetensors files that share the tensors.
        tokenizer: True to write a tokenizer, too.
    """
    weights = hf_weights(hf) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf, indent=1))
    if shards == 1:
        save_file(dict(weights), folder / WEIGHTS_FILE)
    else:
        names = list(weights)
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: weights[name] for name in names[shard::shards]}
            save_file(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index))
    if tokenizer:
        byte_level_tokenizer().save_pretrained(folder)
    return folder


def hf_weights(hf: Json, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Return random tensors of a checkpoint by their Hugging Face names.

    A tensor depends on its name, its shape and the seed, not on the other tensors.
    """
    config = read_config(hf)
    # A norm multiplies by about 1 in every family.
    mean_of_norms = np.float32(1 - FAMILIES[config.family].norm_offset)
    weights = {}
    for name, target in weight_slices(Model.build(config)).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = rng.standard_normal(target.shape, dtype=np.float32)
        # Large enough that attention is far from uniform and logits are far from equal.
        noise *= np.float32(0.1 if "norm" in name else 0.15)
        weights[name] = noise + mean_of_norms if "norm" in name else noise
        weights[name] = weights[name].astype(dtype, copy=False)
    return weights


def byte_level_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer: byte-level BPE, <s> is 256, </s> is 257, a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("ð", "Ł")]
    vocab |= {left + right: 258 + i for i, (left, right) in enumerate(merges)}
    backend = Backend(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer: PreTrainedTokenizerFast = transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
